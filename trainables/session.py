"""A training session: one configuration that trains, evaluates, saves and loads. The same verbs for every engine.

Implementations: `PeftSession` (stock PEFT, the reference) and `ToySession` (no torch, a known optimum). An `Engine`
trains several sessions at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig

IMPORTED = "imported"  # source of a peak that somebody else's table says: nothing was measured here
PREDICTED = "predicted"  # source of a peak that the memory model said: nothing of this trial was measured


def never() -> bool:
    """Nothing interrupts."""
    return False


class Measurements(TypedDict, total=False):
    """What a session reports at a rung beside its task's own metrics; see `Objective` for units.

    A task adds `eval_loss` and its quality (`perplexity`, or `accuracy` and `f1`), each also with `base_` before it for
    the bare base; a second set adds `eval_NAME_loss`, a function of the user its own name. `setup_seconds` lead to the
    first step (memory probe; once per base its evaluation), `eval_seconds` are those of this rung. A trial adds which
    engine trains it and why it is not in a pack, where it was placed, what was predicted before it ran, by how many
    percent that was off, and how memory ran out.
    """

    train_loss: float
    peak_vram_gb: float
    peak_reserved_gb: float
    process_memory_gb: float
    peak_vram_source: str
    engine: str
    engine_reason: str
    compute_dtype: str
    trainable_params: int
    trainable_percent: float
    adapter_mb: float
    tokens_per_second: float
    train_seconds: float
    setup_seconds: float
    eval_seconds: float
    seconds_per_epoch: float
    grad_norm: float
    device_type: str
    predicted_peak_vram_gb: float
    vram_error_percent: float
    memory_at_failure_gb: float
    memory_requested_gb: float
    memory_available_gb: float
    memory_cap_gb: float


class Session(Protocol):
    """One trial in training."""

    @property
    def rows_seen(self) -> int:
        """Training rows so far."""

    def train(self, rows: int, interrupted: Callable[[], bool] = never) -> None:
        """Take optimizer steps until at least `rows` training rows have been seen.

        Args:
            rows: since the beginning of the trial.
            interrupted: asked before each step; where it says so, this returns early, in a state that `save` can write
                and a second call goes on from.
        """

    def evaluate(self) -> dict[str, Any]:
        """Evaluate on the whole evaluation split; changes nothing that training depends on."""

    def save(self, folder: Path) -> None:
        """Write adapter, optimizer state and data position into an empty folder."""

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, at a rung or between two steps.

        What is measured from here on is what a session measures that was never interrupted, to the last digit.
        """

    def close(self) -> None:
        """Give back what the session borrowed."""


class Engine(Protocol):
    """Trains several sessions over one frozen base, each in a slot of its own. Sessions are told apart by identity."""

    def open(self, config: TrialConfig) -> Session:
        """A fresh session in a free slot, which its `close` gives back; what this raises is that trial's failure."""

    def train(self, goals: Mapping[Session, int], interrupted: Callable[[], bool] = never) -> None:
        """Step all sessions of `goals` together until one of them has seen its training rows, or until interrupted.

        Running out of memory leaves every session as it was before the step.

        Args:
            goals: rows since the beginning of each session's trial; where one has them, nothing is done.
            interrupted: asked before each step.
        """

    def evaluate(self, sessions: Sequence[Session]) -> None:
        """Measure in shared passes: `evaluate` of each session then gives its own without another pass."""

    def close(self) -> None:
        """Give the base back; no session is open."""
