"""Matched contrasts hold the truth of searches whose sampler confounds the rank with the learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from made_up_search import Truth, made_up_search
from scipy.stats import binom, norm

from lorafront.search.contrasts import (
    LEAST_TRIALS,
    LEVEL,
    MOST_OBSERVATIONS,
    Evidence,
    Interval,
    Panel,
    evidence,
    interval,
    panel,
)
from lorafront.search.study_table import StudyTable
from lorafront.spaces.objectives import OBJECTIVES

SEARCHES, TRIALS = 24, 28
PERPLEXITY = OBJECTIVES["perplexity"]
PARAMETERS = ("rank", "modules", "quantization", "alpha_ratio")


class Checked(NamedTuple):
    """A contrast beside the truth."""

    seed: int
    parameter: str
    found: Interval
    true: float
    naive: Interval


def configuration(of: Evidence, place: np.ndarray) -> dict[str, Any]:
    return {
        axis.name: axis.grid[int(np.abs(axis.places - at).argmin())] for axis, at in zip(of.axes, place, strict=True)
    }


def contrasts(table: StudyTable, truth: Truth) -> Iterator[tuple[str, Interval, float, Interval]]:
    """Every contrast of neighbouring settings that the trials support."""
    of = evidence(table, PERPLEXITY)
    assert of is not None
    for name in PARAMETERS:
        own = panel(of, name)
        for before, after in itertools.pairwise(own.usable if own else []):
            draws = own.differences((before, after))
            if draws is None:
                continue
            shared = own.tried[before] & own.tried[after]
            true = [
                truth.tuned(configuration(of, own.points[after, c]))
                - truth.tuned(configuration(of, own.points[before, c]))
                for c in np.flatnonzero(shared)
            ]
            yield name, interval(draws[0]), float(np.mean(true)), naive(table, own, before, after)


def naive(table: StudyTable, own: Panel, before: int, after: int) -> Interval:
    """What averages over the trials at full fidelity would say, with an interval by the normal distribution."""
    one, other = (
        np.array([math.log(t.measurements["perplexity"]) for t in table.complete if _has(t.lora, own, setting)])
        for setting in (before, after)
    )
    if min(len(one), len(other)) < 2:
        return Interval(-math.inf, math.nan, math.inf)
    middle = float(other.mean() - one.mean())
    reach = norm.ppf((1 + LEVEL) / 2) * math.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return Interval(middle - reach, middle, middle + reach)


def _has(lora: Any, own: Panel, setting: int) -> bool:
    value = lora.alpha / lora.rank if own.name == "alpha_ratio" else getattr(lora, own.name)
    return value == own.settings[setting]


@cache
def checked(capacity: float, quantized: float) -> list[Checked]:
    """The contrasts of many searches with the same truth."""
    truth = Truth(capacity=capacity, quantized=quantized)
    return [
        Checked(seed, *found)
        for seed in range(SEARCHES)
        for found in contrasts(made_up_search(seed, TRIALS, truth), truth)
    ]


def missed(found: list[Checked], side: str) -> int:
    return sum(not getattr(one, side).low <= one.true <= getattr(one, side).high for one in found)


def one_each(found: list[Checked]) -> list[Checked]:
    """One of each search, so that they are independent."""
    draw = np.random.default_rng(0)
    return [
        own[draw.integers(len(own))]
        for _, group in itertools.groupby(found, key=lambda one: one.seed)
        if (own := list(group))
    ]


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """One contrast of each search by the binomial distribution, and all of them nearly as often."""
    found = checked(0.2, 0.03)
    independent = one_each(found)
    assert len(independent) == SEARCHES
    assert len(found) > 4 * SEARCHES
    assert missed(independent, "found") <= binom.ppf(0.999, SEARCHES, 1 - LEVEL)
    assert missed(found, "found") <= 0.08 * len(found)


@pytest.mark.slow
def test_averages_over_trials_get_the_rank_wrong_where_contrasts_do_not() -> None:
    """Several times the error, and often the wrong sign; a contrast never states one."""
    ranks = [one for one in checked(0.2, 0.03) if one.parameter == "rank" and math.isfinite(one.naive.low)]

    def error(side: str) -> float:
        return float(np.sqrt(np.mean([(getattr(one, side).middle - one.true) ** 2 for one in ranks])))

    def reversed_by(side: str) -> float:
        return float(np.mean([getattr(one, side).middle * one.true < 0 for one in ranks]))

    assert error("naive") > 3 * error("found")
    assert reversed_by("naive") > 0.25 > 2 * reversed_by("found")
    assert not any(one.found.certain * one.true < 0 for one in ranks)
    assert missed(ranks, "naive") > 3 * missed(ranks, "found")


@pytest.mark.slow
def test_where_nothing_differs_hardly_anything_is_stated() -> None:
    """Without an effect of rank, modules and quantization as rarely as the level says, per independent search."""
    found = checked(0.0, 0.0)
    assert max(abs(one.true) for one in found) < 2e-3  # what the edges of the learning rates leave
    assert sum(one.found.certain != 0 for one in one_each(found)) <= binom.ppf(0.999, SEARCHES, 1 - LEVEL)
    assert sum(one.found.certain != 0 for one in found) <= 0.08 * len(found)


def test_settings_that_share_no_context_are_not_compared() -> None:
    """High ranks on one module set alone and low ones on another: nobody knows which of the two it was."""
    table = made_up_search(0, 60, Truth())
    apart = [t for t in table.trials if (t.lora.rank > 16) == (t.lora.modules == "attention+mlp")]
    of = evidence(replace(table, trials=tuple(apart)), PERPLEXITY)
    own = panel(of, "rank")
    assert own is not None
    low, high = (own.settings.index(rank) for rank in (16, 32))
    assert own.differences((low, high)) is None


def test_a_setting_with_two_trials_is_not_compared() -> None:
    """Nor is anything of a search with very few."""
    table = made_up_search(1, 40, Truth())
    few = [t for t in table.trials if t.lora.quantization == "int8"][:2]
    rest = [t for t in table.trials if t.lora.quantization != "int8"]
    own = panel(evidence(replace(table, trials=tuple(rest + few)), PERPLEXITY), "quantization")
    assert [own.settings[i] for i in own.usable] == ["nf4", "bf16"]
    assert evidence(replace(table, trials=table.trials[: LEAST_TRIALS - 1]), PERPLEXITY) is None


@pytest.mark.slow
def test_of_very_many_trials_a_fair_draw_is_looked_at() -> None:
    """Stopped ones among them: without them the ranks that are stopped more often would look too good."""
    table = made_up_search(2, 2 * MOST_OBSERVATIONS, Truth())
    of = evidence(table, PERPLEXITY)
    kept = set(of.process._seen.trial.tolist())
    stopped = {i for i, trial in enumerate(of.trials) if trial.state == "PRUNED"}
    assert len(of.process._seen.value) == MOST_OBSERVATIONS
    assert len(kept & stopped) / len(kept) == pytest.approx(len(stopped) / len(of.trials), abs=0.1)
