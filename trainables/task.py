"""What a fine-tuning is for. A task is one file with an object that satisfies `Task`.

The recipe (`peft_session`), the data (`data`) and the base (`models`) know nothing of tasks but this Protocol.

Shape legend: b rows of a batch, t tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.user_code import load_reference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafront.trainables.data import TokenRows

# Loaded when asked for: they import torch, and a search file is read without it.
TASKS = {
    "causal_lm": "lorafront.trainables.causal_lm:CAUSAL_LM",
    "seq_cls": "lorafront.trainables.seq_cls:SEQ_CLS",
    "seq_2_seq_lm": "lorafront.trainables.seq_2_seq_lm:SEQ_2_SEQ_LM",
}


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens.

    Attributes:
        max_length: tokens per row at most.
        packed: texts are joined and cut into blocks of `max_length`.
        framed: the text has its begin and end tokens already.
        labels: names of the classes, in the order of their numbers; none where the task has none.
    """

    max_length: int
    packed: bool = False
    framed: bool = False
    labels: tuple[str, ...] = ()


@runtime_checkable
class Task(Protocol):
    """The seam between a recipe and what it is trained to do."""

    @property
    def name(self) -> str:
        """As in a search file."""

    @property
    def peft_type(self) -> str:
        """PEFT's TaskType."""

    @property
    def quality(self) -> tuple[str, ...]:
        """Objectives that its evaluation measures; the first is the one to start from."""

    @property
    def needs_prompt(self) -> bool:
        """True where plain text without a prompt (or without a label) is nothing to train on."""

    @property
    def new_head(self) -> bool:
        """True where the head may be new: then it is drawn from the trial's seed, trained, saved with the adapter."""

    def auto_class(self) -> Any:
        """The transformers Auto class that builds the model."""

    def model_arguments(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """What the Auto class needs to know beside the model's name."""

    def labels(self, rows: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """Names of the classes in (prompt, completion) pairs; none where the task has none.

        Raises:
            InvalidInput: the rows cannot be what the task needs.
        """

    def encode(
        self, rows: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
    ) -> list[tuple[list[int], int]]:
        """(prompt, completion) pairs to (token ids, target); rows without a target are left out.

        `target` is the number of leading tokens that are no target, or the number of the class.
        """

    def collate(self, rows: TokenRows, indices: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
        """A batch: int64[b, t] `input_ids`, `attention_mask`; `labels`, in which -100 is no target."""

    def targets(self, batch: dict[str, torch.Tensor]) -> int:
        """Number of targets in a batch."""

    def nll(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32[]: negative log-likelihood summed over the targets of a batch; what is trained on."""

    def tally(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """float64[n]: what adds up over batches; entry 0 is the summed NLL, entry 1 the number of targets."""

    def metrics(self, tally: torch.Tensor) -> dict[str, float]:
        """`eval_loss` and the task's `quality`, from the sum of the tallies of a whole split."""

    def references(self, rows: TokenRows, labels: tuple[str, ...]) -> Mapping[str, dict[str, float]]:
        """What doing nothing would measure on evaluation rows, by name; nothing where only a model can tell."""


def task_named(name: str, folder: Path | None = None) -> Task:
    """The task of that name, or the user's own as `module:name`.

    Raises:
        InvalidInput: it cannot be loaded, or is no task.
    """
    found = load_reference(TASKS.get(name, name), folder)
    if isinstance(found, type):
        raise InvalidInput(f"{name} is a class; name an object of it, such as TASK = {found.__name__}()")
    if not isinstance(found, Task):
        missing = [part for part in dir(Task) if not part.startswith("_") and not hasattr(found, part)]
        raise InvalidInput(f"{name} is no task: it lacks {', '.join(missing)} (see lorafront.trainables.task.Task)")
    return found
