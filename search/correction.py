"""What trials teach about predictions of their memory. Pure."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

MARGIN = 0.08  # of the tensors; the error that the predictions for GPUs may have at their 95th percentile
WIDEST = 1.0  # a margin does not grow beyond that, whatever the reason was why memory ran out
REMEMBERED = 32  # measurements behind a correction


@dataclass
class Correction:
    """Of one base key on one type of device; all sizes are bytes.

    Attributes:
        ratios: measured over predicted tensors, the newest last.
        fragmentation: reserved by the allocator beyond the tensors, the most that was seen.
        context: of the process beyond what its allocator reserved; None before any was seen.
        margin: of the tensors, on top of the corrected prediction.
        ran_out: (least predicted tensors that wanted more than they could have, what they could have); None where none
            did.
    """

    ratios: list[float] = field(default_factory=list)
    fragmentation: int = 0
    context: int | None = None
    margin: float = MARGIN
    ran_out: tuple[int, int] | None = None

    @property
    def ratio(self) -> float:
        """By which predictions are multiplied."""
        return statistics.median(self.ratios) if self.ratios else 1.0

    def expected(self, predicted: int) -> int:
        """Tensors."""
        return math.ceil(predicted * self.ratio)

    def need(self, predicted: int, context: int) -> int:
        """What a share must hold.

        Args:
            predicted: tensors.
            context: assumed until one was seen; 0 counts tensors alone.
        """
        return self.with_margin(predicted) + self.fragmentation + self.context_or(context)

    def with_margin(self, predicted: int) -> int:
        """Tensors, and what the prediction may not see of them."""
        widest = max([self.margin, *(ratio / self.ratio - 1 for ratio in self.ratios)])
        return math.ceil(self.expected(predicted) * (1 + widest))

    def context_or(self, assumed: int) -> int:
        """That of a process."""
        return self.context if self.context is not None and assumed else assumed

    def hopeless(self, predicted: int, cap: int) -> bool:
        """True where a trial that was predicted no more ran out with no less."""
        return self.ran_out is not None and predicted >= self.ran_out[0] and cap <= self.ran_out[1]

    def learn(self, predicted: int, allocated: int, reserved: int, process: int) -> None:
        """From a trial that ran: its peak, what the allocator reserved, and what its process held where it is known."""
        self.ratios = [*self.ratios[1 - REMEMBERED :], allocated / predicted]
        self.fragmentation = max(self.fragmentation, reserved - allocated)
        if process > reserved:  # some containers hide processes from NVML; then they are the same
            self.context = max(self.context or 0, process - reserved)

    def learn_ran_out(self, predicted: int, wanted: int, cap: int) -> None:
        """From a trial that ran out of memory: what it held and asked for, and could have; 0 where not known.

        Where it wanted no more than it could have, somebody else had taken it, which says nothing about the trial.
        """
        known = wanted / self.expected(predicted) - 1 + MARGIN
        self.margin = min(WIDEST, max(known, self.margin + MARGIN))
        if wanted > cap > 0 and (self.ran_out is None or predicted <= self.ran_out[0]):
            self.ran_out = (predicted, cap)
