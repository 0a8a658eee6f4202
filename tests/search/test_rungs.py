"""Rungs: integers that rise to full fidelity, and the length of a training."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lorafront.search.rungs import ladder, rank_correlations, total_rows
from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.config import TrainingConfig

ROWS = st.integers(1, 10**12)


@given(ROWS, st.integers(1, 40))
def test_ladder_of_a_number_rises_by_halves_to_the_end(rows, rungs):
    """A number of rungs gives rising integers, each half of the next, the last of which is all rows."""
    steps = ladder(rows, rungs)
    assert steps[-1] == rows
    assert all(type(step) is int and step > 0 for step in steps)
    assert all(low == high // 2 for low, high in itertools.pairwise(steps))


@given(ROWS, st.integers(1, 40))
def test_ladder_is_only_shorter_where_rows_run_out(rows, rungs):
    """There are as many rungs as asked for, or as many as halving allows."""
    assert len(ladder(rows, rungs)) == min(rungs, rows.bit_length())


@given(st.lists(ROWS, min_size=1, max_size=8, unique=True).map(sorted), st.integers(0, 10**6))
def test_ladder_of_a_list_ends_at_all_rows(rungs, more):
    """A list of rungs is kept, and all rows are added where it ends before."""
    rows = rungs[-1] + more
    assert ladder(rows, rungs) == (*rungs, *([rows] if more else []))


def test_rungs_beyond_the_end_are_refused():
    """A rung that a training does not reach is refused with both numbers and its key."""
    with pytest.raises(InvalidInput, match="rung 20 lies beyond the 10 rows") as caught:
        ladder(10, [5, 20])
    assert caught.value.problems[0].path == ("training", "rungs")


@pytest.mark.timeout(2)
def test_ladder_of_a_huge_number_is_quick():
    """More rungs than rows can have cost nothing."""
    assert ladder(5, 1_000_000) == (1, 2, 5)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=5, max_size=30))
def test_rank_correlation_is_spearmans(pairs):
    """At every rung but the last it is what SciPy computes, ties included; without an order there is nothing to say."""
    found = rank_correlations([{8: early, 16: end} for early, end in pairs])
    early, end = zip(*pairs, strict=True)
    if len(set(early)) == 1 or len(set(end)) == 1:
        assert found == {}
    else:
        assert found == {8: pytest.approx(float(spearmanr(early, end).statistic))}


def test_rank_correlation_needs_trials_and_all_their_reports():
    """Four trials say nothing, and neither does a rung that one of the trials did not report."""
    curves = [{8: i, 16: -i, 32: i} for i in range(5)]
    assert rank_correlations(curves) == {8: pytest.approx(1), 16: pytest.approx(-1)}
    assert rank_correlations(curves[:4]) == {}
    late = spearmanr([*(-i for i in range(5)), 9], [*range(5), 0]).statistic
    assert rank_correlations([*curves, {16: 9, 32: 0}]) == {16: pytest.approx(float(late))}


@given(st.integers(1, 10**6), st.integers(1, 20))
def test_epochs_are_passes_over_the_rows(train_rows, epochs):
    """Whole epochs see every row that often, whatever the size of a step."""
    assert total_rows(TrainingConfig(epochs=epochs), train_rows, [8, 16]) == epochs * train_rows


@pytest.mark.parametrize(
    ("training", "train_rows", "per_step", "rows"),
    [
        ({"epochs": 0.5}, 101, [8], 50),
        ({"epochs": 0.001}, 10, [8], 1),
        ({}, 70, [8], 70),
        ({"rows": 33}, 70, [8, 16], 33),
        ({"steps": 5}, 70, [8], 40),
        ({"steps": 5}, 70, [8, 8], 40),
    ],
)
def test_length_is_in_rows(training, train_rows, per_step, rows):
    """Epochs, steps and rows all come to a number of rows, at least one; without any it is one epoch."""
    assert total_rows(TrainingConfig(**training), train_rows, per_step) == rows


def test_steps_of_different_sizes_are_no_length():
    """Steps are refused while the space varies the rows per step, with what to give instead."""
    with pytest.raises(InvalidInput, match="give rows or epochs") as caught:
        total_rows(TrainingConfig(steps=5), 70, [8, 16])
    assert caught.value.problems[0].path == ("training", "steps")


@given(st.integers(1, 10_000), st.integers(1, 16), st.integers(1, 64))
def test_a_number_of_rungs_gives_none_below_a_step(rows: int, rungs: int, step: int) -> None:
    """Every rung but the last one lets a trial take at least one optimizer step, and each comes after another one."""
    found = ladder(rows, rungs, step)
    assert found[-1] == rows
    assert all(rung >= step for rung in found[:-1])
