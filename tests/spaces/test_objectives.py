"""Objectives and limits: `<= 12` is read, printed and held against measurements."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafront.spaces.objectives import OBJECTIVES, Limit, feasible, parse_limit

NUMBERS = st.floats(0, 1e9, allow_nan=False)


@given(st.sampled_from(["<=", ">="]), NUMBERS, st.sampled_from(["", " ", "  "]))
def test_limit_reads_what_is_written(operator, bound, space):
    """Any comparison with a number that is not negative is read exactly, whatever the blanks."""
    assert parse_limit("peak_vram_gb", f"{space}{operator}{space}{bound!r}{space}") == Limit(
        "peak_vram_gb", operator, bound
    )


@pytest.mark.parametrize(
    "text", ["12", "< 12", "== 12", "<= ", "<= x", "<= --1", "<= .nan", "12 >=", "<= 1 2", "", 12, None, ["<= 3"]]
)
def test_limit_refuses_and_shows_the_form(text):
    """What is no comparison is refused with an example and the value found."""
    with pytest.raises(ValueError, match='such as "<= 12"') as caught:
        parse_limit("peak_vram_gb", text)
    assert repr(text) in str(caught.value)


def test_limit_is_finite():
    """A bound beyond the largest float is refused."""
    with pytest.raises(ValueError, match="1e400"):
        parse_limit("perplexity", ">= 1e400")


def test_limit_prints_as_it_is_written():
    """The text of a limit is the name and the comparison."""
    assert str(parse_limit("peak_vram_gb", "<=12.50")) == "peak_vram_gb <= 12.5"


@given(NUMBERS, NUMBERS)
def test_limit_holds_on_the_right_side(value, bound):
    """At most holds up to the bound and at least from it on, the bound itself included in both."""
    assert Limit("x", "<=", bound).holds(value) == (value <= bound)
    assert Limit("x", ">=", bound).holds(value) == (value >= bound)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("operator", ["<=", ">="])
def test_limit_never_holds_for_what_is_not_finite(operator, value):
    """A value that is not finite is outside of every bound."""
    assert not Limit("x", operator, 1.0).holds(value)


@given(st.dictionaries(st.sampled_from("abc"), NUMBERS), st.dictionaries(st.sampled_from("abc"), NUMBERS))
def test_feasible_needs_every_limit(bounds, measured):
    """A trial is feasible when each limited measurement is there and inside its bound."""
    limits = tuple(Limit(name, "<=", bound) for name, bound in bounds.items())
    expected = all(name in measured and measured[name] <= bound for name, bound in bounds.items())
    assert feasible(limits, measured) == expected


def test_feasible_takes_what_a_report_stores():
    """A measurement that was not finite, which a report stores as None, is outside of every bound."""
    assert not feasible((Limit("train_seconds", "<=", 9.0),), {"train_seconds": None})


def test_objectives_are_listed_under_their_names():
    """Each objective stands under its own name and says what it means and which way is better."""
    assert set(OBJECTIVES) >= {"perplexity", "peak_vram_gb"}
    for name, objective in OBJECTIVES.items():
        assert objective.name == name
        assert objective.direction in {"minimize", "maximize"}
        assert objective.label
        assert objective.meaning


def test_a_limit_may_be_negative() -> None:
    """A function of the user may give what lies below zero."""
    assert parse_limit("score", ">= -0.5") == Limit("score", ">=", -0.5)
