"""Ray Tune's searcher over our study: hands out trials, writes down what they report, and ends those that are behind.

Every result is in the study before anyone else hears of it. Runs in the driver's main thread, as Ray Tune and
`ParetoScheduler` call it. A Ray Tune trial is a worker here, which has one pack of configurations after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray.tune.search import Searcher

from lorafront.search.control import Steering, Unsteered
from lorafront.search.packs import Need, Packs
from lorafront.search.placement import ANYWHERE, Placement, Seat
from lorafront.search.progress import Observer, last_line
from lorafront.search.ray_trainable import JOIN, LEAVE, MEASURE, MEASURED, REPORTS, RESOURCES
from lorafront.search.retries import again, may_move, move_kind
from lorafront.search.stopping import Never, StoppingRule
from lorafront.search.study import WRITE_ERRORS, StudyLedger
from lorafront.search.trial_queue import TrialQueue
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.fault_points import reached
from lorafront.trainables.outcome import OUT_OF_MEMORY, Outcome
from lorafront.trainables.trial import Report

LOST = Report(0, {}, Outcome.INFRA_LOST, "the worker process died")
HUNG = Report(0, {}, Outcome.TIMEOUT, "the worker made no progress and was ended")
KILLED = Report(0, {}, Outcome.HOST_OOM, "the worker process was ended because the machine ran out of memory")
EVICTED = Report(0, {}, paused=True)  # whose memory it was that a machine lacked, nobody knows of a pack
MOVED = Report(0, {}, paused=True, error="its node is gone")  # no fault of its own, so it counts as no attempt


@dataclass(frozen=True)
class Workplace:
    """What the searcher asks of the place where trials run.

    Attributes:
        dispatch: a trial's number, configuration, seat and need to what its worker is told of it.
        recover: a trial's reports from its result file, the final one last; none where there is no such file.
        set_aside: removes the result file of a trial that is run again.
        hung: told that a trial has ended, says whether its worker was ended because it hung.
        killed: whether the machine ran out of memory since this was asked before.
        seen: whether a trial has a worker that came forward.
        displaced: whether the node is gone that a trial ran on.
        move: a trial will run elsewhere; what its worker may still write goes where nobody looks.
        seat: which part of a device a trial gets that has a worker for itself.
        need: what a trial takes of its worker.
        resources: Ray's, of a worker with that seat on one of some nodes.
        learn: told what a trial reported, and where it sat.
        to_measure: what each trial is built from whose peak memory is to be measured alone, by number.
        placement: who sits where.
        slots: packed trials in flight at most; None packs nothing.
        workers: that they are spread over.
        most: workers that there is room for now.
        nodes: ids of those that a worker may start on now to sit there; None where Ray is left to choose.
        ready: returns when a worker can start, or what it is given says that none will.
    """

    dispatch: Callable[[int, LoraConfiguration, Seat, Need], dict[str, Any]]
    recover: Callable[[int], list[Report]] = lambda _: []
    set_aside: Callable[[int], None] = lambda _: None
    hung: Callable[[int], bool] = lambda _: False
    killed: Callable[[], bool] = lambda: False
    seen: Callable[[int], bool] = lambda _: True
    displaced: Callable[[int], bool] = lambda _: False
    move: Callable[[int], object] = lambda _: None
    seat: Callable[[int, LoraConfiguration], Seat] = lambda _number, _lora: ANYWHERE
    need: Callable[[int, LoraConfiguration], Need] = lambda _, lora: Need(lora.quantization)
    resources: Callable[[Seat, frozenset[str] | None], Any] = lambda _seat, _nodes: {}
    learn: Callable[[int, LoraConfiguration, Report, Seat], None] = lambda *_: None
    to_measure: Callable[[], Mapping[int, dict[str, Any]]] = dict
    placement: Placement = field(default_factory=Placement)
    slots: int | None = None
    workers: int = 1
    most: Callable[[], float] = lambda: math.inf
    nodes: Callable[[Seat], frozenset[str] | None] = lambda _: None
    ready: Callable[[Callable[[], bool]], object] = lambda _: None


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
        self.over = False  # Ray was told that nothing will start any more
        self.halted = ""  # why no more is started although there is budget left; the trials that run may end
        self._workplace = workplace
        self._packs = Packs(workplace.placement, workplace.slots, workplace.workers)
        self._queue = TrialQueue(ledger, self._packs, workplace.need, workplace.seat)
        self._again = {number for number, _ in unfinished}  # an earlier attempt may know of rungs that we never heard
        self._rule = rule or Never()
        self._stranded: set[str] = set()
        self._chosen: dict[str, frozenset[str] | None] = {}  # where each worker may start
        self._waiting: dict[str, dict[int, float]] = {}  # for Ray: its trials, each with its share of a GPU
        self._measuring: dict[str, set[int]] = {}  # what each worker still has to measure
        self._measured: set[int] = set()  # or tried to
        self._steering = steering or Unsteered()
        for number, _ in unfinished:
            self._queue.wait(number)

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
        return bool(self._packs.running)

    def works(self, worker: str) -> bool:
        """True while a worker has anything to do."""
        return bool(self._packs.members(worker) or self._measuring.get(worker))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What a new worker begins with; FINISHED where there is no more to do, or the search has to stop.

        None while no node could have a worker, and while trials run: one of them may have to be run again, the budget
        may grow, or there is no room for the next one yet; and Ray never asks again after FINISHED.
        """
        room = self._workplace.most()
        deserted = self._workplace.nodes(ANYWHERE) == frozenset() or self._workplace.placement.is_empty
        trials = self.fill(trial_id) if len(self._packs.workers) < room and not deserted else []
        if trials:
            seat = self._workplace.placement.seat_of(trial_id)
            self._chosen[trial_id] = nodes = self._workplace.nodes(seat)
            self._workplace.ready(lambda: self._steering.stopping)
            return {RESOURCES: self._workplace.resources(seat, nodes), JOIN: trials}
        if self._steering.stopping or self.halted or not (self.busy or (deserted and not self._queue.dry)):
            self.over = True
            return str(Searcher.FINISHED)
        return None

    def hear(self, worker: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write down what a worker says; returns what it is told: whom to let go, who joins, what to measure.

        Args:
            worker: Ray Tune's name of it.
            result: of its step.
        """
        leaving = self.note(worker, result)
        self._keep_measured(worker, json.loads(result.get(MEASURED, "{}")))
        joining = self.fill(worker) if worker in self._packs.workers else []
        told = {LEAVE: leaving, JOIN: joining, MEASURE: {} if joining else self._to_measure(worker)}
        return {what: value for what, value in told.items() if value}

    def fill(self, worker: str) -> list[dict[str, Any]]:
        """Start as many trials as find room in a worker, which may be a new one."""
        told: list[dict[str, Any]] = []
        while not self._steering.stopping and not self.halted:
            try:
                following = self._queue.next_for(worker if worker in self._packs.workers else None)
                if following is None:
                    break
                told.append(self._start(worker, following.number, following.need))
            except WRITE_ERRORS as failure:
                self._halt(f"no trial could be started ({_reason(failure)})")
        self._queue.turned()
        return told

    def _start(self, worker: str, number: int, need: Need) -> dict[str, Any]:
        lora, packs = self.ledger.configurations[number], self._packs
        reached("after_ask_before_start")
        there = worker in packs.workers
        placement = packs.placement
        seat = placement.seat_of(worker) if there else packs.seat_for(need, lambda: self._workplace.seat(number, lora))
        # Adopts checkpoints of an older epoch, so before the epoch moves on.
        told = self._workplace.dispatch(number, lora, seat, need)
        self.ledger.started(number)
        if not there:
            packs.begin(worker, seat)
        part = packs.join(worker, number, need)
        share = part * (seat.gpus if seat.devices.are_gpus else 1.0)
        if there and worker not in self._waiting:
            self._steering.attempt_began(number, share)
        else:
            self._waiting.setdefault(worker, {})[number] = share
        self.observer.started(number, lora)
        return told

    def look_for_starts(self) -> None:
        """Count the time of workers from when they come forward: before, others may have what they wait for."""
        for worker, numbers in list(self._waiting.items()):
            if any(map(self._workplace.seen, numbers)):
                self._begin(worker)

    def _begin(self, worker: str) -> None:
        for number, share in self._waiting.pop(worker, {}).items():
            if number in self._packs.members(worker):
                self._steering.attempt_began(number, share)

    def note(self, worker: str, result: Mapping[str, Any]) -> list[int]:
        """Write down what a worker reports; returns the trials that it has to let go."""
        self._begin(worker)
        leaving, evicted = [], 0
        for name, raw in json.loads(result.get(REPORTS, "{}")).items():
            number, report = int(name), Report.from_json(raw)
            if number not in self._packs.members(worker):
                leaving.append(number)
                continue
            try:
                if self._goes_on(worker, number, report):
                    continue
            except WRITE_ERRORS as failure:
                self._left(worker, number)  # unfinished in the study; its checkpoint has what it did
                self._halt(f"a rung of trial {number} could not be stored ({_reason(failure)})")
                leaving.append(number)
                continue
            if report.outcome is None and not report.paused:
                leaving.append(number)
                report = replace(report, outcome=Outcome.STOPPED)
            evicted += report.paused and not self._steering.stopping
            self._left(worker, number)
            self._ended(number, report, LOST, self._packs.placement.seat_of(worker))
        if evicted:
            self._packs.shrink(worker, len(self._packs.members(worker)))
        return leaving

    def _goes_on(self, worker: str, number: int, report: Report) -> bool:
        """Record a rung unless it is the end; False where the trial ends there, by itself or by us."""
        if report.outcome is not None or report.paused:
            return False
        reached("before_rung")
        values = self.ledger.record_rung(number, report)
        seat = self._packs.placement.seat_of(worker)
        self._workplace.learn(number, self.ledger.configurations[number], report, seat)
        self.observer.reported(number, report)
        measured = len(values) == len(self.ledger.search.objective_list)  # a user's function is at the last rung only
        return not (measured and self._rule.stops(number, report.rows, values))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a worker, of which the trials that it still had are lost; what it said was heard before."""
        del result
        if trial_id not in self._packs.workers:
            return
        members = list(self._packs.members(trial_id))
        seat = self._packs.placement.seat_of(trial_id)
        moved = trial_id in self._stranded or any(self._workplace.displaced(number) for number in members)
        killed = bool(members) and error and self._workplace.killed() and not moved
        if killed and len(members) > 1:
            self._packs.limit = max(1, len(members) // 2)
        for known in (self._measuring, self._chosen, self._waiting):
            known.pop(trial_id, None)
        hung = [number for number in members if self._left(trial_id, number)]
        self._packs.end(trial_id)
        for number in members:
            gone = HUNG if number in hung else LOST if not killed else KILLED if len(members) == 1 else EVICTED
            self._ended(number, None, MOVED if moved and may_move(self.ledger, number) else gone, seat)

    def stranded(self) -> set[str]:
        """Workers that wait to begin on nodes, or on a type of device, of which none is left; who asks ends them."""
        for worker in self._waiting:
            chosen, now = self._chosen.get(worker), self._workplace.nodes(self._packs.placement.seat_of(worker))
            if self._packs.placement.lacks(worker) or (chosen is not None and now is not None and not chosen & now):
                self._stranded.add(worker)
        return self._stranded & set(self._packs.workers)

    def _left(self, worker: str, number: int) -> bool:
        """The trial does not run any more; True where that is because its worker hung and was ended."""
        self._packs.leave(worker, number)
        self._steering.attempt_ended(number)
        return self._workplace.hung(number)

    def _ended(self, number: int, report: Report | None, gone: Report, seat: Seat) -> None:
        """Write down the end of an attempt.

        Ray Tune swallows what its searcher raises, so an end that could not be stored stops the search instead: the
        trial stays as it is, and its result file tells the next driver.
        """
        try:
            self._end(number, report, gone, seat)
        except Exception as failure:  # noqa: BLE001  # this is Ray's side of the fence
            self._halt(f"the end of trial {number} could not be stored ({_reason(failure)})")

    def _end(self, number: int, report: Report | None, gone: Report, seat: Seat) -> None:
        written = self._workplace.recover(number) if report is None or number in self._again else []
        reports = written or [report or gone]
        for one in reports:
            if one.at_rung:
                self.ledger.record_rung(number, one)
        last = reports[-1]
        self._workplace.learn(number, self.ledger.configurations[number], last, seat)
        if last.paused:
            if last is MOVED:
                self.ledger.count_end(number, move_kind(self.ledger, number))
                self._workplace.move(number)
                self._again.add(number)
                self.observer.said(f"trial {number} goes on elsewhere: {last.error}")
            else:
                self.observer.reported(number, last)
            if not self._steering.stopping:  # else unfinished in the study: `resume` goes on with it
                self._queue.wait(number)
            return
        outcome = last.outcome or Outcome.INFRA_LOST
        rows = self.ledger.newest_rung(number)
        if outcome is Outcome.DISK_FULL:
            self._halt(f"trial {number}: {last_line(last.error)}")  # a full disk says nothing about the trial
        elif counted := again(self.ledger, number, last, rows):
            self._workplace.set_aside(number)  # first: a crash before it is counted costs one attempt more, no result
            self.ledger.count_end(number, counted)
            self._queue.wait(number, self._packs.running if outcome in OUT_OF_MEMORY else frozenset())
            self._again.add(number)
            self.observer.said(f"trial {number} will be run again: {last_line(last.error)}")
        else:
            reached("before_tell")
            self.observer.reported(number, self.ledger.tell(number, last))

    def _to_measure(self, worker: str) -> dict[int, dict[str, Any]]:
        """What an idle worker measures as its last job: peak memory, each alone, once nothing is left to start."""
        if self._steering.stopping or self.halted or self.works(worker) or not self._queue.dry:
            return {}
        job = {n: config for n, config in self._workplace.to_measure().items() if n not in self._measured}
        self._measured |= set(job)  # whatever comes of it: it costs the search nothing but the measurement
        self._measuring[worker] = set(job)
        return job

    def _keep_measured(self, worker: str, measured: Mapping[str, dict[str, Any]]) -> None:
        for number, values in measured.items():
            self._measuring.get(worker, set()).discard(int(number))
            try:
                if values:
                    self.ledger.keep_standalone(int(number), values)
            except WRITE_ERRORS as failure:
                self.observer.said(f"the measured peak of trial {number} could not be stored ({_reason(failure)})")

    def _halt(self, reason: str) -> None:
        self.halted = self.halted or reason
        self.observer.said(f"no new trials are started: {reason}")


def _reason(error: BaseException) -> str:
    """What lies at the bottom of it: Optuna wraps a full disk twice, in a text that does not mention it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {last_line(str(error))}"
