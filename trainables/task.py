"""What a fine-tuning is for. A task is one file with an object that satisfies `Task`, and a line in `task_named`.

Shape legend: b rows of a batch, t tokens of its longest row, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lorafront.spaces.errors import did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafront.trainables.data import TokenRows

TASKS = ("causal_lm",)


class Task(Protocol):
    """The seam between a recipe and what it is trained to do."""

    @property
    def name(self) -> str:
        """As in a search file."""

    @property
    def peft_type(self) -> str:
        """PEFT's TaskType."""

    def auto_class(self) -> Any:
        """The transformers Auto class that builds the model."""

    def encode(
        self, rows: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int, *, packed: bool
    ) -> list[tuple[list[int], int]]:
        """(prompt, completion) pairs to (token ids, masked leading tokens); rows without a target are left out."""

    def collate(self, rows: TokenRows, indices: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
        """A batch: `input_ids`, `attention_mask`, `labels`, each int64[b, t]; -100 is no target."""

    def targets(self, batch: dict[str, torch.Tensor]) -> int:
        """Number of targets in a batch."""

    def nll(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32[]: negative log-likelihood summed over the targets of a batch."""


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name == "causal_lm":
        from lorafront.trainables.causal_lm import CAUSAL_LM

        return CAUSAL_LM
    raise ValueError(f"unknown task {name!r}; there is {', '.join(TASKS)}.{did_you_mean(name, TASKS)}")
