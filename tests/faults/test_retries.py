"""What is run again, how often and when, and what is told in the end: the searcher without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fault_support import Forks, said, search_file, verdict

from lorafront.search.optuna_searcher import OptunaSearcher, Workplace
from lorafront.search.paths import RootPaths
from lorafront.search.placement import Devices, Placement
from lorafront.search.progress import Silent
from lorafront.search.ray_trainable import JOIN, LEAVE
from lorafront.search.retries import MOVES, WORKER_LOSSES, ran_out
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.search.trial_queue import PATIENCE
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

OWN_FAULT = Report(8, {}, Outcome.USER_ERROR, "of its own")
OOM = Report(8, {"memory_at_failure_gb": 1.5}, Outcome.CUDA_OOM, "CUDA out of memory. Tried to allocate 2 GiB")


def searcher_on(path: Path, *, create: bool = True, hung: bool = False, trials: int = 3) -> OptunaSearcher:
    ledger = StudyLedger(path, search_file(budget={"trials": trials}), create=create)
    workplace = Workplace(lambda number, *_: {"number": number}, hung=lambda _: hung)
    return OptunaSearcher(ledger, workplace, Silent(), unfinished=ledger.running())


def on_one_gpu(folder: Path, *, trials: int, share: int) -> tuple[OptunaSearcher, Placement]:
    """Trials have so many sixteenths of it, and all of it after they ran out of memory."""
    ledger = StudyLedger(folder / "study.db", search_file(budget={"trials": trials}), create=True)
    placement = Placement([Devices("a GPU", 1000)], fixed=share)
    workplace = Workplace(
        lambda number, *_: {"number": number},
        seat=lambda number, lora: placement.seat(lora.quantization, None, alone=ran_out(ledger, number)),
        placement=placement,
    )
    return OptunaSearcher(ledger, workplace, Silent(), unfinished=[]), placement


def begins(searcher: OptunaSearcher, worker: str) -> int | str | None:
    """The number of the trial that a new worker gets, or what it is told instead."""
    told = searcher.suggest(worker)
    return told[JOIN][0]["number"] if isinstance(told, dict) else told


def ends(searcher: OptunaSearcher, worker: str, number: int, report: Report) -> int | None:
    """A worker says how its trial ended; the number of the next one, None where its worker has no more to do."""
    told = searcher.hear(worker, said({number: report}))
    assert searcher.works(worker) == (JOIN in told)
    return told[JOIN][0]["number"] if JOIN in told else None


def test_out_of_memory_is_tried_once_more_when_its_neighbours_are_done(tmp_path: Path) -> None:
    """F27: it waits for those that ran beside it, runs again under its number, and is then told with its bytes."""
    path = tmp_path / "study.db"
    searcher = searcher_on(path, trials=2)
    assert begins(searcher, "a") == 0
    assert begins(searcher, "b") == 1
    assert ends(searcher, "a", 0, OOM) is None
    assert read_study(path).trials[0].state == "RUNNING"
    assert begins(searcher, "c") is None  # b still runs, and the budget has no room for another
    assert ends(searcher, "b", 1, OWN_FAULT) == 0
    assert ends(searcher, "b", 0, OOM) is None
    told = read_study(path).trials[0]
    assert (told.state, told.outcome) == ("FAIL", Outcome.CUDA_OOM)
    assert told.measurements["memory_at_failure_gb"] == 1.5
    assert begins(searcher, "d") == "FINISHED"
    assert searcher.ledger.recorded == 2


def test_out_of_memory_once_costs_nothing(tmp_path: Path) -> None:
    """F27: a trial that ran out of memory and fits the second time is complete and counts once."""
    forks = Forks()
    assert forks.drive(tmp_path, "before_train:oom:2") == 0
    forks.close()
    assert verdict(tmp_path).problems == ()
    paths = RootPaths(tmp_path).search("s")
    assert {trial.outcome for trial in read_study(paths.study_db).counted} == {Outcome.COMPLETE}
    (earlier,) = paths.folder.rglob("attempt-0.json")
    assert json.loads(earlier.read_text())["outcome"] == "cuda_oom"


@pytest.mark.parametrize(("hung", "outcome"), [(False, Outcome.INFRA_LOST), (True, Outcome.TIMEOUT)])
def test_a_lost_worker_is_replaced_twice_by_whatever_driver(tmp_path: Path, hung: bool, outcome: Outcome) -> None:
    """F7, F8: three lost workers end a trial with the reason of the last, however many drivers saw them."""
    path = tmp_path / "study.db"
    searcher = searcher_on(path, hung=hung)
    for attempt in ("a", "b"):
        assert begins(searcher, attempt) == 0
        searcher.on_trial_complete(attempt, error=True)
    assert searcher.ledger.recorded == 0
    second = searcher_on(path, create=False, hung=hung)
    assert begins(second, "c") == 0
    second.on_trial_complete("c", error=True)
    told = read_study(path).trials[0]
    assert told.outcome is outcome
    assert told.result is not None
    assert told.result.error
    assert second.ledger.recorded == 1


def test_a_worker_that_the_kernel_ended_for_memory_ran_out_of_memory(tmp_path: Path) -> None:
    """F27: its trial is run once more, alone, and then told so; one that died otherwise meanwhile was only lost."""
    path = tmp_path / "study.db"
    ledger = StudyLedger(path, search_file(budget={"trials": 1}), create=True)
    kills = iter([True, False, True])
    workplace = Workplace(lambda number, *_: {"number": number}, killed=lambda: next(kills))
    searcher = OptunaSearcher(ledger, workplace, Silent(), unfinished=[])
    for attempt in ("a", "b", "c"):
        assert begins(searcher, attempt) == 0
        searcher.on_trial_complete(attempt, error=True)
    told = read_study(path).trials[0]
    assert told.outcome is Outcome.HOST_OOM
    assert ledger.ends(0) == {"host_oom": 1, "infra_lost@0": 1}


def test_a_trial_that_comes_forward_between_losses_is_not_given_up(tmp_path: Path) -> None:
    """F7: losses are counted from rung to rung, so a long trial outlives any number of lost workers."""
    path = tmp_path / "study.db"
    searcher = searcher_on(path)
    for rows in (8, 16, 32, 64):
        for loss in ("first", "second"):
            assert begins(searcher, f"{rows} {loss}") == 0
            assert searcher.hear(f"{rows} {loss}", said({0: Report(rows, {})})) == {}
            searcher.on_trial_complete(f"{rows} {loss}", error=True)
            searcher = searcher_on(path, create=False)  # whichever driver sees the next loss
    assert searcher.ledger.recorded == 0
    assert read_study(path).trials[0].state == "RUNNING"


def test_a_shared_worker_gets_no_trial_that_needs_one_alone(tmp_path: Path) -> None:
    """F27: after running out of GPU memory a trial waits for a worker without neighbours; others are not held up."""
    searcher, placement = on_one_gpu(tmp_path, trials=3, share=4)
    assert begins(searcher, "a") == 0
    assert ends(searcher, "a", 0, OOM) == 1
    assert ends(searcher, "a", 1, OWN_FAULT) == 2
    assert begins(searcher, "b") is None  # no GPU comes free while others share it
    assert ends(searcher, "a", 2, OWN_FAULT) is None  # of this worker; Ray Tune starts another one for the last
    searcher.on_trial_complete("a")
    assert begins(searcher, "b") == 0
    assert placement.seat_of("b").share == 16


def test_a_trial_that_waits_for_room_gets_it_in_the_end(tmp_path: Path) -> None:
    """F27: others are not held up by it at first; after some of them no new one begins until it had its turn."""
    searcher, placement = on_one_gpu(tmp_path, trials=99, share=8)
    assert begins(searcher, "a") == 0
    assert begins(searcher, "b") == 1
    began = [ends(searcher, "a", 0, OOM)]
    assert ends(searcher, "b", 1, OWN_FAULT) == 3  # it ran beside the first one
    while (number := ends(searcher, "a", began[-1], OWN_FAULT)) is not None:
        began.append(number)
    assert len(began) + 1 == PATIENCE
    searcher.on_trial_complete("a")
    assert begins(searcher, "c") is None  # the other worker is still there
    assert ends(searcher, "b", 3, OWN_FAULT) is None
    searcher.on_trial_complete("b")
    assert begins(searcher, "c") == 0
    assert placement.seat_of("c").share == 16


def test_a_trial_that_failed_by_its_own_fault_stays_failed(tmp_path: Path) -> None:
    """F37: a driver that goes on does not run it again, and a result that comes for it later changes nothing."""
    path = tmp_path / "study.db"
    first = searcher_on(path)
    begins(first, "a")
    ends(first, "a", 0, OWN_FAULT)
    before = read_study(path).trials[:1]
    ledger = StudyLedger(path, search_file(budget={"trials": 3}), create=False)
    assert [number for number, _ in ledger.running()] == [1]
    again = searcher_on(path, create=False)
    assert [begins(again, "a"), begins(again, "b"), begins(again, "c")] == [1, 2, None]
    ledger.tell(0, Report(16, {"perplexity": 2.0, "peak_vram_gb": 1.0}, Outcome.COMPLETE))
    assert read_study(path).trials[:1] == before
    assert ledger.recorded == 1


def test_a_rung_that_cannot_be_stored_stops_the_search(tmp_path: Path) -> None:
    """F20: the trial stays unfinished, its worker gets nothing more, and the next driver stores the rung after all."""
    path = tmp_path / "study.db"
    searcher = searcher_on(path)
    begins(searcher, "a")
    forbid = "CREATE TRIGGER broken BEFORE INSERT ON trial_user_attributes BEGIN INSERT INTO missing VALUES (1); END"
    with searcher.ledger.storage.engine.connect() as connection:
        connection.exec_driver_sql(forbid)
        connection.commit()
    rung = Report(8, {"perplexity": 3.0, "peak_vram_gb": 1.0})
    assert searcher.hear("a", said({0: rung})) == {LEAVE: [0]}
    assert "a rung of trial 0 could not be stored" in searcher.halted
    assert not searcher.works("a")
    assert not searcher.busy
    with searcher.ledger.storage.engine.connect() as connection:
        connection.exec_driver_sql("DROP TRIGGER broken")
        connection.commit()

    ledger = StudyLedger(path, search_file(budget={"trials": 3}), create=False)
    final = Report(16, {"perplexity": 2.0, "peak_vram_gb": 1.0}, Outcome.COMPLETE)
    workplace = Workplace(lambda number, *_: {"number": number}, recover=lambda _: [rung, final])
    second = OptunaSearcher(ledger, workplace, Silent(), unfinished=ledger.running())
    assert begins(second, "a") == 0
    assert ends(second, "a", 0, final) == 1
    told = read_study(path).trials[0]
    assert [report.rows for report in told.rungs] == [8, 16]
    assert told.outcome is Outcome.COMPLETE


def test_an_end_that_cannot_be_stored_stops_the_search(tmp_path: Path) -> None:
    """F20: Ray swallows what a searcher raises at an end, so the searcher itself starts nothing more and says why."""
    path = tmp_path / "study.db"
    searcher = searcher_on(path)
    begins(searcher, "a")
    with searcher.ledger.storage.engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER broken BEFORE UPDATE ON trials BEGIN INSERT INTO missing VALUES (1); END"
        )
        connection.commit()
    assert ends(searcher, "a", 0, OWN_FAULT) is None
    assert "the end of trial 0 could not be stored" in searcher.halted
    assert begins(searcher, "b") == "FINISHED"
    assert read_study(path).trials[0].state == "RUNNING"


class Nodes:
    """A cluster as the searcher sees it; its workers come forward when they are told to."""

    def __init__(self, folder: Path, *, trials: int) -> None:
        ledger = StudyLedger(folder / "study.db", search_file(budget={"trials": trials}), create=True)
        self.ids = frozenset({"first"})
        self.seen = False
        self.began: list[int] = []
        self.placement = Placement([Devices("a GPU", 1000, are_gpus=True)], fixed=16)
        workplace = Workplace(
            lambda number, *_: {"number": number},
            seen=lambda _: self.seen,
            displaced=lambda _: "first" not in self.ids,
            seat=lambda _number, lora: self.placement.seat(lora.quantization, None),
            placement=self.placement,
            nodes=lambda _: self.ids,
        )
        self.searcher = OptunaSearcher(ledger, workplace, Silent(), unfinished=[], steering=self)

    stopping = False

    def attempt_began(self, number: int, share: float) -> None:
        assert share == 1
        self.began.append(number)

    def attempt_ended(self, number: int) -> None:
        """Nothing."""


def test_a_search_whose_last_node_leaves_waits_for_another(tmp_path: Path) -> None:
    """Nothing is begun meanwhile, nothing ends; then its trial goes on, and the budget is spent exactly."""
    nodes = Nodes(tmp_path, trials=2)
    searcher = nodes.searcher
    assert begins(searcher, "a") == 0
    nodes.ids = frozenset()
    nodes.placement.resize([], 1)
    searcher.on_trial_complete("a", error=True)
    assert [begins(searcher, "b") for _ in range(3)] == [None] * 3
    nodes.ids = frozenset({"second"})
    assert begins(searcher, "b") is None  # there is a node, and no GPU
    nodes.placement.resize([Devices("a GPU", 1000, are_gpus=True)], 1)
    assert begins(searcher, "b") == 0
    assert ends(searcher, "b", 0, OWN_FAULT) == 1
    nodes.ids = frozenset()
    assert ends(searcher, "b", 1, OWN_FAULT) is None
    assert begins(searcher, "c") == "FINISHED"  # nothing is left that would need one
    assert searcher.ledger.recorded == 2


def test_a_worker_that_waits_for_nodes_that_are_gone_is_ended(tmp_path: Path) -> None:
    """Not one that has come forward; nor one that may start on a node that is left."""
    nodes = Nodes(tmp_path, trials=3)
    searcher = nodes.searcher
    assert begins(searcher, "a") == 0
    nodes.ids = frozenset({"first", "second"})
    assert searcher.stranded() == set()
    nodes.ids = frozenset({"second"})
    assert searcher.stranded() == {"a"}
    searcher.on_trial_complete("a", error=True)
    assert begins(searcher, "b") == 0
    nodes.seen = True
    searcher.look_for_starts()
    nodes.ids = frozenset({"third"})
    assert searcher.stranded() == set()


def test_waiting_for_a_gpu_that_others_have_costs_no_hours(tmp_path: Path) -> None:
    """They count from when a worker comes forward, or says something."""
    nodes = Nodes(tmp_path, trials=2)
    assert begins(nodes.searcher, "a") == 0
    nodes.searcher.look_for_starts()
    assert nodes.began == []
    nodes.seen = True
    nodes.searcher.look_for_starts()
    nodes.searcher.look_for_starts()
    assert nodes.began == [0]
    assert ends(nodes.searcher, "a", 0, OWN_FAULT) == 1
    assert nodes.began == [0, 1]


def test_a_trial_that_takes_every_node_down_is_told_in_the_end(tmp_path: Path) -> None:
    """A node that is gone is no fault of the trial's on it; so many in a row are counted as lost workers."""
    nodes = Nodes(tmp_path, trials=1)
    nodes.ids = frozenset({"second"})
    attempts = 0
    while begins(nodes.searcher, f"worker {attempts}") == 0:
        attempts += 1
        nodes.searcher.on_trial_complete(f"worker {attempts - 1}", error=True)
    assert attempts == MOVES + WORKER_LOSSES + 1
    (told,) = read_study(tmp_path / "study.db").trials
    assert told.outcome is Outcome.INFRA_LOST
