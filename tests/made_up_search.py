"""Searches whose truth is known: what a sampler that learns would have tried, with noise, and some stopped early.

High ranks are tried at learning rates that are too low for them, so averages over trials say the wrong thing of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from support import lora

from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

NOW = datetime(2025, 1, 1, tzinfo=UTC)
ROWS = (32, 64, 128, 256)
SIZES = {"query+value": 2, "attention": 4, "attention+mlp": 13}
BASES = {"nf4": 0.5, "int8": 1.0, "bf16": 2.0}  # GiB
SPACE: dict[str, Any] = {
    "rank": [4, 8, 16, 32, 64],
    "alpha": {"ratio": [1, 2]},
    "modules": list(SIZES),
    "quantization": list(BASES),
    "dropout": 0.0,
    "bias": "none",
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
}
RATES = np.geomspace(1e-4, 1e-2, 201)


@dataclass(frozen=True)
class Truth:
    """What settings are worth, nats.

    Attributes:
        capacity: lost by the smallest rank on the smallest modules, about; less with more of either.
        quantized: lost by 4 bits.
        curvature: lost by a learning rate that is off by a factor of ten.
        best: logarithm (base 10) of the best learning rate of rank 16.
        noise: standard deviation over trials.
    """

    capacity: float = 0.2
    quantized: float = 0.03
    curvature: float = 0.3
    best: float = -3.0
    noise: float = 0.015

    def off(self, values: dict[str, Any]) -> float:
        """Decades between the learning rate and the best one."""
        best = self.best - 0.175 * math.log2(values["rank"] / 16) - 0.3 * math.log10(SIZES[values["modules"]] / 4)
        return math.log10(values["learning_rate"]) - best + 0.3 * math.log10(values["alpha_ratio"] / 2)

    def loss(self, values: dict[str, Any]) -> float:
        """At full fidelity."""
        lost = {"nf4": 1.0, "int8": 0.3, "bf16": 0.0}[values["quantization"]] * self.quantized
        capacity = 2.5 * self.capacity / (values["rank"] ** 0.5 * SIZES[values["modules"]] ** 0.35)
        return 3 + capacity + lost + self.curvature * self.off(values) ** 2

    def tuned(self, values: dict[str, Any]) -> float:
        """At the best learning rate of the space."""
        return min(self.loss({**values, "learning_rate": rate}) for rate in RATES)


def made_up_file(**changes: Any) -> SearchFile:
    return parse_search({"name": "n", "model": "m", "data": {"path": "d"}, "space": SPACE, **changes})


def made_up_search(seed: int, trials: int, truth: Truth, **changes: Any) -> StudyTable:
    """Half of the trials change two values of the best so far, the others are drawn anew; the worse half is stopped."""
    draw = np.random.default_rng(seed)
    best: tuple[float, dict[str, Any]] | None = None
    seen: list[tuple[dict[str, Any], np.ndarray]] = []
    for _ in range(trials):
        values = _again(draw, best[1]) if best and draw.random() < 0.5 else _fresh(draw)
        gains = 1.2 * (np.array(ROWS) ** -0.45 - ROWS[-1] ** -0.45) * (1 - 0.1 * truth.off(values))
        curve = truth.loss(values) + gains + truth.noise * (draw.normal() + draw.normal(0, 0.25, len(ROWS)))
        stopped = len(seen) > 5 and curve[1] > np.median([other[1] for _, other in seen])
        seen.append((values, curve[:2] if stopped else curve))
        if not stopped and (best is None or curve[-1] < best[0]):
            best = float(curve[-1]), values
    return study([_record(number, *one) for number, one in enumerate(seen)], **changes)


def study(records: list[TrialRecord], **changes: Any) -> StudyTable:
    return StudyTable(made_up_file(**changes), tuple(records), {}, ())


def _fresh(draw: np.random.Generator) -> dict[str, Any]:
    rank = int(draw.choice(SPACE["rank"]))
    return {
        "rank": rank,
        "alpha_ratio": int(draw.choice([1, 2])),
        "modules": str(draw.choice(SPACE["modules"])),
        "quantization": str(draw.choice(SPACE["quantization"])),
        "learning_rate": _rate(-2.6 - 0.4 * math.log2(rank / 4) + draw.normal(0, 0.35)),
    }


def _again(draw: np.random.Generator, values: dict[str, Any]) -> dict[str, Any]:
    near = {**_fresh(draw), "learning_rate": _rate(math.log10(values["learning_rate"]) + draw.normal(0, 0.3))}
    changed = draw.choice(list(values), 2, replace=False)
    return {name: near[name] if name in changed else value for name, value in values.items()}


def _rate(exponent: float) -> float:
    return float(10 ** np.clip(exponent, -4, -2))


def _record(number: int, values: dict[str, Any], curve: np.ndarray) -> TrialRecord:
    own = {name: value for name, value in values.items() if name != "alpha_ratio"}
    size = values["rank"] * SIZES[values["modules"]]
    measured = {
        "peak_vram_gb": BASES[values["quantization"]] + 0.001 * size,
        "trainable_params": 1000 * size,
        "tokens_per_second": {"nf4": 80.0, "int8": 50.0, "bf16": 100.0}[values["quantization"]]
        * (1 + 0.01 * (number % 5)),
        "engine": "process",
    }
    rungs = tuple(Report(r, {"perplexity": math.exp(v), **measured}) for r, v in zip(ROWS, curve, strict=False))
    complete = len(curve) == len(ROWS)
    result = Report(rungs[-1].rows, rungs[-1].measurements, Outcome.COMPLETE if complete else Outcome.STOPPED)
    configuration = lora(alpha=values["rank"] * values["alpha_ratio"], **own)
    return TrialRecord(number, "COMPLETE" if complete else "PRUNED", configuration, 1, rungs, result, NOW, NOW)
