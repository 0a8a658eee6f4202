"""Replicates over seeds: intervals that hold what they promise, from very few of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binom

from lorafront.search.replicates import RATIOS, beaten, fit, natural, scaled
from lorafront.spaces.objectives import OBJECTIVES

REPEATS, CONFIGURATIONS = 600, 6


def measured(
    generator: np.random.Generator, true: np.ndarray, seeds: int, of_seeds: float, own: float, *, more: int = 0
) -> dict[int, dict[int, float]]:
    """Replicates of each; the first configuration has so many more seeds than the others."""
    effects = of_seeds * generator.standard_normal(seeds + more)
    return {
        number: {
            seed: float(mean + effects[seed] + own * generator.standard_normal())
            for seed in range(seeds + (more if number == 0 else 0))
        }
        for number, mean in enumerate(true)
    }


@pytest.mark.parametrize(("seeds", "more"), [(2, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize(("of_seeds", "own"), [(0.0, 1.0), (0.5, 1.0), (2.0, 0.2)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int, more: int, of_seeds: float, own: float) -> None:
    """At a nominal 95 %: the mean of every configuration, and the difference of two at the same seeds."""
    generator = np.random.default_rng(7)
    held, differences = 0, 0
    for _ in range(REPEATS):
        true = generator.standard_normal(CONFIGURATIONS)
        found = fit(measured(generator, true, seeds, of_seeds, own, more=more))
        # One configuration of each repeat: those of one repeat share the effects of their seeds.
        place = int(generator.integers(CONFIGURATIONS))
        held += abs(found.levels[place] - true[place]) <= found.half_widths[place]
        difference, half = found.difference(0, 1)
        differences += abs(difference - (true[0] - true[1])) <= half
    # Satterthwaite's degrees of freedom are an approximation; a bootstrap of three would hold in two thirds.
    assert held >= binom.ppf(1e-4, REPEATS, 0.925)
    assert held <= binom.ppf(1 - 1e-4, REPEATS, 0.985)
    assert binom.ppf(1e-4, REPEATS, 0.95) <= differences <= binom.ppf(1 - 1e-4, REPEATS, 0.95)


def test_the_effect_of_a_seed_on_all_of_them_does_not_blur_who_is_better() -> None:
    """Where the order of rows moves every configuration alike, differences are far surer than means."""
    generator = np.random.default_rng(3)
    found = fit(measured(generator, np.arange(6.0), 3, 5.0, 0.1))
    assert found.noise < found.spread / 10
    assert found.difference(3, 2)[1] < found.half_widths[2] / 10


@example(values=[[0.0, 0.0], [0.0, 1e-126]], shift=0.0)  # whose squares' squares are zero
@given(
    values=st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=4), min_size=1, max_size=5),
    shift=st.floats(-10, 10),
)
def test_means_move_with_the_values_and_widths_do_not(values: list[list[float]], shift: float) -> None:
    """An interval says the same of values that are all larger by one number."""
    before = fit({n: dict(enumerate(row)) for n, row in enumerate(values)})
    after = fit({n: {s: v + shift for s, v in enumerate(row)} for n, row in enumerate(values)})
    assert np.allclose(after.levels, before.levels + shift, atol=1e-6)
    assert after.spread == pytest.approx(before.spread, abs=1e-6)
    assert np.allclose(before.levels.mean() + shift, after.levels.mean(), atol=1e-6)


def test_of_one_replicate_each_nothing_is_known_of_the_noise() -> None:
    """The interval is as wide as everything, and the draws are the values themselves."""
    found = fit({0: {1: 2.0}, 1: {1: 3.0}})
    assert np.isinf(found.half_widths).all()
    assert math.isinf(found.difference(0, 1)[1])
    assert (found.draw(np.random.default_rng(0), 5) == [2.0, 3.0]).all()


@given(st.floats(1e-3, 1e3))
def test_what_always_measures_the_same_has_no_width_and_stays_equal(value: float) -> None:
    """Peak memory of the same step is the same with every seed; rounding does not tell two apart that are equal."""
    found = fit({0: {1: value, 2: value, 3: value}, 1: {1: value, 2: value}})
    assert (found.half_widths == 0).all()
    assert (found.draw(np.random.default_rng(0), 3) == value).all()
    assert found.difference(0, 1) == (0, 0)


def test_probabilities_are_right_as_often_as_they_say() -> None:
    """Of configurations that are said to be on the front with a chance of a half, about a half is."""
    generator = np.random.default_rng(11)
    said, was = [], []
    for _ in range(250):
        true = generator.uniform(0, 4, CONFIGURATIONS)
        cost = np.arange(CONFIGURATIONS, dtype=float)
        found = fit(measured(generator, true, 3, 0.5, 1.0))
        drawn = found.draw(generator, 200)
        points = np.stack([drawn, np.broadcast_to(cost, drawn.shape)], axis=-1)
        able = np.ones(drawn.shape, dtype=bool)
        said.append((~beaten(points, points, able)).mean(axis=0)[1:])
        truth = np.stack([true, cost], axis=-1)[None]
        was.append(~beaten(truth, truth, np.ones((1, CONFIGURATIONS), dtype=bool))[0][1:])
    chances, truths = np.concatenate(said), np.concatenate(was)
    for low, high in ((0.05, 0.35), (0.35, 0.65), (0.65, 0.95)):
        inside = (chances >= low) & (chances < high)
        assert inside.sum() > 50
        assert truths[inside].mean() == pytest.approx(chances[inside].mean(), abs=0.1)


@given(
    points=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8),
    able=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_beaten_is_what_the_definition_says(points: list[tuple[int, int]], able: list[bool]) -> None:
    """By one that keeps the limits, is nowhere worse and somewhere better."""
    array = np.array(points, dtype=float)[None]
    found = beaten(array, array, np.array(able[: len(points)])[None])[0]
    for place, (x, y) in enumerate(points):
        others = [p for p, keeps in zip(points, able, strict=False) if keeps]
        assert found[place] == any(a <= x and b <= y and (a, b) != (x, y) for a, b in others)


@given(st.floats(0.1, 1e4))
def test_a_scale_and_back_is_the_same(value: float) -> None:
    """For what is compared by ratios and for what is not."""
    for name in ("perplexity", "peak_vram_gb"):
        assert natural(scaled(value, OBJECTIVES[name]), OBJECTIVES[name]) == pytest.approx(value)
    assert {"perplexity"} <= RATIOS <= set(OBJECTIVES)
