"""What a driver asks of trials that run, as files: workers look for them between optimizer steps and at rungs.

A Ray actor cannot be called while it trains, and a file is seen by every process that shares the folder. One folder
per driver epoch, so that no worker takes an order that was meant for another driver's; only the end of a single trial
is for good, and stands beside these folders. Looking costs a few microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorafront.trainables.checkpoint import write_text


class Orders(Protocol):
    """What one trial is asked to do."""

    def pause_now(self) -> bool:
        """Save at the next optimizer step and leave."""

    def pause(self) -> bool:
        """Leave at the next rung, or where nothing was begun."""

    def cancel(self) -> bool:
        """End at the next rung, for good."""


class NoOrders:
    """Nobody asks for anything."""

    def pause_now(self) -> bool:
        """Never."""
        return False

    def pause(self) -> bool:
        """Never."""
        return False

    def cancel(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class OrderFolder:
    """Orders of one driver to all of its trials; nothing is there until it gives one."""

    path: Path

    @property
    def now(self) -> Path:
        """There where all are to save at the next optimizer step."""
        return self.path / "pause-now"

    @property
    def rung(self) -> Path:
        """There where all are to leave at the next rung."""
        return self.path / "pause"

    def cancelled(self, number: int) -> Path:
        """There where this trial is to end at its next rung, whichever driver runs it."""
        return self.path.parent / f"cancel-{number:05d}"

    def give(self, order: Path) -> None:
        """Write one of the above, durably."""
        write_text(order, "")


@dataclass(frozen=True)
class TrialOrders:
    """Implements `Orders` for one trial."""

    folder: OrderFolder
    number: int

    def pause_now(self) -> bool:
        """Asked of all."""
        return self.folder.now.exists()

    def pause(self) -> bool:
        """Asked of all."""
        return self.folder.rung.exists() or self.folder.now.exists()

    def cancel(self) -> bool:
        """Asked of this one."""
        return self.folder.cancelled(self.number).exists()
