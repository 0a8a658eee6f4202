"""Shares of devices follow from predicted bytes; predictions follow from what trials measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafront.search.correction import MARGIN, WIDEST, Correction
from lorafront.search.placement import ANYWHERE, STEPS, WHOLE, Devices, Placement, Seat, rehearsed
from lorafront.spaces.sizes import GIB

SMALL, LARGE = Devices("small", 12 * GIB, 2, GIB), Devices("large", 48 * GIB, 1, GIB)
ONE = Devices("one", 16 * GIB)
SIZES = st.integers(1, 60 * GIB)


@given(SIZES, st.integers(GIB, 80 * GIB))
def test_a_share_is_the_least_step_that_holds_the_need(need: int, size: int) -> None:
    """The step below would be too small; None only where the whole device is."""
    share = Devices("one", size).share(need)
    if share is None:
        assert need > size
    else:
        assert need <= share * size / WHOLE
        assert all(step >= share or need > step * size / WHOLE for step in STEPS)


@given(SIZES, st.lists(st.floats(0.8, 1.3), max_size=5), st.integers(0, GIB))
def test_a_seat_holds_what_is_expected_of_its_trial(predicted: int, ratios: list[float], beside: int) -> None:
    """Its cap is at least the corrected prediction, on the smallest type that has room for the margin too."""
    placement = Placement([LARGE, SMALL])
    for ratio in ratios:
        measured = round(ratio * 10 * GIB)
        placement.correction("nf4").learn(10 * GIB, measured, measured, measured + beside)
    if not placement.too_large("nf4", predicted):
        seat = placement.seat("nf4", predicted)
        assert seat.cap is not None
        assert seat.cap >= placement.correction("nf4", seat.devices).expected(predicted)
        if seat.devices == LARGE:
            assert placement.correction("nf4", SMALL).need(predicted, SMALL.context) > SMALL.bytes


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=40), st.randoms())
def test_no_device_is_given_out_twice(asked: list[tuple[int, bool]], chance) -> None:
    """However trials come and go, what sits on a device adds up to one at most, and all of it comes back."""
    placement = Placement([LARGE, SMALL])
    sitting: list[str] = []
    for index, (need, alone) in enumerate(asked):
        seat = placement.seat("bf16", need, alone=alone)
        if placement.has_room(seat):
            placement.take(str(index), seat)
            sitting.append(str(index))
        assert all(0 <= room <= WHOLE for free in placement._free.values() for room in free.values())
        if sitting and chance.random() < 0.4:
            placement.leave(sitting.pop(chance.randrange(len(sitting))))
    for who in sitting:
        placement.leave(who)
    assert free_of(placement) == {"large": [WHOLE], "small": [WHOLE, WHOLE]}


def free_of(placement: Placement) -> dict[str, list[int]]:
    return {name: list(free.values()) for name, free in placement._free.items()}


@given(st.lists(st.tuples(SIZES, st.integers(0, 3), st.integers(0, 3)), max_size=40), st.randoms())
def test_devices_that_come_and_go_are_given_out_while_they_are_there(asked, chance) -> None:
    """Nobody is seated on a type that has gone, no device is given out twice, and in the end all of it is free."""
    placement = Placement([LARGE, SMALL])
    sitting: list[str] = []
    for index, (need, larges, smalls) in enumerate(asked):
        seat = placement.seat("bf16", need)
        if placement.has_room(seat):
            placement.take(str(index), seat)
            sitting.append(str(index))
            assert not placement.lacks(str(index))
        there = [replace(one, count=count) for one, count in ((LARGE, larges), (SMALL, smalls)) if count]
        placement.resize(there, 8)
        assert {one.name: one.count for one in placement.types} == {"large": larges, "small": smalls}
        assert {name: len(free) for name, free in free_of(placement).items()} == {"large": larges, "small": smalls}
        assert all(0 <= room <= WHOLE for free in free_of(placement).values() for room in free)
        if sitting and chance.random() < 0.4:
            placement.leave(sitting.pop(chance.randrange(len(sitting))))
    for who in sitting:
        assert placement.lacks(who) == (not free_of(placement)[placement.seat_of(who).devices.name])
        placement.leave(who)
    placement.resize([LARGE, SMALL], 8)
    assert free_of(placement) == {"large": [WHOLE], "small": [WHOLE, WHOLE]}


def test_a_type_that_has_gone_is_passed_over_and_waited_for_where_it_was_the_only_one() -> None:
    """What fits the other type goes there; with no device left nothing starts, and nothing is refused."""
    placement = Placement([LARGE, SMALL])
    placement.resize([SMALL], 8)
    assert placement.seat("nf4", 20 * GIB).devices.name == "small"
    assert not placement.is_empty
    placement.resize([], 8)
    assert placement.is_empty
    seat = placement.seat("nf4", 2 * GIB)
    assert not placement.has_room(seat)
    assert placement.too_large("nf4", 20 * GIB) == ""
    placement.resize([LARGE], 8)
    assert placement.has_room(placement.seat("nf4", 2 * GIB))


def test_a_trial_that_fits_only_the_larger_type_goes_there() -> None:
    """And one that fits both takes the smaller, so that the larger stays free."""
    placement = Placement([SMALL, LARGE])
    assert placement.seat("nf4", 2 * GIB).devices == SMALL
    assert placement.seat("nf4", 20 * GIB).devices == LARGE
    assert "60.00 GiB, and large has 48.00 GiB" in placement.too_large("nf4", 59 * GIB)
    # What was learnt of one type is not believed of the other.
    placement.correction("nf4", SMALL).learn(GIB, 7 * GIB, 7 * GIB, 0)
    assert placement.seat("nf4", 2 * GIB).devices == LARGE
    assert placement.correction("nf4", LARGE).expected(2 * GIB) == 2 * GIB


def test_what_cannot_be_predicted_gets_a_whole_device() -> None:
    """As does what ran out of memory; without devices nobody needs a seat."""
    placement = Placement([SMALL])
    assert placement.seat("nf4", None).share == placement.seat("nf4", GIB, alone=True).share == WHOLE
    nowhere = Placement()
    assert nowhere.seat("nf4", 100 * GIB) == ANYWHERE
    assert nowhere.has_room(ANYWHERE)
    assert nowhere.too_large("nf4", 100 * GIB) == ""
    assert nowhere.most_at_once() is None


@pytest.mark.parametrize(("fixed", "share", "most"), [(4, 4, 8), (16, 16, 2), (32, 32, 1)])
def test_a_number_overrides_the_prediction(fixed: int, share: int, most: int) -> None:
    """Each trial gets what the file says, on as many devices as that is."""
    placement = Placement([SMALL], fixed)
    assert placement.seat("nf4", 11 * GIB).share == share
    assert placement.most_at_once() == most
    placement.take("a", placement.seat("nf4", GIB))
    assert placement.has_room(placement.seat("nf4", GIB)) == (fixed < 32)
    placement.leave("a")
    assert placement.seat("nf4", GIB, alone=True).share == max(WHOLE, fixed)


def least(share: int) -> Seat:
    return Seat(share, ONE, 0)


def test_a_worker_goes_on_unless_its_end_makes_room_for_one_more() -> None:
    """With less than it has where nobody else could use the rest: for want of room, or of cores."""
    placement = Placement([ONE], most=4)
    placement.take("a", least(8))
    placement.take("b", least(5))
    assert not placement.goes_on("a", least(11), 1)  # it does not fit
    assert placement.goes_on("a", least(8), 1)
    assert not placement.goes_on("a", least(5), 1)  # 3 are free, 3 more would be another 5
    assert not placement.goes_on("a", least(1), 1)
    assert placement.goes_on("a", least(1), 3)  # there is no core for another one
    placement.leave("b")
    placement.take("b", least(8))
    assert placement.goes_on("a", least(5), 1)  # 3 would be left
    assert Placement().seat("nf4", 1) == ANYWHERE


def test_a_seat_is_as_wide_as_the_cores_allow() -> None:
    """Where few trials run at once each has more than it needs, unless another one is in the way."""
    placement = Placement([ONE], most=2)
    assert placement.widened(least(3)).share == 8
    assert placement.widened(least(11)).share == 11
    placement.take("a", least(11))
    assert placement.widened(least(3)).share == 5
    assert Placement([ONE], fixed=4, most=2).widened(least(4)).share == 4
    assert Placement().widened(ANYWHERE) == ANYWHERE


def test_predictions_are_corrected_by_the_median_of_what_was_measured() -> None:
    """The spread of the errors widens the margin; fragmentation and context are the most that was seen."""
    correction = Correction()
    for allocated in (10, 11, 12):
        correction.learn(10 * GIB, allocated * GIB, allocated * GIB + 5, (allocated + 1) * GIB)
    assert correction.expected(20 * GIB) == 22 * GIB
    assert correction.need(20 * GIB, 3 * GIB) == pytest.approx(22 * GIB * 12 / 11 + GIB, rel=1e-6)
    assert correction.need(20 * GIB, 0) == pytest.approx(22 * GIB * 12 / 11, rel=1e-6)  # where tensors alone count
    assert Correction().need(20 * GIB, GIB) == pytest.approx(20 * GIB * (1 + MARGIN) + GIB, rel=1e-6)


def test_fragmentation_is_room_that_a_process_may_take() -> None:
    """A share must hold it; the cap of a process is lowered by the context alone."""
    placement = Placement([SMALL], fixed=4)
    placement.correction("nf4").learn(GIB, GIB, 8 * GIB, 8 * GIB)  # nobody says how large the process is
    assert placement.seat("nf4", GIB).cap == 2 * GIB
    assert not placement.too_large("nf4", 11 * GIB)


def test_running_out_of_memory_raises_the_margin_of_that_base_alone() -> None:
    """To what it held and asked for where that is known; one that wanted more than it could have bounds the others."""
    placement = Placement([SMALL])
    correction = placement.correction("bf16")
    correction.learn_ran_out(4 * GIB, 5 * GIB, 3 * GIB)
    assert correction.need(4 * GIB, 0) >= 5 * GIB
    assert not placement.too_large("bf16", 4 * GIB)  # a whole one has more
    correction.learn_ran_out(4 * GIB, 12 * GIB, 11 * GIB)
    assert "ran out of memory on small" in placement.too_large("bf16", 4 * GIB)
    assert not placement.too_large("bf16", 4 * GIB - 1)
    assert not placement.too_large("nf4", 4 * GIB)
    assert placement.correction("nf4").margin == MARGIN


def test_what_others_took_says_nothing_about_a_trial() -> None:
    """One that wanted no more than it could have refuses nobody, and margins end somewhere."""
    correction = Correction()
    for _ in range(30):
        correction.learn_ran_out(2 * GIB, 3 * GIB, 11 * GIB)
    assert correction.ran_out is None
    assert correction.margin == WIDEST


def test_sizes_that_are_named_twice_are_one_type() -> None:
    """With the sum of the counts."""
    assert [(one.count, one.bytes) for one in rehearsed("24GB,24GB,2x80GB")] == [(2, 24 * GIB), (2, 80 * GIB)]
