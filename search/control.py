"""What a driver is told while its trials run, and what it does about it: requests, signals, the end of the budget.

Polled in the driver's loop, in its main thread. Stopping is an order to all trials (trainables/orders.py): they save,
report that they paused, and stay unfinished in the study, so that `resume` and `extend` go on with them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

from lorafront.search import requests
from lorafront.search.budget import LIMITS, TIMES, Meter, Spent, limit_reached
from lorafront.search.interruption import Interruption
from lorafront.search.paths import SearchPaths
from lorafront.search.progress import Observer
from lorafront.search.search_file import Budget
from lorafront.search.study import WRITE_ERRORS, StudyLedger
from lorafront.spaces.errors import Incomplete

Clock = Callable[[], float]
LOOK_SECONDS = 0.3  # between two looks for requests
KEEP_SECONDS = 10.0  # between two writes of the times that were spent; so much a crash forgets


class Steering(Protocol):
    """What the searcher asks before it hands out a trial, and tells of each attempt at one."""

    @property
    def stopping(self) -> bool:
        """True where no trial may start any more."""

    def attempt_began(self, number: int, share: float) -> None:
        """A trial was handed to a worker that has so much of a GPU; without GPUs it counts as one."""

    def attempt_ended(self, number: int) -> None:
        """The worker is free, or gone; it may never have begun."""


class Unsteered:
    """Nobody stops anything or counts."""

    stopping = False

    def attempt_began(self, number: int, share: float) -> None:
        """Nothing."""

    def attempt_ended(self, number: int) -> None:
        """Nothing."""


class Control:
    """Implements `Steering` for a driver that lives."""

    def __init__(
        self,
        paths: SearchPaths,
        ledger: StudyLedger,
        observer: Observer,
        interruption: Interruption,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """Start to count the driver's time.

        Args:
            paths: of the search.
            ledger: its study, with this driver's epoch begun.
            observer: hears why the search stops.
            interruption: knows of signals.
            clock: seconds.
        """
        self._paths = paths
        self._ledger = ledger
        self._observer = observer
        self._interruption = interruption
        self._clock = clock
        self._orders = paths.orders(ledger.epoch)
        self._started = clock() - ledger.spent.seconds
        self._meter = Meter(ledger.spent.gpu_seconds)
        self._look = self._keep = clock()
        self._why = ""  # the search stops, in words
        self._now = False  # at the next optimizer step

    @property
    def stopping(self) -> bool:
        """True where no trial may start any more."""
        return bool(self._why)

    @property
    def spent(self) -> Spent:
        """Up to this moment."""
        now = self._clock()
        return Spent(self._ledger.recorded, now - self._started, self._meter.spent(now))

    def poll(self, *, over: bool = False) -> None:
        """Look at signals, requests and budgets, and act.

        Args:
            over: nothing will start any more, so requests are left to whoever drives next.

        Raises:
            KeyboardInterrupt: after a signal, trials had their time to save and some have not.
        """
        now = self._clock()
        if self._interruption.heard:
            self._stop(self._interruption.why, now=True)
            if self._interruption.too_late:
                self._observer.said("some trials did not get to save in time; they go on from their last checkpoint")
                raise KeyboardInterrupt
        if now >= self._look and not over:
            self._look = now + LOOK_SECONDS
            for request in requests.take(self._paths):
                self._do(request)
        spent = limit_reached(self._ledger.search.budget, self.spent, TIMES)
        if spent:
            self._stop(f"the budget is spent: {spent}", now=True)
        if now >= self._keep + KEEP_SECONDS:
            self.keep()

    def keep(self) -> None:
        """Write down the times that were spent; where that cannot be, the next time may do."""
        self._keep = self._clock()
        spent = self.spent
        with contextlib.suppress(*WRITE_ERRORS):
            self._ledger.keep_spent(spent.seconds, spent.gpu_seconds)

    def conclude(self) -> None:
        """After the last trial.

        Raises:
            Incomplete: the search stopped before its budget was spent.
        """
        if self.stopping and not limit_reached(self._ledger.search.budget, self.spent):
            raise Incomplete(f"{self._why}; {self._interruption.advice}")

    def attempt_began(self, number: int, share: float) -> None:
        """A trial was handed to a worker."""
        self._meter.began(number, share, self._clock())

    def attempt_ended(self, number: int) -> None:
        """The worker is free, or gone."""
        self._meter.ended(number, self._clock())

    def _do(self, request: requests.Request) -> None:
        if request.kind == "extend" and request.budget is not None:
            grown = _larger(self._ledger.search.budget, request.budget)
            self._ledger.keep_budget(grown)
            self._observer.extended(self._ledger.search)
        elif request.kind == "cancel" and request.trial is not None:
            self._orders.give(self._orders.cancelled(request.trial))
            self._observer.said(f"trial {request.trial} ends at its next rung, as `lorafront stop` asked")
        elif request.kind == "stop":
            self._stop("stopped as `lorafront stop` asked", now=request.now)

    def _stop(self, why: str, *, now: bool) -> None:
        """Order all trials to leave; a more urgent order overrides an earlier one."""
        if self._now or (self._why and not now):
            return
        self._why, self._now = why, now
        self._orders.give(self._orders.now if now else self._orders.rung)
        how = "save and leave" if now else "leave at their next rung"
        self._observer.said(f"{why}; no new trials, those that run {how}")


def _larger(budget: Budget, other: Budget) -> Budget:
    """Each limit at its larger value, so that requests may come in any order and twice."""
    values = {name: (getattr(budget, name), getattr(other, name)) for name in LIMITS}
    return budget.model_copy(update={name: None if None in pair else max(pair) for name, pair in values.items()})
