"""Which trials are stopped early."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from moocore import is_nondominated

from lorafront.search.stopping import Never, Rungs, best_first

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_the_best_on_any_objective_goes_on(points):
    """A trial that is not beaten on some objective so far, so also the cheapest so far, is never stopped."""
    rule = Rungs()
    for number, values in enumerate(points):
        seen = np.array(points[: number + 1])
        if rule.stops(number, 64, values):
            assert (seen[number] > seen.min(axis=0)).all()


@given(POINTS)
def test_about_half_of_a_rung_goes_on(points):
    """Of trials that all lie on one front, only as many as the share allows go on, the extremes among them."""
    rule = Rungs()
    line = [(x, 100 - x) for x in sorted({x for x, _ in points})]
    stopped = [number for number, values in enumerate(line) if rule.stops(number, 64, values)]
    assert 0 not in stopped
    assert len(stopped) <= len(line) / 2


@given(POINTS)
def test_nobody_comes_before_those_who_beat_it(points):
    """The order is by non-dominated rank, holds every trial once, and begins with the front."""
    values = np.array(points, dtype=float)
    order = best_first(values)
    assert sorted(order) == list(range(len(points)))
    front = int(is_nondominated(values, keep_weakly=True).sum())
    assert set(order[:front]) == set(np.flatnonzero(is_nondominated(values, keep_weakly=True)))


def test_trials_are_compared_at_the_same_rung_only():
    """What others have reached after more rows does not stop a trial."""
    rule = Rungs()
    for number in range(8):
        assert not rule.stops(number, 64, (8 - number, 1 + number))
    assert not rule.stops(9, 32, (50, 50))
    assert rule.stops(10, 64, (50, 50))


def test_without_a_rule_nobody_is_stopped():
    """`off` trains every trial to the end."""
    assert not any(Never().stops(number, 64, (number, number)) for number in range(9))
