"""Ray Tune's searcher over our study: hands out trials, writes down what they report, and ends those that are behind.

Every result is in the study before anyone else hears of it. Runs in the driver's main thread, as Ray Tune and
`ParetoScheduler` call it. A Ray Tune trial is a worker here, which runs one configuration after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ray.tune.search import Searcher

from lorafront.search.control import Steering, Unsteered
from lorafront.search.placement import ANYWHERE, Placement, Seat
from lorafront.search.progress import Observer, last_line
from lorafront.search.ray_trainable import REPORT
from lorafront.search.retries import OUT_OF_MEMORY, Waiting, allowed, kind
from lorafront.search.stopping import Never, StoppingRule
from lorafront.search.study import WRITE_ERRORS, StudyLedger
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.fault_points import reached
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

PATIENCE = 8  # new trials that may begin before one that waits for room gets the next
LOST = Report(0, {}, Outcome.INFRA_LOST, "the worker process died")
HUNG = Report(0, {}, Outcome.TIMEOUT, "the worker made no progress and was ended")
KILLED = Report(0, {}, Outcome.HOST_OOM, "the worker process was ended because the machine ran out of memory")


@dataclass(frozen=True)
class Workplace:
    """What the searcher asks of the place where trials run.

    Attributes:
        dispatch: a trial's number, configuration and seat to what its worker needs.
        recover: a trial's reports from its result file, the final one last; none where there is no such file.
        set_aside: removes the result file of a trial that is run again.
        hung: told that a trial has ended, says whether its worker was ended because it hung.
        killed: whether the machine ran out of memory since this was asked before.
        seat: which part of a device a trial gets.
        learn: told what a trial reported, and where it sat.
        placement: who sits where.
    """

    dispatch: Callable[[int, LoraConfiguration, Seat], dict[str, Any]]
    recover: Callable[[int], list[Report]] = lambda _: []
    set_aside: Callable[[int], None] = lambda _: None
    hung: Callable[[int], bool] = lambda _: False
    killed: Callable[[], bool] = lambda: False
    seat: Callable[[int, LoraConfiguration], Seat] = lambda _number, _lora: ANYWHERE
    learn: Callable[[int, LoraConfiguration, Report, Seat], None] = lambda *_: None
    placement: Placement = field(default_factory=Placement)


class OptunaSearcher(Searcher):  # type: ignore[misc]  # Ray is untyped
    """Asks the study until the budget is spent, trials that are to be run again first."""

    def __init__(
        self,
        ledger: StudyLedger,
        workplace: Workplace,
        observer: Observer,
        *,
        unfinished: list[tuple[int, LoraConfiguration]],
        rule: StoppingRule | None = None,
        steering: Steering | None = None,
    ) -> None:
        """Set up; nothing is asked yet.

        Args:
            ledger: the study.
            workplace: where trials run.
            observer: hears of every event.
            unfinished: trials to run again under their own numbers.
            rule: which trials end before full fidelity; none is none.
            steering: says when no trial may start any more; none is never.
        """
        super().__init__(metric="training_iteration", mode="max")  # Ray wants one; nothing here reads it
        self.ledger = ledger
        self.observer = observer
        self.exhausted = False
        self.over = False  # Ray was told that nothing will start any more
        self.halted = ""  # why no more is started although there is budget left; the trials that run may end
        self._workplace = workplace
        self._waiting = Waiting(list(unfinished))
        self._again = {number for number, _ in unfinished}  # an earlier attempt may know of rungs that we never heard
        self._rule = rule or Never()
        self._held: int | None = None  # the trial that waits for room; nothing new is asked for before it has some
        self._passed = 0  # new trials that began while others waited for room
        self._running: dict[str, int] = {}
        self._steering = steering or Unsteered()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles the searcher into files that we never read: the study is the state."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study is the state."""

    @property
    def busy(self) -> bool:
        """True while any trial runs."""
        return bool(self._running)

    def suggest(self, trial_id: str, *, here: bool = False) -> dict[str, Any] | str | None:
        """The next trial; FINISHED where the budget is spent, the space has no more, or the search has to stop.

        None while trials run: one of them may have to be run again, the budget may grow, or there is no room for the
        next one yet; and Ray never asks again after FINISHED.

        Args:
            trial_id: Ray Tune's, of the worker.
            here: the worker is there and keeps its seat, so it gets only a trial for that.
        """
        config = None
        if not self._steering.stopping and not self.halted:
            try:
                config = self._start(trial_id, here=here)
            except WRITE_ERRORS as failure:
                self._halt(f"no trial could be started ({_reason(failure)})")
        if config is None and (self._steering.stopping or self.halted or not self._running):
            self.over = self.over or not here
            return str(Searcher.FINISHED)
        return config

    def _start(self, trial_id: str, *, here: bool) -> dict[str, Any] | None:
        placement = self._workplace.placement
        following = self._following(trial_id if here else None)
        if following is None:
            return None
        number, lora = following
        reached("after_ask_before_start")
        seat = placement.seat_of(trial_id) if here else placement.widened(self._workplace.seat(number, lora))
        # Adopts checkpoints of an older epoch, so before the epoch moves on.
        config = self._workplace.dispatch(number, lora, seat)
        self.ledger.started(number)
        if not here:
            placement.take(trial_id, seat)
        self._running[trial_id] = number
        self._steering.attempt_began(number, seat.gpus if seat.devices.are_gpus else 1.0)
        self.observer.started(number, lora)
        return config

    def _following(self, worker: str | None) -> tuple[int, LoraConfiguration] | None:
        """The next trial that a worker goes on with; of a new worker, that there is room for.

        A new one that has no room waits for it, and no other is asked for meanwhile: it would never get any. One that
        is to be run again waits without holding up others, but not for ever.
        """
        placement = self._workplace.placement

        def unfit(number: int) -> bool:
            seat = self._workplace.seat(number, self.ledger.configurations[number])
            if worker is None:
                return not placement.has_room(seat)
            return not placement.goes_on(worker, seat, len(self._running))

        following = self._waiting.pop(frozenset(self._running.values()), unfit)
        if following is None and self._held is None and not self.exhausted and not self._is_spent():
            following = self.ledger.ask()
            self.exhausted = following is None
            if following is not None and unfit(following[0]):
                self._waiting.add(*following)
                self._held = following[0]
                return None
            self._passed += bool(self._waiting)
            if self._passed >= PATIENCE:
                self._held = self._waiting.oldest(frozenset(self._running.values()))
                self._passed = 0
        if following is not None and following[0] == self._held:
            self._held = None
        return following

    def _is_spent(self) -> bool:
        return self.ledger.recorded + len(self._running) + len(self._waiting) >= self.ledger.search.budget.trials

    def judge(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Hear of a rung: record it unless it is the end, and say whether the trial ends here, by itself or by us."""
        number = self._running.get(trial_id)
        if number is None or REPORT not in result:
            return True
        report = Report.from_json(json.loads(result[REPORT]))
        if report.outcome is not None or report.paused:
            return True
        reached("before_rung")
        try:
            values = self.ledger.record_rung(number, report)
        except WRITE_ERRORS as failure:
            self._left(trial_id)  # unfinished in the study; its checkpoint has what it did
            self._halt(f"a rung of trial {number} could not be stored ({_reason(failure)})")
            return True
        seat = self._workplace.placement.seat_of(trial_id)
        self._workplace.learn(number, self.ledger.configurations[number], report, seat)
        self.observer.reported(number, report)
        measured = len(values) == len(self.ledger.search.objective_list)  # a user's function is at the last rung only
        return measured and self._rule.stops(number, report.rows, values)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial: its own, ours where the last report is no end, or with `error` that of its worker.

        Ray Tune swallows what this raises and reports the trial a second time, so an end that could not be stored stops
        the search instead: the trial stays as it is, and its result file tells the next driver.
        """
        placement = self._workplace.placement
        if trial_id not in self._running:
            placement.leave(trial_id)  # Ray Tune's own word that the worker goes
            return
        seat = placement.seat_of(trial_id)
        number, hung = self._left(trial_id)
        if error:
            placement.leave(trial_id)
        gone = HUNG if hung else KILLED if error and self._workplace.killed() else LOST
        report = Report.from_json(json.loads(result[REPORT])) if result and REPORT in result and not error else None
        try:
            self._end(number, report, gone, seat)
        except Exception as failure:  # noqa: BLE001  # this is Ray's side of the fence, as said above
            self._halt(f"the end of trial {number} could not be stored ({_reason(failure)})")

    def _left(self, trial_id: str) -> tuple[int, bool]:
        """The trial does not run any more; its number, and whether its worker was ended because it hung."""
        number = self._running.pop(trial_id)
        self._steering.attempt_ended(number)
        return number, self._workplace.hung(number)

    def _end(self, number: int, report: Report | None, gone: Report, seat: Seat) -> None:
        if report is not None and report.outcome is None and not report.paused:
            report = replace(report, outcome=Outcome.STOPPED)
        written = self._workplace.recover(number) if report is None or number in self._again else []
        reports = written or [report or gone]
        for one in reports:
            if one.at_rung:
                self.ledger.record_rung(number, one)
        last = reports[-1]
        self._workplace.learn(number, self.ledger.configurations[number], last, seat)
        if last.paused:
            self.observer.reported(number, last)
            return  # unfinished in the study: `resume` goes on with it
        outcome = last.outcome or Outcome.INFRA_LOST
        rows = self.ledger.newest_rung(number)
        if outcome is Outcome.DISK_FULL:
            self._halt(f"trial {number}: {last_line(last.error)}")  # a full disk says nothing about the trial
        elif allowed(self.ledger, number, outcome, rows):
            self._workplace.set_aside(number)  # first: a crash before it is counted costs one attempt more, no result
            self.ledger.count_end(number, kind(outcome, rows))
            beside = frozenset(self._running.values()) if outcome in OUT_OF_MEMORY else frozenset[int]()
            self._waiting.add(number, self.ledger.configurations[number], beside)
            self._again.add(number)
            self.observer.said(f"trial {number} will be run again: {last_line(last.error)}")
        else:
            reached("before_tell")
            self.observer.reported(number, self.ledger.tell(number, last))

    def _halt(self, reason: str) -> None:
        self.halted = self.halted or reason
        self.observer.said(f"no new trials are started: {reason}")


def _reason(error: BaseException) -> str:
    """What lies at the bottom of it: Optuna wraps a full disk twice, in a text that does not mention it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {last_line(str(error))}"
