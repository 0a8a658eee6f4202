"""Studies whose replicates are drawn, for tests of what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from support import lora

from lorafront.search.confirm import replicates
from lorafront.search.confirmation import following
from lorafront.search.search_file import Confirm, parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.data import SEARCHED
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

NOW = datetime(2025, 1, 1, tzinfo=UTC)
Measure = Callable[[LoraConfiguration], dict[str, float] | None]


def record(number: int, configuration: LoraConfiguration, measured: dict[str, float] | None) -> TrialRecord:
    report = Report(64, measured or {}, Outcome.COMPLETE if measured else Outcome.DIVERGED)
    return TrialRecord(number, "COMPLETE" if measured else "PRUNED", configuration, 1, (), report, NOW, NOW)


def study(*points: tuple[float, float], limit: str | None = None) -> StudyTable:
    """Trials that measured (perplexity, peak VRAM in GiB), numbered from 0."""
    raw = {"name": "n", "model": "m", "data": {"path": "d"}}
    search = parse_search({**raw, **({"constraints": {"peak_vram_gb": limit}} if limit else {})})
    trials = [
        record(number, lora(rank=number + 1), {"perplexity": perplexity, "peak_vram_gb": vram})
        for number, (perplexity, vram) in enumerate(points)
    ]
    return StudyTable(search, tuple(trials), {}, ())


def trained(table: StudyTable, measure: Measure, seeds: int = 3) -> tuple[StudyTable, list[int]]:
    """All rounds, each replicate measured so; with how many were trained in each."""
    own = StudyTable(replicates(table, Confirm(seeds=seeds), apart=False), (), {}, ())
    rounds: list[int] = []
    while more := following(table, own, seeds):
        there = len(own.trials)
        added = [record(there + index, one, measure(one)) for index, one in enumerate(more)]
        own = replace(own, trials=(*own.trials, *added))
        rounds.append(len(more))
        assert len(rounds) < 50, "there is no end to it"
    return own, rounds


def around(table: StudyTable, spread: float, shift: float = 0.0) -> Measure:
    """Replicates that scatter around what the search measured."""
    known = {trial.lora.fingerprint: trial.measurements for trial in table.trials}

    def measure(one: LoraConfiguration) -> dict[str, float]:
        measured = known[one.with_seed(None).fingerprint]
        noise = np.random.default_rng([one.seed or 0, one.rank]).standard_normal()
        loss = np.log(measured["perplexity"]) + shift + spread * noise
        return {
            "perplexity": float(np.exp(loss)), "peak_vram_gb": measured["peak_vram_gb"],
            "eval_loss": float(loss), f"eval_{SEARCHED}_loss": float(loss - shift),
        }  # fmt: skip

    return measure
