"""What a sampler sees of a study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study import StudyLedger
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

RUNGS = (8, 16, 32)


def search_file(**changes: Any) -> SearchFile:
    return parse_search(
        {"name": "s", "model": "m", "data": {"path": "d"}, "space": {"bias": "none"}, "budget": {"trials": 50},
         **changes}
    )  # fmt: skip


def played(ledger: StudyLedger, curve: list[float], outcome: Outcome, vram: float = 1.0) -> int:
    """A trial that reports these perplexities at the rungs and ends so at the last of them."""
    number, _ = ledger.ask() or (-1, None)
    for rows, perplexity in zip(RUNGS, curve, strict=False):
        report = Report(rows, {"perplexity": perplexity, "peak_vram_gb": vram})
        ledger.record_rung(number, report)
    ledger.tell(number, Report(report.rows, report.measurements, outcome))
    return number


@pytest.fixture
def ledger(tmp_path: Path) -> StudyLedger:
    """Two trials that came to the end: perplexity falls to a half, then to a quarter."""
    ledger = StudyLedger(tmp_path / "study.db", search_file(), create=True)
    played(ledger, [40, 20, 5], Outcome.COMPLETE)
    played(ledger, [80, 40, 10], Outcome.COMPLETE)
    return ledger


def test_a_stopped_trial_stands_with_what_it_would_have_come_to(ledger: StudyLedger) -> None:
    """The sampler sees the perplexity that it would have had with the gain of the others; its memory is measured."""
    first = played(ledger, [60], Outcome.STOPPED, vram=3.0)
    second = played(ledger, [60, 40], Outcome.CANCELLED, vram=2.0)
    assert ledger.view.trial(first).values == [pytest.approx(60 / 8), 3.0]
    assert ledger.view.trial(second).values == [pytest.approx(40 / 4), 2.0]


def test_a_diverged_trial_stands_with_the_worst_that_was_seen(ledger: StudyLedger) -> None:
    """So the sampler keeps away from there, instead of hearing nothing."""
    number, _ = ledger.ask() or (-1, None)
    ledger.tell(number, Report(8, {"perplexity": math.inf, "peak_vram_gb": 2.0}, Outcome.DIVERGED))
    assert ledger.view.trial(number).values == [pytest.approx(80), 2.0]


def test_more_is_better_is_turned_round(tmp_path: Path) -> None:
    """An accuracy is told as an accuracy, with what the others gained on top."""
    objectives = {"objectives": ["accuracy", "peak_vram_gb"], "task": "seq_cls"}
    ledger = StudyLedger(tmp_path / "study.db", search_file(**objectives), create=True)
    for curve, outcome in (((0.5, 0.7), Outcome.COMPLETE), ((0.4,), Outcome.STOPPED)):
        number, _ = ledger.ask() or (-1, None)
        for rows, accuracy in zip(RUNGS, curve, strict=False):
            report = Report(rows, {"accuracy": accuracy, "peak_vram_gb": 1.0})
            ledger.record_rung(number, report)
        ledger.tell(number, Report(report.rows, report.measurements, outcome))
    assert ledger.view.trial(number).values == [pytest.approx(0.6), 1.0]


@pytest.mark.parametrize("outcome", [Outcome.CUDA_OOM, Outcome.USER_ERROR])
def test_a_failed_trial_has_no_values(ledger: StudyLedger, outcome: Outcome) -> None:
    """A failure says nothing about quality."""
    number = played(ledger, [60], outcome)
    assert ledger.view.trial(number).values is None


def test_the_study_keeps_what_was_measured_only(ledger: StudyLedger, tmp_path: Path) -> None:
    """What the sampler is told of a stopped trial is in no database: there it is pruned, and has no values."""
    number = played(ledger, [60], Outcome.STOPPED)
    assert ledger.study.trials[number].state.name == "PRUNED"
    assert ledger.study.trials[number].values is None


def test_a_new_driver_shows_its_sampler_the_same(ledger: StudyLedger, tmp_path: Path) -> None:
    """States, values, parameters and all attributes are as before."""
    played(ledger, [60, 40], Outcome.STOPPED)
    played(ledger, [60], Outcome.USER_ERROR)
    ledger.ask()
    again = StudyLedger(tmp_path / "study.db", search_file(), create=False)
    for number in ledger.configurations:
        ours, theirs = ledger.view.trial(number), again.view.trial(number)
        assert (ours.state, ours.values, ours.params) == (theirs.state, theirs.values, theirs.params)
        assert (ours.user_attrs, ours.system_attrs) == (theirs.user_attrs, theirs.system_attrs)
