"""Which trials share a worker: the searcher without Ray, and whole searches of packed toys."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before MLflow

import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_support import said
from support import TINY_LLAMA

from lorafront.search.budget import Spent
from lorafront.search.optuna_searcher import OptunaSearcher, Workplace
from lorafront.search.packs import Need
from lorafront.search.paths import RootPaths
from lorafront.search.placement import Devices, Placement
from lorafront.search.progress import Silent
from lorafront.search.ray_trainable import JOIN, MEASURE, MEASURED
from lorafront.search.retries import last_chance, ran_out, unpackable
from lorafront.search.run import run_search
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import StudyTable
from lorafront.search.trial_queue import PATIENCE
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables import heartbeat
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

GPU = Devices("a GPU", 16_000, 2, are_gpus=True)
RUNG = Report(8, {"perplexity": 3.0, "peak_vram_gb": 1.0})
END = Report(16, {"perplexity": 3.0, "peak_vram_gb": 1.0}, Outcome.COMPLETE)
PAUSED = Report(8, {}, paused=True)


class Shares:
    """Implements `Steering`: keeps what part of a GPU each attempt was told to have."""

    def __init__(self) -> None:
        self.stopping = False
        self.of: dict[int, float] = {}

    def attempt_began(self, number: int, share: float) -> None:
        self.of[number] = share

    def attempt_ended(self, number: int) -> None:
        self.of.pop(number, None)


@dataclass
class Desk:
    """A searcher over toy needs, and the workers that it thinks it has."""

    searcher: OptunaSearcher
    ledger: StudyLedger
    steering: Shares
    sent: dict[int, Need] = field(default_factory=dict)

    def new(self, worker: str) -> list[int]:
        told = self.searcher.suggest(worker)
        self.searcher.look_for_starts()
        return [one["number"] for one in told[JOIN]] if isinstance(told, dict) else []

    def hear(self, worker: str, reports: Mapping[int, Report]) -> list[int]:
        """Numbers of the trials that join."""
        return [one["number"] for one in self.searcher.hear(worker, said(dict(reports))).get(JOIN, [])]


def desk(
    *,
    trials: int = 99,
    slots: int = 4,
    workers: int = 2,
    bases: tuple[str, ...] = ("bf16",),
    base: int = 0,
    slot: int = 0,
    killed: Callable[[], bool] = lambda: False,
    **workplace: Any,
) -> Desk:
    """On two GPUs; proposals take one base after the other."""
    search = parse_search(
        {
            "name": "s",
            "model": "m",
            "data": {"path": "d"},
            "space": {"quantization": list(bases), "rank": [2**i for i in range(10)]},
            "sampler": "random",
            "budget": {"trials": trials},
        }
    )
    ledger, steering = StudyLedger(None, search, create=True), Shares()
    sent: dict[int, Need] = {}

    def need(number: int, lora: LoraConfiguration) -> Need:
        alone = ran_out(ledger, number) or last_chance(ledger, number) or unpackable(ledger)
        return Need(lora.quantization, alone=alone, base=base, slot=slot, most=99)

    def dispatch(number: int, _lora: object, _seat: object, need: Need) -> dict[str, Any]:
        sent[number] = need
        return {"number": number}

    placement = Placement([GPU])
    place = Workplace(
        dispatch,
        need=need,
        seat=lambda _, lora: placement.seat(lora.quantization, None),
        placement=placement,
        slots=slots,
        workers=workers,
        killed=killed,
        **workplace,
    )
    return Desk(OptunaSearcher(ledger, place, Silent(), unfinished=[], steering=steering), ledger, steering, sent)


def test_slots_are_spread_evenly_and_refilled() -> None:
    """Each worker begins with its part of them, has a GPU for it, and gets as many anew as have ended."""
    found = desk(slots=5)
    assert found.new("a") == [0, 1, 2]
    assert found.new("b") == [3, 4]
    assert found.new("c") == []
    assert found.steering.of == dict.fromkeys(range(5), pytest.approx(1 / 3))
    assert found.hear("a", {0: END, 1: RUNG, 2: END}) == [5, 6]
    assert found.ledger.recorded == 2


def test_a_pack_is_as_large_as_its_memory() -> None:
    """The base once and the slots: one proposal more than fits waits, nothing else is asked for, and it is the next."""
    found = desk(slots=20, base=10_000, slot=2_000)
    assert found.new("a") == [0, 1, 2]
    assert found.new("b") == [3, 4, 5]  # the one that waited comes first
    assert len(found.ledger.known) == 7
    assert found.hear("a", {0: END}) == [6]
    assert found.hear("a", {1: END}) == [7]
    assert len(found.ledger.known) == 9


def test_bases_that_do_not_fit_together_get_workers_of_their_own() -> None:
    """A worker keeps to the base that it holds and is never idle; what needs another one is not put off for ever."""
    found = desk(slots=8, bases=("bf16", "nf4", "int8"), base=10_000, slot=1_000)
    workers = {"a": found.new("a"), "b": found.new("b")}
    began = {number: 0 for numbers in workers.values() for number in numbers}
    waited, turn = {}, 0
    while found.ledger.recorded < 60:
        for worker, members in workers.items():
            turn += 1
            assert len({found.sent[number].key for number in members}) == 1
            joined = found.hear(worker, {members.pop(0): END})
            for number in joined:
                began[number] = turn
            members.extend(joined)
            for number in set(found.ledger.configurations) - set(began):
                waited[number] = waited.get(number, 0) + 1
    assert {need.key for need in found.sent.values()} == {"bf16", "nf4", "int8"}
    assert max(waited.values()) <= 4 * PATIENCE


def test_those_that_a_worker_has_no_memory_for_go_on_elsewhere() -> None:
    """They wait, under their numbers, and that worker has no more than it could hold from then on."""
    found = desk(slots=8, trials=12)
    assert found.new("a") == [0, 1, 2, 3]
    assert found.hear("a", {2: PAUSED, 3: PAUSED}) == []
    assert found.ledger.ends(2) == {}
    assert found.new("b") == [2, 3, 4, 5]
    assert found.hear("a", {0: END}) == [6]


def test_who_is_told_to_stop_is_not_taken_up_again() -> None:
    """A trial that paused because the search stops stays unfinished in the study."""
    found = desk(slots=4, trials=4)
    found.new("a")
    found.steering.stopping = True
    assert found.hear("a", {0: PAUSED, 1: PAUSED}) == []
    assert not found.searcher.works("a")
    assert [number for number, _ in found.ledger.running()] == [0, 1]


def test_a_lost_worker_loses_all_that_it_had_and_the_third_time_each_is_alone() -> None:
    """Every member is run again; on its last attempt stock PEFT trains it, where it can take nobody with it."""
    found = desk(slots=2, workers=1, trials=2)
    for attempt in "ab":
        assert found.new(attempt) == [0, 1]
        assert not any(need.alone for need in found.sent.values())
        found.searcher.on_trial_complete(attempt, error=True)
    assert found.new("c") == [0]
    assert found.sent[0].alone
    assert found.new("d") == [1]
    found.searcher.on_trial_complete("c", error=True)
    assert found.ledger.recorded == 1
    assert found.hear("d", {1: END}) == []
    assert found.ledger.recorded == 2


def test_a_pack_that_the_kernel_ended_for_memory_is_halved() -> None:
    """Nobody of several has failed: all run again, with half as many at once."""
    found = desk(slots=4, workers=1, trials=4, killed=lambda: True)
    assert found.new("a") == [0, 1, 2, 3]
    found.searcher.on_trial_complete("a", error=True)
    assert all(found.ledger.ends(number) == {} for number in range(4))
    assert found.new("b") == [0, 1]


def test_one_that_ran_out_of_memory_by_itself_gets_a_worker_of_its_own() -> None:
    """Once those that ran beside it have ended, with nobody beside it."""
    found = desk(slots=2, workers=1, trials=3)
    assert found.new("a") == [0, 1]
    assert found.hear("a", {0: Report(8, {}, Outcome.CUDA_OOM, "CUDA out of memory")}) == [2]
    assert found.hear("a", {1: END}) == []
    assert found.hear("a", {2: END}) == [0]
    assert found.sent[0].alone


def test_what_cannot_be_packed_after_all_is_trained_by_stock_peft() -> None:
    """Once: an error of the same kind there is its own."""
    failed = Report(0, {}, Outcome.USER_ERROR, "…\nlorafront.trainables.packed_base.NotPackable: it mixes rows")
    found = desk(slots=2, workers=1, trials=2)
    found.new("a")
    assert found.hear("a", {0: failed}) == []
    assert unpackable(found.ledger)
    assert found.hear("a", {1: failed}) == [0]
    assert found.hear("a", {0: failed}) == [1]
    assert found.ledger.recorded == 1


def test_what_was_only_predicted_is_measured_as_the_last_job() -> None:
    """An idle worker measures, and is asked again where that brought others to the front; nothing depends on it."""
    waiting: dict[int, dict[str, Any]] = {0: {"config": 0}, 1: {"config": 1}}
    found = desk(slots=1, workers=1, trials=1, to_measure=lambda: dict(waiting))
    assert found.new("a") == [0]
    assert found.searcher.hear("a", said({0: END})) == {MEASURE: waiting}
    assert found.searcher.works("a")
    assert not found.searcher.busy
    del waiting[0]
    assert found.searcher.hear("a", {MEASURED: '{"0": {"peak_vram_gb": 2.0}}'}) == {}
    waiting[7] = {"config": 7}
    assert found.searcher.hear("a", {MEASURED: '{"1": {}}'}) == {MEASURE: {7: {"config": 7}}}  # 1 was tried
    found.searcher.on_trial_complete("a", error=True)
    assert found.searcher.suggest("b") == "FINISHED"


# ---------------------------------------------------------------- under Ray


def search_for(name: str, text_file: Path, **changes: Any) -> SearchFile:
    return parse_search(
        {
            "name": name,
            "model": str(TINY_LLAMA),
            "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
            "space": {"rank": [2, 4, 8, 16], "modules": ["query+value", "attention"], "bias": "none"},
            "training": {"rows": 64, "rungs": [16, 32, 64], "batch_size": 4},
            "budget": {"trials": 12},
            "early_stopping": "off",
            "sampler": "random",
            "resources": {"slots": 8},
            **changes,
        }
    )


def workers_of(paths: Any, table: StudyTable) -> dict[int, int]:
    """The process that had each trial at last, by the sign of life that it left."""
    signs = {trial.number: heartbeat.read(paths.trial(trial.number, trial.epoch).path) for trial in table.trials}
    return {number: sign.pid for number, sign in signs.items() if sign is not None}


@dataclass
class Watching(Silent):
    """Keeps which trials run at once; does something once, when a trial reports."""

    act: Callable[[int], object] = lambda _: None
    when: Callable[[int, Report], bool] = lambda _number, _report: False
    running: set[int] = field(default_factory=set)
    most: int = 0
    starts: Counter[int] = field(default_factory=Counter)
    done: bool = False

    def started(self, number: int, lora: LoraConfiguration) -> None:
        del lora
        self.starts[number] += 1
        self.running.add(number)
        self.most = max(self.most, len(self.running))

    def reported(self, number: int, report: Report) -> None:
        if report.outcome is not None:
            self.running.discard(number)
        if not self.done and self.when(number, report):
            self.done = True
            self.act(number)


def test_a_packed_search_gives_what_one_after_the_other_gives(
    ray_session: None, text_file: Path, tmp_path: Path
) -> None:
    """Every trial once, with the same values at every rung, several at once in each of few processes."""
    root, seen = RootPaths(tmp_path), Watching()
    packed = run_search(search_for("packed", text_file), root, seen, engine="toy-packed")
    alone = run_search(search_for("alone", text_file), root, engine="toy")
    assert [trial.outcome for trial in packed.trials] == [Outcome.COMPLETE] * 12

    def values(table: StudyTable) -> list[tuple[Any, ...]]:
        return [
            (trial.number, trial.lora, [(r.rows, r.measurements["perplexity"]) for r in (*trial.rungs, trial.result)])
            for trial in table.trials
        ]

    assert values(packed) == values(alone)
    assert seen.most == 8
    assert set(seen.starts.values()) == {1}
    pids = workers_of(root.search("packed"), packed)
    assert len(pids) == 12
    assert len(set(pids.values())) <= 2
    assert isinstance(packed.spent, Spent)


def test_the_slot_of_a_stopped_trial_is_refilled_in_place(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """With early stopping the budget is spent in the processes that it began with."""
    root = RootPaths(tmp_path)
    search = search_for("refill", text_file, early_stopping="rungs", budget={"trials": 24})
    table = run_search(search, root, engine="toy-packed")
    outcomes = Counter(trial.outcome for trial in table.counted)
    assert outcomes[Outcome.STOPPED] + outcomes[Outcome.COMPLETE] == 24
    assert outcomes[Outcome.STOPPED]
    assert len(set(workers_of(root.search("refill"), table).values())) <= 2


def test_a_killed_worker_costs_its_pack_nothing_but_time(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """All that it had go on under their numbers from their last rung, to the same values."""
    root = RootPaths(tmp_path)
    paths = root.search("kill")

    def kill(number: int) -> None:
        sign = heartbeat.read(paths.trial(number, 1).path)
        assert sign is not None
        psutil.Process(sign.pid).send_signal(signal.SIGKILL)

    seen = Watching(act=kill, when=lambda _, report: report.rows == 32)
    table = run_search(search_for("kill", text_file), root, seen, engine="slow-toy-packed")
    alone = run_search(search_for("alone", text_file), root, engine="toy")
    assert seen.done
    assert [trial.outcome for trial in table.trials] == [Outcome.COMPLETE] * 12
    again = [number for number, starts in seen.starts.items() if starts > 1]
    assert len(again) > 1
    for trial, other in zip(table.trials, alone.trials, strict=True):
        assert [report.measurements["perplexity"] for report in trial.rungs] == [
            report.measurements["perplexity"] for report in other.rungs
        ]
