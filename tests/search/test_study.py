"""The study: what is asked differs, what is told stays, and a search that goes on knows it all."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafront.search.search_end import SearchEnd
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.spaces.errors import StateUnreadable
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.objectives import broken_limit
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report

Open = Callable[..., StudyLedger]


def search_file(**changes: Any) -> SearchFile:
    return parse_search({"name": "s", "model": "m", "data": {"path": "d"}, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def measured(lora: LoraConfiguration) -> dict[str, Any]:
    session = ToySession(lora)
    session.train(100)
    return dict(session.evaluate())


def complete(lora: LoraConfiguration) -> Report:
    return Report(100, measured(lora), Outcome.COMPLETE)


def test_trials_asked_at_once_differ(path: Path) -> None:
    """Configurations that run at the same time are all different, and lie in the space."""
    ledger = StudyLedger(path, search_file(space={"dropout": 0.0, "learning_rate": [1e-4, 1e-3]}), create=True)
    asked = [ledger.ask() for _ in range(12)]
    fingerprints = {lora.fingerprint for _, lora in filter(None, asked)}
    assert len(fingerprints) == 12


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.COMPLETE, "COMPLETE"),
        (Outcome.STOPPED, "PRUNED"),
        (Outcome.DIVERGED, "PRUNED"),
        (Outcome.CUDA_OOM, "FAIL"),
        (Outcome.USER_ERROR, "FAIL"),
        (Outcome.INFRA_LOST, "FAIL"),
    ],
)
def test_each_end_is_told_as_decided(path: Path, outcome: Outcome, state: str) -> None:
    """How a trial ended is its state and its reason, and is read back with its measurements."""
    ledger = StudyLedger(path, search_file(), create=True)
    number, lora = ledger.ask() or (-1, None)
    assert lora is not None
    ledger.record_rung(number, Report(50, measured(lora)))
    ledger.tell(number, Report(100, measured(lora), outcome, "why"))
    trial = read_study(path).trials[0]
    assert (trial.state, trial.outcome, trial.lora) == (state, outcome, lora)
    assert trial.result is not None
    assert trial.result.error == "why"
    assert [report.rows for report in trial.rungs] == [50]
    assert ledger.recorded == 1


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "high"])
def test_a_bad_metric_is_a_failure_that_names_it(path: Path, value: Any) -> None:
    """An objective without a finite number ends the trial as failed, naming the objective."""
    ledger = StudyLedger(path, search_file(), create=True)
    number, lora = ledger.ask() or (-1, None)
    assert lora is not None
    report = ledger.tell(number, Report(100, {**measured(lora), "perplexity": value}, Outcome.COMPLETE))
    assert report.outcome is Outcome.BAD_METRIC
    assert read_study(path).trials[0].outcome is Outcome.BAD_METRIC
    assert "perplexity" in report.error


def test_telling_twice_keeps_the_first(path: Path) -> None:
    """A second result for the same number changes neither the values nor the count."""
    ledger = StudyLedger(path, search_file(), create=True)
    number, lora = ledger.ask() or (-1, None)
    assert lora is not None
    ledger.tell(number, complete(lora))
    first = read_study(path).trials
    ledger.tell(number, Report(100, {**measured(lora), "perplexity": 1.0}, Outcome.COMPLETE))
    assert read_study(path).trials == first
    assert ledger.recorded == 1


def test_an_exhausted_space_ends(path: Path) -> None:
    """A space of four configurations gives four, then none; repeats are in no count."""
    space = {"rank": [4, 8], "alpha": {"ratio": [1, 2]}, "modules": "query", "quantization": "nf4", "dropout": 0.0,
             "bias": "none", "learning_rate": 1e-3}  # fmt: skip
    ledger = StudyLedger(path, search_file(space=space), create=True)
    found = 0
    while (asked := ledger.ask()) is not None:
        ledger.tell(asked[0], complete(asked[1]))
        found += 1
    table = read_study(path)
    assert found == ledger.recorded == len(table.trials) == len(table.complete) == 4


def test_equal_configurations_by_another_way_are_known(path: Path) -> None:
    """Rank 8 with alpha 16 is one configuration, whether alpha came as a ratio or as a number."""
    fixed = {"modules": "query", "quantization": "nf4", "dropout": 0.0, "bias": "none", "learning_rate": 1e-3}
    ledger = StudyLedger(path, search_file(space={"rank": 8, "alpha": {"ratio": 2}, **fixed}), create=True)
    asked = ledger.ask()
    assert asked is not None
    again = StudyLedger(path, search_file(space={"rank": 8, "alpha": {"absolute": 16}, **fixed}), create=False)
    assert again.ask() is None


def test_a_repeat_by_other_values_is_told_what_its_like_measured(path: Path) -> None:
    """Where two biases train the same, the sampler learns the result for both; the study has it once."""
    space = {"rank": 8, "alpha": 16, "modules": "query", "quantization": "nf4", "dropout": 0.0, "learning_rate": 1e-3,
             "bias": ["none", "lora_only", "all"]}  # fmt: skip
    same = {"none": "none", "lora_only": "none", "all": "all"}

    def canonical(lora: LoraConfiguration) -> LoraConfiguration:
        return lora.model_copy(update={"bias": same[lora.bias]})

    ledger = StudyLedger(path, search_file(space=space), create=True, canonical=canonical)
    while (asked := ledger.ask()) is not None:
        ledger.tell(asked[0], complete(asked[1]))
    table = read_study(path)
    assert len(table.trials) == len(table.complete) == ledger.recorded == 2
    told = [trial for trial in ledger.view.trials if trial.state.name == "COMPLETE"]
    by_bias = {trial.params["bias"]: trial.values for trial in told}
    assert {"none", "lora_only"} <= set(by_bias)
    assert by_bias["none"] == by_bias["lora_only"]


def test_an_exhausted_space_stays_exhausted(path: Path) -> None:
    """The end has a name that readers see, and asking again, also from a new driver, writes nothing."""
    space = {"rank": [4, 8], "modules": "query", "quantization": "nf4", "dropout": 0.0, "bias": "none", "alpha": 8,
             "learning_rate": 1e-3}  # fmt: skip
    ledger = StudyLedger(path, search_file(space=space), create=True)
    while (asked := ledger.ask()) is not None:
        ledger.tell(asked[0], complete(asked[1]))
    before = read_study(path)
    assert before.end is SearchEnd.SPACE_EXHAUSTED
    again = StudyLedger(path, search_file(space=space), create=False)
    assert ledger.ask() is None
    assert again.ask() is None
    assert read_study(path).trials == before.trials


def test_the_last_configuration_of_a_space_is_found(path: Path) -> None:
    """Uniform draws find what a sampler that learnt does not propose, so that no part of a space is left."""
    space = {"rank": {"low": 1, "high": 60}, "alpha": 8, "modules": "query", "quantization": "nf4", "dropout": 0.0,
             "bias": "none", "learning_rate": 1e-3}  # fmt: skip
    ledger = StudyLedger(path, search_file(space=space), create=True)
    ranks = []
    while (asked := ledger.ask()) is not None:
        ledger.tell(asked[0], complete(asked[1]))
        ranks.append(asked[1].rank)
    assert sorted(ranks) == list(range(1, 61))


def test_what_is_known_to_break_a_limit_is_never_asked_for(path: Path) -> None:
    """No trial has such a configuration, however few others there are; the proposals are in no count."""
    search = search_file(constraints={"adapter_mb": "<= 0.02", "perplexity": "<= 1"}, space={"bias": "none"})

    def breaks(lora: LoraConfiguration) -> str:
        return broken_limit(search.limits, {"adapter_mb": lora.rank * 0.004})

    ledger = StudyLedger(path, search, create=True, breaks=breaks)
    for _ in range(12):
        number, lora = ledger.ask() or (-1, None)
        assert lora is not None
        ledger.tell(number, complete(lora))
    table = read_study(path)
    assert len(table.trials) == len(table.counted) == 12
    assert {trial.lora.rank for trial in table.counted} == {4}
    assert len(ledger.view.trials) > 12


def test_reopened_study_continues(path: Path) -> None:
    """A new driver finds what ran, counts one epoch more, and does not repeat the draws of the first."""
    first = StudyLedger(path, search_file(), create=True)
    assert first.begin_epoch() == 1
    asked = [first.ask() for _ in range(3)]
    told = asked[0]
    assert told is not None
    first.tell(told[0], complete(told[1]))

    second = StudyLedger(path, search_file(), create=False)
    assert second.begin_epoch() == 2
    assert second.recorded == 1
    assert second.running() == asked[1:]
    new = second.ask()
    assert new is not None
    assert new[0] == 3
    assert new[1] not in [lora for _, lora in filter(None, asked)]


def test_the_journal_is_durable(path: Path) -> None:
    """The study is in WAL mode, so readers never wait and a commit survives a power cut."""
    StudyLedger(path, search_file(), create=True)
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be read as one" * 100])
def test_unreadable_state_is_said(path: Path, content: bytes) -> None:
    """A damaged or empty study file raises with its path, and is left as it is."""
    path.write_bytes(content)
    with pytest.raises(StateUnreadable, match="study"):
        read_study(path)
    assert path.read_bytes() == content


def test_reading_stays_fast_with_many_trials(path: Path) -> None:
    """A reader needs no import of Optuna: the table is read by SQL alone."""
    ledger = StudyLedger(path, search_file(), create=True)
    for _ in range(5):
        number, lora = ledger.ask() or (-1, None)
        assert lora is not None
        ledger.tell(number, complete(lora))
    import subprocess
    import sys

    code = f"""
import sys
from pathlib import Path
from lorafront.search.study_table import read_study
assert len(read_study(Path({str(path)!r})).complete) == 5
assert not {{"optuna", "torch", "ray", "mlflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_searcher_waits_for_those_that_run(path: Path) -> None:
    """With the budget handed out, there is nothing now, and an end once the last trial has ended: one may run again."""
    from fault_support import said

    from lorafront.search.optuna_searcher import OptunaSearcher, Workplace
    from lorafront.search.progress import Silent
    from lorafront.search.ray_trainable import JOIN

    ledger = StudyLedger(path, search_file(budget={"trials": 1}), create=True)
    searcher = OptunaSearcher(ledger, Workplace(lambda *_: {}), Silent(), unfinished=[])
    assert searcher.suggest("a")[JOIN] == [{}]
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", error=True)
    assert searcher.suggest("b")[JOIN] == [{}]  # the same trial again
    assert searcher.hear("b", said({0: Report(100, {}, Outcome.USER_ERROR, "of its own")})) == {}
    assert searcher.suggest("c") == "FINISHED"
