"""Replays a search on a table of trained trials under a simulated clock: a whole search takes seconds.

What decides (a player: searcher and early stopping) is the code that runs for real and is called in Ray Tune's order: a
configuration when a worker is free; at each rung the decision to stop; the end of a trial, early or not. Deciding takes
no simulated time. Trades away what only a real run has: start-up of processes, waiting for data, lost workers.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from trial_table import TrialTable

from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report


class Player(Protocol):
    """Searcher and early stopping of one method."""

    def suggest(self, trial_id: str) -> int | None:
        """The table's row to train next; None where there is nothing more to try."""

    def judge(self, trial_id: str, report: Report) -> bool:
        """A rung that is not the end; True stops the trial."""

    def complete(self, trial_id: str, report: Report) -> None:
        """The end of a trial: `report.outcome` says how; one that was stopped ends with the rung that `judge` saw."""


@dataclass(frozen=True)
class Ended:
    """One trial that ended.

    Attributes:
        row: of the table.
        report: the last one, with its outcome.
        order: how many trials were started before this one.
        spent: worker seconds of all workers up to now, those of trials that still run included.
    """

    row: int
    report: Report
    order: int
    spent: float


@dataclass
class _Running:
    trial_id: str
    row: int
    order: int
    started: float
    rung: int = -1  # the last one reached


@dataclass(frozen=True)
class Replay:
    """A machine with so many workers on which trials take as long as the table says.

    Attributes:
        table: the trials; the first training seed counts.
        workers: trials at once.
        limit_gb: peak memory above which a trial dies of it after its set-up, GiB.
        ahead: configurations that are asked for before a worker is free; Ray Tune keeps one where it is not told how
            many trials may run at once.
    """

    table: TrialTable
    workers: int = 4
    limit_gb: float = math.inf
    ahead: int = 0

    def play(self, player: Player) -> Iterator[Ended]:
        """Trials in the order in which they end; stop asking, and the search is over."""
        clock, finished, asked = 0.0, 0.0, 0
        waiting: deque[tuple[int, int]] = deque()  # order and row of what has no worker yet
        running: list[tuple[float, int, _Running]] = []  # by time, then by who started first
        while True:
            while len(running) + len(waiting) < self.workers + self.ahead:
                row = player.suggest(f"trial-{asked}")
                if row is None:  # for now: one that runs may have to be run again
                    break
                waiting.append((asked, row))
                asked += 1
            while waiting and len(running) < self.workers:
                order, row = waiting.popleft()
                trial = _Running(f"trial-{order}", row, order, clock)
                heapq.heappush(running, (clock + self._seconds(trial), order, trial))
            if not running:
                return
            clock, _, trial = heapq.heappop(running)
            report = self._report(trial)
            if report.outcome is None and player.judge(trial.trial_id, report):
                report = Report(report.rows, report.measurements, Outcome.STOPPED)
            if report.outcome is None:
                heapq.heappush(running, (clock + self._seconds(trial), trial.order, trial))
                continue
            player.complete(trial.trial_id, report)
            finished += clock - trial.started
            spent = finished + sum(clock - other.started for _, _, other in running)
            yield Ended(trial.row, report, trial.order, spent)

    def _fits(self, row: int) -> bool:
        return bool(self.table.peak_vram_gb[row] <= self.limit_gb)

    def _seconds(self, trial: _Running) -> float:
        """Until the trial's next report."""
        table, row, rung = self.table, trial.row, trial.rung + 1
        setup = float(table.setup_seconds[row]) if rung == 0 else 0.0
        if not self._fits(row):
            return setup
        return setup + float(table.train_seconds[row, rung] + table.eval_seconds[row, rung])

    def _report(self, trial: _Running) -> Report:
        """What the trial says next."""
        if not self._fits(trial.row):
            return Report(0, {}, Outcome.CUDA_OOM, f"needs more than {self.limit_gb:g} GiB")
        trial.rung += 1
        rows = self.table.rungs[trial.rung]
        measured: dict[str, Any] = self.table.measured(trial.row, trial.rung)
        if not math.isfinite(measured["eval_loss"]):
            return Report(rows, measured, Outcome.DIVERGED)
        return Report(rows, measured, Outcome.COMPLETE if rows == self.table.rungs[-1] else None)
