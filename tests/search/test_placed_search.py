"""Whole searches on devices that are only pretended: trials are packed, outgrow their share, or do not fit."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before MLflow

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from support import TINY_LLAMA

from lorafront.search.export import export_front
from lorafront.search.paths import RootPaths
from lorafront.search.placement import rehearsed
from lorafront.search.preflight import check
from lorafront.search.run import run_search
from lorafront.search.search_end import SearchEnd
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import StudyTable
from lorafront.search.workplace import Places
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.sizes import MIB
from lorafront.trainables.outcome import Outcome

OWN_TASK = """
from lorafront.trainables.causal_lm import CausalLM

OWN = CausalLM()
"""


class Heard:
    """Keeps which trials run at once, and what was said."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.together: list[frozenset[int]] = []
        self.messages: list[str] = []

    def begun(self, *_: Any) -> None:
        pass

    def extended(self, _: Any) -> None:
        pass

    def ended(self) -> None:
        pass

    def started(self, number: int, _: Any) -> None:
        self.running.add(number)
        self.together.append(frozenset(self.running))

    def reported(self, number: int, report: Any) -> None:
        if report.outcome is not None:
            self.running.discard(number)

    def said(self, message: str) -> None:
        self.messages.append(message)
        if message.startswith("trial") and "run again" in message:
            self.running.discard(int(message.split()[1]))


def search_file(text_file: Path, **sections: Any) -> SearchFile:
    """A space of four configurations, two of them small; keywords change the sections."""
    space = {
        "rank": [4, 64], "modules": "attention", "quantization": ["bf16", "nf4"], "dropout": 0.0, "bias": "none",
        "alpha": {"ratio": 1}, "learning_rate": 1e-3,
    }  # fmt: skip
    return parse_search(
        {
            "name": "placed",
            "model": str(TINY_LLAMA),
            "data": {"path": str(text_file), "max_length": 32, "train_rows": 32, "eval_rows": 8},
            "space": space,
            "training": {"rows": 16, "batch_size": 4, "rungs": 2},
            "early_stopping": "off",
            "sampler": "random",
            "engine": "process",
            "budget": {"trials": 4},
            **sections,
        }
    )


@pytest.fixture
def search(ray_session: None, text_file: Path, tmp_path: Path):
    """Run a search on such devices."""

    def run(devices: str, **sections: Any) -> tuple[StudyTable, Heard]:
        heard, root = Heard(), RootPaths(tmp_path / "runs")
        return run_search(search_file(text_file, **sections), root, heard, devices=rehearsed(devices)), heard

    return run


@pytest.mark.slow
def test_trials_are_packed_by_their_predicted_memory(search, tmp_path: Path) -> None:
    """Two run at once on a device that both fit, and the error of the prediction stands beside each measurement."""
    table, heard = search("32MB")
    assert [trial.outcome for trial in table.trials] == [Outcome.COMPLETE] * 4
    assert max(map(len, heard.together)) == 2
    for trial in table.trials:
        measured = trial.measurements
        assert measured["predicted_peak_vram_gb"] == measured["peak_vram_gb"]
        assert measured["vram_error_percent"] == 0
    root = RootPaths(tmp_path / "runs")
    client = MlflowClient(tracking_uri=f"sqlite:///{root.mlflow_db}")
    experiment = client.get_experiment_by_name("placed")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`lorafront.trial` != ''")
    assert [run.data.metrics["vram_error_percent"] for run in runs] == [0.0] * 4
    # A new driver reads from the study what these trials taught.
    prepared = check(table.search, root, tmp_path, devices=rehearsed("32MB"))
    Places(prepared, StudyLedger(root.search("placed").study_db, table.search, create=False), table)
    assert prepared.placement.correction("nf4").ratios == [1.0, 1.0]
    assert prepared.placement.correction("nf4").context is None  # on a CPU it is not that of the peak


def test_a_trial_that_outgrows_its_share_fails_alone_and_gets_a_whole_device(search, tmp_path: Path) -> None:
    """The cap is kept, the bytes are recorded, its neighbours do not notice, and it runs again with more."""
    table, heard = search("36MB", resources={"gpus_per_trial": 0.25})
    assert {trial.outcome for trial in table.trials} == {Outcome.COMPLETE}
    attempts = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("attempt-0.json")]
    again = [message for message in heard.messages if "run again" in message]
    assert len(attempts) == len(again) == 2  # those of rank 64
    for attempt in attempts:
        assert attempt["outcome"] == Outcome.HOST_OOM.stored
        measured = attempt["measurements"]
        assert measured["memory_requested_gb"] > measured["memory_available_gb"] >= 0
        assert measured["predicted_peak_vram_gb"] > 9 / 1024


def test_what_no_device_holds_is_never_proposed(text_file: Path, tmp_path: Path) -> None:
    """The others are, and then the space is exhausted."""
    file = search_file(text_file)
    prepared = check(file, RootPaths(tmp_path / "runs"), tmp_path, devices=rehearsed("9MB"))
    ledger = StudyLedger(None, file, create=True, breaks=prepared.breaks)
    asked = [ledger.ask() for _ in range(3)]
    assert [found[1].rank if found else None for found in asked] == [4, 4, None]
    assert ledger.end is SearchEnd.SPACE_EXHAUSTED


@pytest.mark.slow
def test_what_cannot_be_predicted_is_tried_twice_and_told_with_its_bytes(search, tmp_path: Path) -> None:
    """The batches of a task of the user's own are not known before: it gets a whole device, which may be too small."""
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    table, _ = search("9MB", task="own_task:OWN", code=str(tmp_path))
    ended = {trial.lora.rank: trial.outcome for trial in table.trials}
    assert ended == {4: Outcome.COMPLETE, 64: Outcome.HOST_OOM}
    assert all("predicted_peak_vram_gb" not in trial.measurements for trial in table.trials)
    failed = [trial for trial in table.trials if trial.outcome is Outcome.HOST_OOM]
    assert all(trial.measurements["memory_requested_gb"] > 0 for trial in failed)


def test_without_a_gpu_a_worker_may_have_a_part_of_the_machines_memory(text_file: Path, tmp_path: Path) -> None:
    """Its libraries take a GiB of it; what needs more than the rest is not proposed."""
    search = search_file(text_file, resources={"memory_per_worker": "1033MB"})
    prepared = check(search, RootPaths(tmp_path / "runs"), tmp_path)
    small = prepared.configuration({**prepared.starts.points[0].params, "rank": 4})
    large = small.model_copy(update={"rank": 64})
    assert not prepared.breaks(small)
    assert "and a worker has 1.01 GiB" in prepared.breaks(large)
    assert prepared.placement.seat(small.quantization, None).cap == 9 * MIB
    with pytest.raises(InvalidInput, match="no configuration of the space fits"):
        check(search_file(text_file, resources={"memory_per_worker": "1030MB"}), RootPaths(tmp_path / "runs"), tmp_path)


def test_rehearsed_devices_are_read() -> None:
    """As so many times a size."""
    assert [(one.count, one.bytes) for one in rehearsed("2x24GB,80GB")] == [(2, 24 * 2**30), (1, 80 * 2**30)]
    with pytest.raises(InvalidInput, match="2x24GB"):
        rehearsed("twox24GB")


@pytest.mark.slow
def test_execution_is_solved_where_that_is_asked_for(search, tmp_path: Path) -> None:
    """What would not fit as it is given is cut into passes, and is exported as it was executed."""
    given = {"rows": 16, "batch_size": 4, "rungs": 2}
    space = {"rank": [4, 64], "modules": "attention", "quantization": "bf16", "dropout": 0.0, "bias": "none"}
    table, heard = search("9MB", training={**given, "execution": "auto"}, space=space)
    assert set(map(len, heard.together)) == {1}  # each needs most of the device
    ways = {trial.lora.rank: trial.execution for trial in table.trials}
    assert {trial.outcome for trial in table.trials} == {Outcome.COMPLETE}
    assert ways[64] is not None
    assert ways[64].batch_size * ways[64].gradient_accumulation == 4
    assert ways[64].batch_size < 4 or ways[64].gradient_checkpointing
    assert all(trial.measurements["peak_vram_gb"] * 1024 <= 9 for trial in table.trials)
    assert all(abs(trial.measurements["vram_error_percent"]) < 0.05 for trial in table.trials)
    number = next(trial.number for trial in table.trials if trial.lora.rank == 64)
    (folder,) = export_front(RootPaths(tmp_path / "runs").search("placed"), tmp_path / "out", [number])
    arguments = json.loads((folder / "training_arguments.json").read_text())
    assert arguments["per_device_train_batch_size"] == ways[64].batch_size
    assert arguments["gradient_accumulation_steps"] == ways[64].gradient_accumulation
    assert arguments["gradient_checkpointing"] == ways[64].gradient_checkpointing
