"""What is run again, how often and when, and what is told in the end: the searcher without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fault_support import Forks, search_file, verdict

from lorafront.search.optuna_searcher import PATIENCE, REPORT, OptunaSearcher, Workplace
from lorafront.search.paths import RootPaths
from lorafront.search.placement import Devices, Placement
from lorafront.search.progress import Silent
from lorafront.search.retries import ran_out
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

OOM = Report(8, {"memory_at_failure_gb": 1.5}, Outcome.CUDA_OOM, "CUDA out of memory. Tried to allocate 2 GiB")


def searcher_on(path: Path, *, create: bool = True, hung: bool = False, trials: int = 3) -> OptunaSearcher:
    ledger = StudyLedger(path, search_file(budget={"trials": trials}), create=create)
    workplace = Workplace(lambda number, *_: {"number": number}, hung=lambda _: hung)
    return OptunaSearcher(ledger, workplace, Silent(), unfinished=[])


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


def said(report: Report) -> dict[str, str]:
    return {REPORT: json.dumps(report.as_json())}


def test_out_of_memory_is_tried_once_more_when_its_neighbours_are_done(tmp_path: Path) -> None:
    """F27: it waits for those that ran beside it, runs again under its number, and is then told with its bytes."""
    path = tmp_path / "study.db"
    searcher = searcher_on(path, trials=2)
    assert searcher.suggest("a") == {"number": 0}
    assert searcher.suggest("b") == {"number": 1}
    searcher.on_trial_complete("a", said(OOM))
    assert read_study(path).trials[0].state == "RUNNING"
    assert searcher.suggest("c") is None  # b still runs, and the budget has no room for another
    searcher.on_trial_complete("b", said(Report(8, {}, Outcome.USER_ERROR, "of its own")))
    assert searcher.suggest("c") == {"number": 0}
    searcher.on_trial_complete("c", said(OOM))
    told = read_study(path).trials[0]
    assert (told.state, told.outcome) == ("FAIL", Outcome.CUDA_OOM)
    assert told.measurements["memory_at_failure_gb"] == 1.5
    assert searcher.suggest("d") == "FINISHED"
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
        assert searcher.suggest(attempt) == {"number": 0}
        searcher.on_trial_complete(attempt, error=True)
    assert searcher.ledger.recorded == 0
    second = searcher_on(path, create=False, hung=hung)
    second._waiting.add(*second.ledger.running()[0])
    assert second.suggest("c") == {"number": 0}
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
        assert searcher.suggest(attempt) == {"number": 0}
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
            assert searcher.suggest(f"{rows} {loss}") == {"number": 0}
            assert not searcher.judge(f"{rows} {loss}", said(Report(rows, {})))
            searcher.on_trial_complete(f"{rows} {loss}", error=True)
            searcher = searcher_on(path, create=False)  # whichever driver sees the next loss
            searcher._waiting.add(*searcher.ledger.running()[0])
    assert searcher.ledger.recorded == 0
    assert read_study(path).trials[0].state == "RUNNING"


def test_a_shared_worker_gets_no_trial_that_needs_one_alone(tmp_path: Path) -> None:
    """F27: after running out of GPU memory a trial waits for a worker without neighbours; others are not held up."""
    searcher, placement = on_one_gpu(tmp_path, trials=3, share=4)
    assert searcher.suggest("a") == {"number": 0}
    searcher.on_trial_complete("a", said(OOM))
    for number in (1, 2):
        assert searcher.suggest("a", here=True) == {"number": number}
        if number == 2:
            assert searcher.suggest("b") is None  # no GPU comes free while others share it
        searcher.on_trial_complete("a", said(Report(8, {}, Outcome.USER_ERROR, "of its own")))
    assert searcher.suggest("a", here=True) == "FINISHED"  # of this worker; Ray Tune starts another one for the last
    searcher.on_trial_complete("a")
    assert searcher.suggest("b") == {"number": 0}
    assert placement.seat_of("b").share == 16


def test_a_trial_that_waits_for_room_gets_it_in_the_end(tmp_path: Path) -> None:
    """F27: others are not held up by it at first; after some of them no new one begins until it had its turn."""
    searcher, placement = on_one_gpu(tmp_path, trials=99, share=8)
    assert searcher.suggest("a") == {"number": 0}
    assert searcher.suggest("b") == {"number": 1}
    searcher.on_trial_complete("a", said(OOM))
    ended = said(Report(8, {}, Outcome.USER_ERROR, "of its own"))
    began = []
    while isinstance(config := searcher.suggest("a", here=True), dict):
        began.append(config["number"])
        searcher.on_trial_complete("a", ended)
        if len(began) == 1:
            searcher.on_trial_complete("b", ended)  # it ran beside the first one
            assert searcher.suggest("b", here=True) == {"number": 3}
    assert len(began) + 1 == PATIENCE
    searcher.on_trial_complete("a")
    assert searcher.suggest("c") is None  # the other worker is still there
    searcher.on_trial_complete("b", ended)
    assert searcher.suggest("b", here=True) == "FINISHED"
    searcher.on_trial_complete("b")
    assert searcher.suggest("c") == {"number": 0}
    assert placement.seat_of("c").share == 16


def test_a_trial_that_failed_by_its_own_fault_stays_failed(tmp_path: Path) -> None:
    """F37: a driver that goes on does not run it again, and a result that comes for it later changes nothing."""
    path = tmp_path / "study.db"
    first = searcher_on(path)
    first.suggest("a")
    first.on_trial_complete("a", said(Report(8, {}, Outcome.USER_ERROR, "of its own")))
    before = read_study(path).trials
    ledger = StudyLedger(path, search_file(budget={"trials": 3}), create=False)
    assert ledger.running() == []
    again = OptunaSearcher(
        ledger, Workplace(lambda number, *_: {"number": number}), Silent(), unfinished=ledger.running()
    )
    assert [again.suggest("a"), again.suggest("b"), again.suggest("c")] == [{"number": 1}, {"number": 2}, None]
    ledger.tell(0, Report(16, {"perplexity": 2.0, "peak_vram_gb": 1.0}, Outcome.COMPLETE))
    assert read_study(path).trials[:1] == before
    assert ledger.recorded == 1


def test_a_rung_that_cannot_be_stored_stops_the_search(tmp_path: Path) -> None:
    """F20: the trial stays unfinished, its worker gets nothing more, and the next driver stores the rung after all."""
    path = tmp_path / "study.db"
    searcher = searcher_on(path)
    searcher.suggest("a")
    forbid = "CREATE TRIGGER broken BEFORE INSERT ON trial_user_attributes BEGIN INSERT INTO missing VALUES (1); END"
    with searcher.ledger.storage.engine.connect() as connection:
        connection.exec_driver_sql(forbid)
        connection.commit()
    rung = Report(8, {"perplexity": 3.0, "peak_vram_gb": 1.0})
    assert searcher.judge("a", said(rung))
    assert "a rung of trial 0 could not be stored" in searcher.halted
    assert searcher.suggest("a", here=True) == "FINISHED"
    assert not searcher.busy
    with searcher.ledger.storage.engine.connect() as connection:
        connection.exec_driver_sql("DROP TRIGGER broken")
        connection.commit()

    ledger = StudyLedger(path, search_file(budget={"trials": 3}), create=False)
    final = Report(16, {"perplexity": 2.0, "peak_vram_gb": 1.0}, Outcome.COMPLETE)
    workplace = Workplace(lambda number, *_: {"number": number}, recover=lambda _: [rung, final])
    second = OptunaSearcher(ledger, workplace, Silent(), unfinished=ledger.running())
    assert second.suggest("a") == {"number": 0}
    second.on_trial_complete("a", said(final))
    told = read_study(path).trials[0]
    assert [report.rows for report in told.rungs] == [8, 16]
    assert told.outcome is Outcome.COMPLETE


def test_an_end_that_cannot_be_stored_stops_the_search(tmp_path: Path) -> None:
    """F20: Ray swallows what a searcher raises at an end, so the searcher itself starts nothing more and says why."""
    path = tmp_path / "study.db"
    searcher = searcher_on(path)
    searcher.suggest("a")
    with searcher.ledger.storage.engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER broken BEFORE UPDATE ON trials BEGIN INSERT INTO missing VALUES (1); END"
        )
        connection.commit()
    searcher.on_trial_complete("a", said(Report(8, {}, Outcome.USER_ERROR, "of its own")))
    assert "the end of trial 0 could not be stored" in searcher.halted
    assert searcher.suggest("b") == "FINISHED"
    assert read_study(path).trials[0].state == "RUNNING"
