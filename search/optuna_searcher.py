"""Ray Tune's searcher over our study: hands out trials, writes down what they report, and ends those that are behind.

Every result is in the study before anyone else hears of it. Runs in the driver's main thread, as Ray Tune and
`ParetoScheduler` call it. A Ray Tune trial is a worker here, which runs one configuration after the other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.tune.search import Searcher

from lorafront.search.control import Steering, Unsteered
from lorafront.search.progress import Observer
from lorafront.search.ray_trainable import REPORT
from lorafront.search.stopping import Never, StoppingRule
from lorafront.search.study import StudyLedger
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

Dispatch = Callable[[int, LoraConfiguration], dict[str, Any]]
MAX_WORKER_LOSSES = 2  # a trial whose worker died is started again so often, from its last checkpoint


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
        rule: StoppingRule | None = None,
        steering: Steering | None = None,
    ) -> None:
        """Set up; nothing is asked yet.

        Args:
            ledger: the study.
            dispatch: a trial's number and configuration to what its worker needs.
            recover: a trial's reports from its result file, the final one last; none where there is no such file.
            observer: hears of every event.
            unfinished: trials to run again under their own numbers.
            rule: which trials end before full fidelity; none is none.
            steering: says when no trial may start any more; none is never.
        """
        super().__init__(metric="training_iteration", mode="max")  # Ray wants one; nothing here reads it
        self.ledger = ledger
        self.observer = observer
        self.exhausted = False
        self._dispatch = dispatch
        self._recover = recover
        self._queue = list(unfinished)
        self._rule = rule or Never()
        self._running: dict[str, int] = {}
        self._losses: Counter[int] = Counter()
        self._steering = steering or Unsteered()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles the searcher into files that we never read: the study is the state."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study is the state."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None where there may be one later; FINISHED where there will be none."""
        if self._steering.stopping:
            return str(Searcher.FINISHED)
        if self._queue:
            number, lora = self._queue.pop(0)
        elif self._is_spent():
            waits = self._running and self._steering.may_grow
            return None if waits else str(Searcher.FINISHED)
        else:
            asked = self.ledger.ask()
            if asked is None:
                self.exhausted = True
                return str(Searcher.FINISHED)
            number, lora = asked
        config = self._dispatch(number, lora)  # adopts checkpoints of an older epoch, so before the epoch moves on
        self.ledger.started(number)
        self._running[trial_id] = number
        self.observer.started(number, lora)
        return config

    def _is_spent(self) -> bool:
        return self.ledger.recorded + len(self._running) >= self.ledger.search.budget.trials

    def judge(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Hear of a rung: record it unless it is the end, and say whether the trial ends here, by itself or by us."""
        number = self._running.get(trial_id)
        if number is None or REPORT not in result:
            return True
        report = Report.from_json(json.loads(result[REPORT]))
        if report.outcome is not None or report.paused:
            return True
        values = self.ledger.record_rung(number, report)
        self.observer.reported(number, report)
        return self._rule.stops(number, report.rows, values)

    def lost(self, trial_id: str) -> bool:
        """Hear that the worker died; True where its trial has lost more of them than are replaced."""
        number = self._running.get(trial_id)
        if number is None:
            return False
        self._losses[number] += 1
        return self._losses[number] > MAX_WORKER_LOSSES

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial: its own, ours where the last report is no end, or with `error` that of its worker."""
        number = self._running.pop(trial_id, None)
        if number is None:
            return
        if result and REPORT in result and not error:
            reports = [Report.from_json(json.loads(result[REPORT]))]
        else:
            reports = self._recover(number) or [Report(0, {}, Outcome.INFRA_LOST, "the worker process died")]
        for report in reports:
            if report.at_rung:
                self.ledger.record_rung(number, report)
        last = reports[-1]
        if last.paused:
            self.observer.reported(number, last)
            return  # unfinished in the study: `resume` goes on with it
        last = last if last.outcome else replace(last, outcome=Outcome.STOPPED)
        self.observer.reported(number, self.ledger.tell(number, last))
