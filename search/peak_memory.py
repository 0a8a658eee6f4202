"""Peak memory of a configuration before it runs: of a step on the largest batch that its trial will see."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from lorafront.spaces.errors import NotTraced
from lorafront.trainables.data import TokenData, largest_batch
from lorafront.trainables.task import task_named

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig

    from lorafront.search.search_file import SearchFile
    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.config import TrainingConfig
    from lorafront.trainables.memory_model import MemoryModel, Shapes
    from lorafront.trainables.memory_trace import DeviceKind

SHARED = ("base", "workspace")
RESIDENT = (*SHARED, "adapters", "optimizer")


class Predicted(NamedTuple):
    """Bytes of tensors.

    Attributes:
        peak: of a training step, which is the objective.
        needed: that the process must be able to hold: at that peak, or in an evaluation where it takes more.
        shared: of these, what trials on one base hold once in a process: its weights, and the workspaces of the device.
    """

    peak: int
    needed: int
    shared: int


class PeakMemory:
    """Of the trials of one search."""

    def __init__(
        self, make: Callable[[], MemoryModel | None], search: SearchFile, tokens: TokenData, rows: int
    ) -> None:
        """Trace nothing yet.

        Args:
            make: builds what predicts, once something asks: it imports for seconds. None where the closed form is not
                that of the step.
            search: its training and seed; its task is one of ours.
            tokens: the rows.
            rows: that a trial trains on.
        """
        self._make = make
        self._search = search
        self._task = task_named(search.task)
        self._tokens = tokens
        self._rows = rows
        self._longest = max(int(one.lengths.max()) for one in (tokens.evaluation, *tokens.also.values()))
        self._largest: dict[tuple[int, int, int], Shapes] = {}

    @cached_property
    def _model(self) -> MemoryModel | None:
        return self._make()

    @property
    def works(self) -> bool:
        """False where nothing of this search can be predicted."""
        return self._model is not None

    def predict(self, lora: LoraConfiguration, training: TrainingConfig) -> Predicted | None:
        """Of a trial that is executed so; None where the model cannot be traced."""
        if self._model is None:
            return None
        shapes = self.largest(lora)
        try:
            found = self._model.predict(lora, training, shapes)
        except NotTraced:
            return None
        # An evaluation holds logits and no activations; they grow with its batch and its longest row.
        batch = training.eval_batch_size or lora.batch_size
        size = shapes.rows * (shapes.tokens + shapes.completion)
        logits = found.parts["logits"] * batch * self._longest // size
        evaluating = logits + sum(found.parts[name] for name in RESIDENT)
        shared = sum(found.parts[name] for name in SHARED)
        return Predicted(found.total, max(found.total, evaluating), shared)

    def largest(self, lora: LoraConfiguration) -> Shapes:
        """Sizes of the largest batch."""
        from lorafront.trainables.memory_model import Shapes

        step, size = lora.batch_size * lora.gradient_accumulation, lora.batch_size
        seed = self._search.seed if lora.seed is None else lora.seed
        if (step, size, seed) not in self._largest:
            seen = -(-self._rows // step) * step
            chosen = largest_batch(self._tokens.train, seed, seen, size)
            batch = self._task.collate(self._tokens.train, chosen, self._tokens.pad_id)
            self._largest[step, size, seed] = Shapes.of(batch, self._task)
        return self._largest[step, size, seed]


def peak_memory(
    search: SearchFile, config: PretrainedConfig, tokens: TokenData, rows: int, traced: Path, kind: DeviceKind
) -> PeakMemory:
    """That of a search on the batches that its trials see; it works where the closed form is that of the step.

    Args:
        search: its task is one of ours.
        config: of its model.
        tokens: its rows.
        rows: that a trial trains on.
        traced: folder of what was traced before.
        kind: of device.
    """

    def model() -> MemoryModel | None:
        import torch

        from lorafront.trainables import memory_model  # imports a session's libraries, seconds

        if not memory_model.exact(config, search.data.max_length):
            return None
        capability = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else memory_model.LATEST
        task, attention = task_named(search.task), search.model.attention
        return memory_model.MemoryModel(config, task, tokens.labels, attention, traced, kind, capability)

    return PeakMemory(model, search, tokens, rows)
