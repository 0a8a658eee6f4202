"""Budgets: what is spent, what that ends, how they grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafront.search.budget import TIMES, Meter, Spent, extended, limit_reached, shown
from lorafront.search.search_file import MAX_TRIALS, Budget
from lorafront.spaces.errors import InvalidInput

BUDGET = Budget(trials=10, gpu_hours=2, hours=4)


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        (Spent(9, 3 * 3600, 3600), ""),
        (Spent(10, 3600, 3600), "trials (10 of 10)"),
        (Spent(9, 4 * 3600, 3600), "hours (4 of 4)"),
        (Spent(9, 3600, 9000), "gpu_hours (2.5 of 2)"),
        (Spent(10, 5 * 3600, 9000), "trials (10 of 10)"),
    ],
)
def test_whichever_comes_first_ends_the_search(spent: Spent, limit: str) -> None:
    """Trials, GPU hours and hours each end it when they are spent, and the reason says which and how much."""
    assert limit_reached(BUDGET, spent) == limit


def test_a_limit_that_is_not_there_is_never_reached() -> None:
    """Without hours in the file, time does not end a search; the trials are looked at only where they are asked for."""
    assert limit_reached(Budget(trials=10), Spent(9, 1e9, 1e9)) == ""
    assert limit_reached(Budget(trials=10), Spent(10), TIMES) == ""
    assert shown(Budget(trials=10), Spent(9, 1e9)) == "9 of 10 trials recorded"
    assert shown(BUDGET, Spent(1, 5400, 360)) == "1 of 10 trials recorded, 0.1 of 2 GPU hours, 1.5 of 4 hours"


@given(st.integers(1, 100), st.integers(0, 200), st.integers(1, 100))
def test_an_extended_budget_has_so_many_more(trials: int, recorded: int, more: int) -> None:
    """The sum is the new limit; where that is spent already, nothing is extended."""
    budget = Budget(trials=trials)
    if recorded >= trials + more:
        with pytest.raises(InvalidInput, match="would still be spent"):
            extended(budget, {"trials": more}, Spent(recorded))
    else:
        assert extended(budget, {"trials": more}, Spent(recorded)) == Budget(trials=trials + more)


@pytest.mark.parametrize(
    ("more", "spent", "words"),
    [
        ({}, Spent(10), "say how much more"),
        ({"trials": 5}, Spent(10, 4 * 3600), r"budget.hours \(4 of 4\) would still be spent"),
        ({"trials": MAX_TRIALS}, Spent(10), "budget.trials: .* less than or equal"),
        ({"hours": -1.0}, Spent(3), "can only grow"),
        ({"hours": float("nan")}, Spent(3), "budget.hours"),
    ],
)
def test_what_cannot_be_extended_is_said(more: dict[str, float], spent: Spent, words: str) -> None:
    """Nothing, too much, less, no number, or only one of two limits that are spent."""
    with pytest.raises(InvalidInput, match=words):
        extended(BUDGET, more, spent)


def test_without_a_limit_there_is_nothing_to_extend() -> None:
    """A search without hours cannot be given more of them."""
    with pytest.raises(InvalidInput, match=r"budget\.hours has no limit"):
        extended(Budget(trials=3), {"hours": 1}, Spent(3))


@given(st.lists(st.tuples(st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_a_meter_adds_shares_times_seconds(attempts: list[tuple[float, int, int]]) -> None:
    """Whatever overlaps, the sum is that of each attempt alone; what still runs counts up to now."""
    meter = Meter(100.0)
    events = [(start, True, name, share) for name, (share, start, _) in enumerate(attempts)]
    events += [(start + length, False, name, 0.0) for name, (_, start, length) in enumerate(attempts)]
    for time, begins, name, share in sorted(events, key=lambda event: (event[0], not event[1])):
        if begins:
            meter.began(name, share, time)
        else:
            meter.ended(name, time)
    total = 100.0 + sum(share * length for share, _, length in attempts)
    assert meter.spent(1000.0) == pytest.approx(total)
    meter.began(999, 0.5, 1000.0)
    assert meter.spent(1010.0) == pytest.approx(total + 5)
    meter.ended(998, 1010.0)
    meter.began(999, 0.5, 1010.0)  # again, as after a worker died unheard
    assert meter.spent(1020.0) == pytest.approx(total + 10)
