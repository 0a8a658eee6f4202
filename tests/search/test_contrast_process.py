"""The process behind findings: its gradient, what it reproduces, and how its draws scatter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafront.search.contrast_process import ContrastProcess, Observations

CATEGORICAL = np.array([False, False, True])


def seen(seed: int, trials: int = 12) -> Observations:
    """Two rungs of each trial of a smooth function of two numbers and a name."""
    draw = np.random.default_rng(seed)
    places = np.column_stack([draw.random((trials, 2)), draw.integers(0, 2, trials)])
    value = np.sin(3 * places[:, 0]) + (places[:, 1] - 0.3 * places[:, 0]) ** 2 + 0.5 * places[:, 2]
    trial = np.repeat(np.arange(trials), 2)
    depth = np.tile([1.0, 0.0], trials)
    return Observations(places[trial], depth, trial, value[trial] + 0.2 * depth * places[trial, 0])


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_the_gradient_of_the_posterior_is_what_differences_give(seed: int) -> None:
    """For variances, shares, lengths and shifts."""
    process = ContrastProcess(seen(seed), CATEGORICAL, 1, tuned=1)
    raw = process._median + np.random.default_rng(seed).normal(0, 0.4, len(process._median))
    step = 1e-5
    sides = [[process._loss(raw + sign * step * e)[0] for sign in (1, -1)] for e in np.eye(len(raw))]
    differences = [(up - down) / (2 * step) for up, down in sides]
    assert process._loss(raw)[1] == pytest.approx(differences, rel=1e-3, abs=1e-3)


def test_without_noise_it_says_what_was_measured() -> None:
    """And is certain of it."""
    full = seen(3)
    full = Observations(*(column[full.depth == 0] for column in full))
    process = ContrastProcess(full, CATEGORICAL, 3, exact=True)
    mean, deviation = process.at_full(full.places)
    assert mean == pytest.approx(full.value, abs=0.01)
    assert deviation.max() < 0.05
    assert np.abs(process.draws(full.places, 20) - full.value).max() < 0.1


def test_draws_scatter_as_the_process_is_uncertain() -> None:
    """Under the best hyperparameters alone; near trials little, far from them more."""
    known = seen(5)
    process = ContrastProcess(known, CATEGORICAL, 1, tuned=1)
    points = np.vstack([known.places[:2], [[3.0, 3.0, 0.0]]])
    mean, deviation = process.at_full(points)
    draws = process.draws(points, 4000)
    assert draws.mean(axis=0) == pytest.approx(mean, abs=0.1 * deviation.max())
    assert draws.std(axis=0) == pytest.approx(deviation, rel=0.1, abs=1e-3)
    assert deviation[2] > 3 * deviation[:2].max()


def test_noise_that_all_rungs_of_a_trial_share_is_told_from_that_of_each() -> None:
    """So a trial is one piece of evidence, however often it reports."""
    draw = np.random.default_rng(0)
    trial = np.repeat(np.arange(60), 3)
    places = draw.random((60, 2))[trial]
    value = np.sin(3 * places[:, 0]) + draw.normal(0, 0.3, 60)[trial] + draw.normal(0, 0.03, len(trial))
    known = Observations(places, np.tile([1.0, 0.5, 0.0], 60), trial, value)
    process = ContrastProcess(known, np.zeros(2, dtype=bool), 1)
    shared, own = np.sqrt(np.exp(process._samples[0][2:4])) * process._scale
    assert shared == pytest.approx(0.3, rel=0.3)
    assert own == pytest.approx(0.03, rel=0.5)
