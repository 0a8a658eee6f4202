"""What is packed, what it takes, and the front measured alone: predictions give way to measurements everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import TINY_LLAMA

from lorafront.search.front import as_json, front_of
from lorafront.search.mlflow_tracker import open_tracking, sync
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.placement import ANYWHERE
from lorafront.search.preflight import check
from lorafront.search.prepared import Prepared
from lorafront.search.run import resume_search
from lorafront.search.search_file import parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.search.to_measure import to_measure
from lorafront.search.workplace import Places
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.sizes import GIB
from lorafront.trainables.engines import pack_key
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.standalone import measure_alone
from lorafront.trainables.trial import Report

SPACE = {
    "rank": [4, 16],
    "modules": ["query+value", "attention"],
    "quantization": "fp32",
    "bias": "none",
    "dropout": 0.0,
}


@pytest.fixture
def checked(text_file: Path, tmp_path: Path):
    """Check a search; keywords change its sections."""

    def run(**sections: Any) -> Prepared:
        data = {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8}
        base = {"name": "packs", "model": str(TINY_LLAMA), "training": {"rows": 16, "batch_size": 4}, "space": SPACE}
        search = parse_search({**base, "data": data, **sections})
        return check(search, RootPaths(tmp_path / "runs"), tmp_path)

    return run


def first(prepared: Prepared):
    return prepared.configuration(prepared.starts.points[0].params)


def test_the_engine_is_decided_before_a_trial_runs(checked) -> None:
    """Each way to ask for an engine, with the reason where a trial is left to stock PEFT."""
    auto = checked()
    assert not auto.why_process(first(auto))
    assert auto.why_process(first(auto).model_copy(update={"bias": "all"})) == "bias all trains parameters of the base"
    process = checked(engine="process")
    assert process.why_process(first(process)) == "engine: process"
    assert process.predicted(first(process)) is None  # nothing asks for it
    timed = checked(objectives=["perplexity", "train_seconds"])
    assert "alone" in timed.why_process(first(timed))


def test_packs_that_cannot_be_are_refused_or_noted(checked) -> None:
    """`engine: packed` is refused where nothing of the space can be packed, and noted where a part of it cannot."""
    one_is_not = {**SPACE, "modules": ["attention", "q_proj+lm_head"]}
    notes = [note for note in checked(engine="packed", space=one_is_not).notes if "not in a pack" in note]
    assert notes == ["trained by stock PEFT, not in a pack: an adapter on lm_head"]
    assert not any("pack" in note for note in checked(space=one_is_not).notes)
    none_is = {**SPACE, "modules": "q_proj+lm_head"}
    with pytest.raises(InvalidInput, match=r"engine: no configuration .* an adapter on lm_head; set it to auto"):
        checked(engine="packed", space=none_is)
    assert checked(space=none_is).search.engine == "auto"


def test_bytes_of_a_base_and_of_its_slots(checked) -> None:
    """The base counts once, a larger adapter, filled up, is a larger slot, and both hold what one trial needs."""
    prepared = checked()
    small, large = (first(prepared).model_copy(update={"rank": rank}) for rank in (4, 64))
    base = prepared.base_bytes(small)
    assert base is not None
    assert base == prepared.base_bytes(large)
    assert base >= 4 * prepared.facts.parameters
    assert prepared.slot_bytes(small) < prepared.slot_bytes(large)
    needed = prepared.predicted(large).needed
    assert needed < base + prepared.slot_bytes(large) < 1.1 * needed
    assert checked(engine="process").slot_bytes(large) is None


def test_reports_say_the_engine(checked, tmp_path: Path) -> None:
    """A trial of a pack has its predicted peak, with its source; one that is not says why, unless the file says so."""
    prepared = checked()
    ledger, table = study_of(prepared, tmp_path)
    packed = Places(prepared, ledger, table).known(first(prepared), ANYWHERE)
    expected = prepared.expected_bytes(first(prepared)) / GIB
    assert packed == {"engine": "packed", "peak_vram_gb": expected, "peak_vram_source": "predicted"}
    alone = Places(prepared, ledger, table).known(first(prepared), ANYWHERE, "it is the only one")
    assert alone == {"engine": "process", "engine_reason": "it is the only one"}
    process = checked(engine="process")
    assert Places(process, ledger, table).known(first(process), ANYWHERE) == {"engine": "process"}


def study_of(prepared: Prepared, folder: Path):
    file = folder / "study.db"
    ledger = StudyLedger(file, prepared.search, create=True, canonical=prepared.canonical)
    return ledger, read_study(file)


def finished(prepared: Prepared, paths: SearchPaths) -> StudyLedger:
    """A search whose four trials ended in a pack: every larger one is better, so all are on the front."""
    paths.folder.mkdir(parents=True)
    paths.search_yaml.write_text("name: packs")
    prepared.store()
    ledger = StudyLedger(paths.study_db, prepared.search, create=True, canonical=prepared.canonical)
    ledger.keep_data(prepared.token_file.name, prepared.rungs, {})
    ledger.begin_epoch()
    places = Places(prepared, ledger, read_study(paths.study_db))
    for _ in range(4):
        number, lora = ledger.ask()
        known = places.known(lora, ANYWHERE)
        measured = {**known, "perplexity": 10 - 50 * known["peak_vram_gb"], "eval_loss": 1.0, "train_seconds": 1.0}
        report = Report(16, {**measured, "compute_dtype": "float32"}, Outcome.COMPLETE)
        ledger.record_rung(number, report)
        ledger.tell(number, report)
    return ledger


@pytest.fixture
def ended(checked, tmp_path: Path) -> tuple[Prepared, StudyLedger, SearchPaths]:
    space = {**SPACE, "rank": [4, 16], "learning_rate": 1e-3, "alpha": {"ratio": 2}}
    prepared = checked(space=space, budget={"trials": 4})
    paths = RootPaths(tmp_path / "runs").search("packs")
    return prepared, finished(prepared, paths), paths


def test_the_front_measured_alone_is_what_was_predicted(ended) -> None:
    """On a CPU the memory model is right to the byte, for every member, and nobody is measured twice."""
    prepared, ledger, paths = ended
    waiting = to_measure(read_study(paths.study_db), prepared)
    assert len(waiting) == 4
    assert len({pack_key(config) for config in waiting.values()}) == 1
    numbers = list(waiting)
    for index, measured in measure_alone(list(waiting.values()), BaseCache()):
        assert "base_eval_loss" not in measured
        ledger.keep_standalone(numbers[index], measured)
    table = read_study(paths.study_db)
    for trial in front_of(table):
        found = trial.measurements
        assert found["peak_vram_gb"] == found["predicted_peak_vram_gb"] == trial.reported["peak_vram_gb"]
        assert (found["vram_error_percent"], found["peak_vram_source"]) == (0.0, "cpu_live_storages")
    assert not to_measure(table, prepared)


def test_what_was_measured_decides_the_front(ended) -> None:
    """A member that needs more than predicted leaves, others are measured in turn, and what was told stays told."""
    prepared, ledger, paths = ended
    before = front_of(read_study(paths.study_db))
    worst, next_one = before[-1], before[-2]  # the cheapest, and the next
    assert "vram_error_percent" not in worst.measurements
    ledger.keep_standalone(
        worst.number, {"peak_vram_gb": 10 * worst.measurements["peak_vram_gb"], "peak_vram_source": "cpu_live_storages"}
    )
    table = read_study(paths.study_db)
    assert {t.number for t in front_of(table)} == {t.number for t in before} - {worst.number}
    assert set(to_measure(table, prepared)) == {t.number for t in before} - {worst.number}
    changed = next(trial for trial in table.trials if trial.number == worst.number)
    assert changed.measurements["vram_error_percent"] == pytest.approx(-90)
    assert changed.result == worst.result
    ledger.keep_standalone(next_one.number, {})  # could not be measured: stays as predicted, and is not asked for again
    table = read_study(paths.study_db)
    assert next_one.number in {trial.number for trial in front_of(table)}
    assert next_one.number not in to_measure(table, prepared)


def test_mlflow_and_json_show_what_was_measured(ended, tmp_path: Path) -> None:
    """The run of a trial has its engine, and after the fact the measured peak, also where the measured one is less."""
    from mlflow import MlflowClient

    prepared, ledger, paths = ended
    tracking = open_tracking(prepared.search, RootPaths(tmp_path / "runs"))
    sync(tracking, paths)
    member = front_of(read_study(paths.study_db))[0]
    predicted = member.measurements["peak_vram_gb"]
    measured = 0.5 * predicted
    ledger.keep_standalone(member.number, {"peak_vram_gb": measured, "peak_vram_source": "cpu_live_storages"})
    sync(tracking, paths)
    client = MlflowClient(tracking.uri)
    [experiment] = [found for found in client.search_experiments() if found.name == "packs"]
    tag = f"tags.`lorafront.trial` = '{member.number}'"
    [run] = client.search_runs([experiment.experiment_id], tag)
    assert (run.data.tags["engine"], run.data.tags["peak_vram_source"]) == ("packed", "cpu_live_storages")
    assert run.data.metrics["peak_vram_gb"] == measured
    assert run.data.metrics["predicted_peak_vram_gb"] == predicted
    assert run.data.metrics["vram_error_percent"] == pytest.approx(100)
    [shown] = [row for row in as_json(front_of(read_study(paths.study_db)), prepared.search.objective_list)
               if row["trial"] == member.number]  # fmt: skip
    assert (shown["engine"], shown["peak_vram_source"]) == ("packed", "cpu_live_storages")
    assert shown["values"]["peak_vram_gb"] == measured


def test_a_finished_search_that_was_measured_can_be_resumed(ended, ray_session: None, tmp_path: Path) -> None:
    """Nothing is run again, and the front is the measured one, in its files too."""
    _, ledger, paths = ended
    member = front_of(read_study(paths.study_db))[0]
    ledger.keep_standalone(member.number, {"peak_vram_gb": 0.25, "peak_vram_source": "cpu_live_storages"})
    table = resume_search("packs", RootPaths(tmp_path / "runs"))
    assert len(table.trials) == 4
    kept = json.loads(paths.front_json.read_text())
    assert [row["trial"] for row in kept] == [trial.number for trial in front_of(table)]
    assert next(t for t in table.trials if t.number == member.number).measurements["peak_vram_gb"] == 0.25
