"""Masks depend on key and place alone, and drop what they are asked to drop."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from lorafront.trainables.keyed_random import keep, site_keys, threshold, word


def drawn(seed: int, step: int, site: str, dropout: float, rows: int, width: int, first: int = 0) -> torch.Tensor:
    """bool[rows, width]: one slot's mask."""
    numbers = [torch.tensor([number], dtype=torch.int32) for number in (word(str(seed)), step, word(site))]
    places = torch.arange(first, first + rows, dtype=torch.int32)
    return keep(site_keys(*numbers)[:, 0], threshold(dropout), places, width)[0]


@given(seed=st.integers(0, 2**20), step=st.integers(0, 10**6), dropout=st.sampled_from([0.01, 0.05, 0.1, 0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_as_much_is_dropped_as_was_asked_for(seed: int, step: int, dropout: float) -> None:
    """As many as a fair draw gives but once in 10**10 times, in all and in every column and row."""
    dropped = ~drawn(seed, step, "a", dropout, 200, 301)
    for counts in (dropped.sum(), dropped.sum(0), dropped.sum(1)):
        draws = dropped.numel() // counts.numel()
        least, most = binom.ppf(1e-10, draws, dropout), binom.isf(1e-10, draws, dropout)
        spare = draws / 2**15 + 1  # a probability is rounded to 16 bits
        assert least - spare <= int(counts.min())
        assert int(counts.max()) <= most + spare


@given(dropout=st.floats(0, 0.99), width=st.integers(1, 9), first=st.integers(0, 50))
@settings(deadline=None)
def test_a_place_draws_the_same_whatever_else_there_is(dropout: float, width: int, first: int) -> None:
    """Rows before and after it change nothing."""
    assert torch.equal(
        drawn(1, 2, "a", dropout, 60, width)[first:], drawn(1, 2, "a", dropout, 60 - first, width, first)
    )


def test_nothing_is_dropped_at_zero() -> None:
    """Every value is kept."""
    assert bool(drawn(0, 0, "a", 0.0, 500, 64).all())


def test_seed_step_and_site_each_give_another_mask() -> None:
    """No two of them agree more often than chance, also next to each other."""
    masks = [
        drawn(seed, step, site, 0.5, 100, 64).flatten().double().numpy()
        for seed, step, site in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (1, 1, "a"), (0, 2, "a")]
    ]
    masks.append(np.roll(masks[0], 1))
    correlation = np.corrcoef(np.array(masks)) - np.eye(len(masks))
    assert np.abs(correlation).max() < 5 / 6400**0.5
