"""Parameters: a value, a list or a range is read, refused, counted and drawn."""

from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial
from pydantic import TypeAdapter, ValidationError

from lorafront.spaces.parameters import (
    MAX_CHOICES,
    NameParameter,
    NumberParameter,
    Range,
    Real,
    Whole,
    ask,
    count,
    describe,
    values_of,
)

WHOLE = TypeAdapter(NumberParameter[Whole])
REAL = TypeAdapter(NumberParameter[Real])
NAME = TypeAdapter(NameParameter[str])


def new_trial(seed):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=RandomSampler(seed)).ask()


@st.composite
def whole_ranges(draw):
    low = draw(st.integers(-50, 50))
    high = low + draw(st.integers(1, 100))
    shape = draw(st.sampled_from(["plain", "step", "log"]))
    if shape == "step":
        return {"low": low, "high": high, "step": draw(st.integers(1, high - low))}
    return {"low": abs(low) + 1, "high": abs(low) + high - low + 1, "log": True} if shape == "log" else {
        "low": low, "high": high
    }  # fmt: skip


@st.composite
def real_ranges(draw):
    low = draw(st.integers(1, 1000)) / 100
    high = low + draw(st.integers(1, 1000)) / 100
    return {"low": low, "high": high, "log": draw(st.booleans())}


@given(st.integers(), st.lists(st.integers(), min_size=1, unique=True))
def test_values_and_lists_stay_what_they_are(value, choices):
    """A fixed value and a list of distinct choices are read unchanged."""
    assert WHOLE.validate_python(value) == value
    assert WHOLE.validate_python(choices) == choices


def test_integers_do_for_numbers():
    """An integer where a number is meant becomes a float, so that 1 and 1.0 are one point."""
    read = REAL.validate_python([1, 2.5])
    assert read == [1.0, 2.5]
    assert all(isinstance(value, float) for value in read)


@pytest.mark.parametrize(
    ("adapter", "raw", "message"),
    [
        (WHOLE, True, "must be an integer (got True)"),
        (WHOLE, "8", "must be an integer (got '8')"),
        (WHOLE, 8.0, "must be an integer (got 8.0)"),
        (WHOLE, None, "must be an integer (got None)"),
        (WHOLE, [8, "8"], "must be an integer (got '8')"),
        (WHOLE, [[8], 4], "must be an integer (got [8])"),
        (WHOLE, [8, 4, 8, 4], "each choice once; repeated: 4, 8"),
        (REAL, [1, 1.0], "each choice once; repeated: 1.0"),
        (REAL, "x", "must be a number (got 'x')"),
        (REAL, False, "must be a number (got False)"),
        (REAL, math.nan, "must be finite (got nan)"),
        (REAL, [1.0, -math.inf], "must be finite (got -inf)"),
        (NAME, ["a", "a"], "each choice once; repeated: a"),
        (NAME, ["a", 1], "valid string"),
        (NAME, {"low": 1, "high": 2}, "valid string"),
        (WHOLE, [], "at least 1 item"),
        (WHOLE, list(range(MAX_CHOICES + 1)), f"at most {MAX_CHOICES} items"),
        (WHOLE, {"low": 8, "high": 8}, "low (8) must be below high (8)"),
        (REAL, {"low": 0.3, "high": 0.1}, "low (0.3) must be below high (0.1)"),
        (REAL, {"low": 0.0, "high": 0.1, "log": True}, "a log range must start above 0 (low is 0.0)"),
        (WHOLE, {"low": 1, "high": 4, "log": True, "step": 1}, "give log or step, not both"),
        (WHOLE, {"low": 1, "high": 4, "step": 0}, "step must be above 0 and at most high - low (got 0)"),
        (WHOLE, {"low": 1, "high": 4, "step": 4}, "step must be above 0 and at most high - low (got 4)"),
        (REAL, {"low": 0.1, "high": 0.5, "step": math.nan}, "must be finite (got nan)"),
        (WHOLE, {"low": 1, "high": 4, "log": 1}, "valid boolean"),
        (WHOLE, {"low": 1, "high": 4, "lgo": True}, "Extra inputs"),
        (WHOLE, {"low": 1}, "Field required"),
    ],
)
def test_refusals_name_the_rule_and_the_value(adapter, raw, message):
    """What a parameter cannot be is refused in words that name the rule and the value found."""
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(raw)
    assert message in str(caught.value)


BOUNDS_UNCHECKED = "NumberParameter[T] loses T in Range[T], so low, high and step are not validated at all"


@pytest.mark.parametrize(
    ("adapter", "raw"),
    [
        (WHOLE, {"low": 1.5, "high": 4}),
        (WHOLE, {"low": 1, "high": 4, "step": 0.5}),
        (WHOLE, {"low": False, "high": True}),
        (WHOLE, {"low": None, "high": 4}),
        (WHOLE, {"low": "a", "high": "b"}),
        (REAL, {"low": "x", "high": 2.0}),
        (REAL, {"low": math.nan, "high": 0.3}),
        (REAL, {"low": 0.1, "high": math.inf}),
    ],
)
def test_bounds_are_held_to_the_rules_of_values(adapter, raw):
    """Bounds and steps are refused where a fixed value of that kind would be."""
    with pytest.raises(ValidationError):
        adapter.validate_python(raw)


def test_a_range_of_numbers_may_begin_with_an_integer():
    """`{low: 0, high: 0.3}` is the continuous range that `{low: 0.0, high: 0.3}` is."""
    parameter = REAL.validate_python({"low": 0, "high": 0.3})
    assert count(parameter) is None
    assert len({ask(parameter, "dropout", new_trial(seed)) for seed in range(5)}) == 5


def test_integers_beyond_floats_are_refused():
    """An integer too large for a float is refused as other numbers are."""
    with pytest.raises(ValidationError):
        REAL.validate_python(10**400)


@pytest.mark.filterwarnings("ignore:The distribution is specified by")  # Optuna's, where step does not divide
@given(whole_ranges(), st.integers(0, 99))
def test_integers_are_drawn_from_the_range(raw, seed):
    """A draw from a range of integers is one of low, low + step, ..., high."""
    drawn = ask(WHOLE.validate_python(raw), "n", new_trial(seed))
    assert isinstance(drawn, int)
    assert drawn in range(raw["low"], raw["high"] + 1, raw.get("step", 1))


@given(real_ranges(), st.integers(0, 99))
def test_numbers_are_drawn_from_the_range(raw, seed):
    """A draw from a range of numbers lies between its ends."""
    drawn = ask(REAL.validate_python(raw), "x", new_trial(seed))
    assert isinstance(drawn, float)
    assert raw["low"] <= drawn <= raw["high"]


@given(whole_ranges())
def test_count_of_integers_is_the_length_of_the_range(raw):
    """A range of integers counts the integers that it can draw."""
    assert count(WHOLE.validate_python(raw)) == len(range(raw["low"], raw["high"] + 1, raw.get("step", 1)))


@given(st.integers(0, 500), st.integers(1, 300), st.integers(2, 500), st.sampled_from([0, 0.5]))
def test_count_of_steps_does_not_suffer_from_rounding(low, step, steps, rest):
    """A range of so many steps, and a bit, has one value more than steps, whatever floats make of them."""
    raw = {"low": low / 100, "high": (low + (steps + rest) * step) / 100, "step": step / 100}
    assert count(REAL.validate_python(raw)) == steps + 1


def test_one_step_may_fill_the_range():
    """A step of exactly high - low, as written, is allowed and gives two values."""
    assert count(REAL.validate_python({"low": 0.1, "high": 0.3, "step": 0.2})) == 2


@given(real_ranges())
def test_a_continuous_range_has_no_count(raw):
    """A range of numbers without a step cannot be counted."""
    assert count(REAL.validate_python(raw)) is None


def test_constants_are_not_asked():
    """A fixed value and a single choice are no question to the sampler, and count as one value."""
    silent = FixedTrial({})
    assert ask(8, "rank", silent) == ask([8], "rank", silent) == 8
    assert count(8) == count([8]) == 1


def test_choices_are_asked_under_their_name():
    """Of several choices the sampler picks one, under the parameter's name."""
    assert ask([4, 8], "rank", FixedTrial({"rank": 8})) == 8
    assert count([4, 8]) == 2
    with pytest.raises(ValueError, match="rank"):
        ask([4, 8], "rank", FixedTrial({}))


@pytest.mark.parametrize(
    ("parameter", "values", "text"),
    [
        (16, [16], "16"),
        ([4, 8], [4, 8], "4, 8"),
        (["query", "query+value"], ["query", "query+value"], "query, query+value"),
        (Range[float](low=1e-5, high=1e-3, log=True), [1e-5, 1e-3], "1e-05 to 0.001 (log)"),
        (Range[int](low=4, high=64, step=4), [4, 64], "4 to 64 step 4"),
        (Range[float](low=0.0, high=0.3), [0.0, 0.3], "0 to 0.3"),
    ],
)
def test_parameters_are_listed_and_described(parameter, values, text):
    """A parameter lists its values, a range its two ends, and reads as one line."""
    assert values_of(parameter) == values
    assert describe(parameter) == text
