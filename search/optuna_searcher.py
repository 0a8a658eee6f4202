"""Ray Tune's searcher over our study: hands out trials, writes down what they report.

Every result is in the study before anyone else hears of it. Runs in the driver's main thread, as Ray Tune calls it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from lorafront.search.progress import Observer
from lorafront.search.ray_trainable import REPORT
from lorafront.search.study import StudyLedger
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

Dispatch = Callable[[int, LoraConfiguration], dict[str, Any]]


class OptunaSearcher(Searcher):  # type: ignore[misc]  # Ray is untyped
    """Asks the study until the budget is spent, trials that were lost with an earlier driver first."""

    def __init__(
        self,
        ledger: StudyLedger,
        dispatch: Dispatch,
        recover: Callable[[int], list[Report]],
        observer: Observer,
        *,
        unfinished: list[tuple[int, LoraConfiguration]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is asked yet.

        Args:
            ledger: the study.
            dispatch: a trial's number and configuration to what its worker needs.
            recover: a trial's reports from its result file, the final one last; none where there is no such file.
            observer: hears of every event.
            unfinished: trials to run again under their own numbers.
            clock: seconds.
        """
        super().__init__(metric="training_iteration", mode="max")  # Ray wants one; nothing here reads it
        self.ledger = ledger
        self.observer = observer
        self.exhausted = False
        self._dispatch = dispatch
        self._recover = recover
        self._queue = list(unfinished)
        self._running: dict[str, int] = {}
        self._clock = clock
        self._started = clock() - ledger.lived  # `hours` are those of all drivers together

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles the searcher into files that we never read: the study is the state."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study is the state."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; FINISHED where the budget is spent or the space has no more."""
        if self._queue:
            number, lora = self._queue.pop(0)
        else:
            asked = None if self._is_spent() else self.ledger.ask()
            if asked is None:
                self.exhausted = self.exhausted or not self._is_spent()
                return str(Searcher.FINISHED)
            number, lora = asked
        config = self._dispatch(number, lora)  # adopts checkpoints of an older epoch, so before the epoch moves on
        self.ledger.started(number)
        self._running[trial_id] = number
        self.observer.started(number, lora)
        return config

    def _is_spent(self) -> bool:
        budget = self.ledger.search.budget
        if budget.hours is not None and self._clock() - self._started > budget.hours * 3600:
            return True
        return self.ledger.recorded + len(self._running) >= budget.trials

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A rung that is not the end."""
        if REPORT in result and trial_id in self._running:
            report = Report.from_json(json.loads(result[REPORT]))
            self.ledger.record_rung(self._running[trial_id], report)
            self.observer.reported(self._running[trial_id], report)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial, or of its worker."""
        number = self._running.pop(trial_id, None)
        if number is None:
            return
        report = Report.from_json(json.loads(result[REPORT])) if result and REPORT in result and not error else None
        if report is None or report.outcome is None:
            *rungs, report = self._recover(number) or [Report(0, {}, Outcome.INFRA_LOST, "the worker process died")]
            for rung in rungs:
                self.ledger.record_rung(number, rung)
        if report.outcome is Outcome.COMPLETE:
            self.ledger.record_rung(number, report)
        self.ledger.keep_lived(self._clock() - self._started)
        self.observer.reported(number, self.ledger.tell(number, report))
