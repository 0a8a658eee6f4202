"""Samplers by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study import StudyLedger
from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

SPACE = {
    "rank": [4, 8],
    "alpha": {"ratio": [1, 2]},
    "modules": ["query", "attention"],
    "quantization": "bf16",
    "dropout": {"low": 0.0, "high": 0.2, "step": 0.1},
    "bias": "none",
    "learning_rate": 1e-3,
}


def parsed(**sections: Any) -> SearchFile:
    """A search whose file has these sections."""
    return parse_search({"name": "n", "model": "m", "data": {"path": "d"}, **sections})


def finish(ledger: StudyLedger, count: int) -> list[str]:
    """Ask and tell so many trials; their fingerprints."""
    asked = []
    for _ in range(count):
        found = ledger.ask()
        if found is None:
            break
        number, lora = found
        asked.append(lora.fingerprint)
        measured = {"perplexity": 10.0 + 1 / lora.rank + lora.dropout, "peak_vram_gb": float(lora.rank)}
        report = Report(64, measured, Outcome.COMPLETE)
        ledger.record_rung(number, report)
        ledger.tell(number, report)
    return asked


def test_a_grid_is_run_once_and_in_order(tmp_path: Path):
    """Every configuration comes once, the last parameter fastest, also across a driver that died in between."""
    search = parsed(sampler="grid", space=SPACE)
    whole = finish(StudyLedger(tmp_path / "whole.db", search, create=True), 100)
    first = finish(StudyLedger(tmp_path / "study.db", search, create=True), 7)
    second = finish(StudyLedger(tmp_path / "study.db", search, create=False), 100)
    assert len(set(whole)) == len(whole) == search.space.size()[0] == 24
    assert first + second == whole


def test_a_grid_needs_a_discrete_space():
    """A range without steps has no grid, and the message names it."""
    with pytest.raises(InvalidInput, match="continuous: learning_rate"):
        parsed(sampler="grid", space={**SPACE, "learning_rate": {"low": 1e-4, "high": 1e-3}})


@pytest.mark.parametrize("sampler", ["mfgp", "tpe", "gp", "nsga2", "random", "grid"])
def test_every_sampler_fills_a_study(sampler: str, tmp_path: Path):
    """Each proposes configurations that differ, until it is asked no more."""
    asked = finish(StudyLedger(tmp_path / "study.db", parsed(sampler=sampler, space=SPACE), create=True), 14)
    assert len(set(asked)) == len(asked) == 14


@pytest.mark.parametrize("sampler", ["mfgp", "tpe", "nsga2", "random", "grid"])
def test_every_value_that_steps_reach_is_run(sampler: str, tmp_path: Path):
    """Also the last one, and where 3 times 0.1 is a little more than 0.3; none lies beyond the end."""
    space = {**SPACE, "rank": {"low": 4, "high": 103, "step": 45}, "modules": "query", "alpha": 8,
             "dropout": {"low": 0.0, "high": 0.3, "step": 0.1}}  # fmt: skip
    search = parsed(space=space, sampler=sampler, start_points={"recommended": False}, budget={"trials": 20})
    ledger = StudyLedger(tmp_path / "study.db", search, create=True)
    finish(ledger, 20)
    found = {(lora.rank, lora.dropout) for lora in ledger.configurations.values()}
    assert found == {(rank, dropout) for rank in (4, 49, 94) for dropout in (0.0, 0.1, 0.2, 0.3)}
