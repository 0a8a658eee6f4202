"""The LoRA space: what it draws lies inside it, and equal points share a fingerprint."""

from __future__ import annotations

import itertools
import json
import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial
from pydantic import ValidationError

from lorafront.spaces.lora import AlphaAbsolute, AlphaRatio, LoraConfiguration, LoraSpace, resolve
from lorafront.spaces.parameters import Range, describe

DEFAULTS = {
    "batch_size": 8, "gradient_accumulation": 1, "weight_decay": 0.0, "warmup": 0.03, "scheduler": "linear"
}  # fmt: skip
POINT = {
    "rank": 8, "alpha": 16, "modules": "attention", "quantization": "nf4", "dropout": 0.1, "bias": "none",
    "learning_rate": 1e-4, **DEFAULTS,
}  # fmt: skip
ONE = {**{name: POINT[name] for name in ("rank", "alpha", "modules", "quantization", "dropout", "bias")},
       "learning_rate": 1e-4}  # fmt: skip


def new_trial(seed):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=RandomSampler(seed)).ask()


def choices(values):
    return st.one_of(values, st.lists(values, min_size=1, max_size=4, unique=True))


def wholes(low, high):
    """A parameter of integers in any of its forms."""
    ends = st.tuples(st.integers(low, high - 1), st.integers(1, high)).map(lambda pair: (pair[0], sum(pair)))
    forms = {"plain": {}, "step": {"step": 1}, "log": {"log": True}}
    ranges = st.builds(
        lambda pair, form: {"low": pair[0], "high": pair[1], **forms[form]}, ends, st.sampled_from([*forms])
    )
    return st.one_of(choices(st.integers(low, high)), ranges)


def reals(low, high):
    """A parameter of numbers, multiples of 1/1024, in any of its forms."""
    values = st.integers(math.ceil(low * 1024), math.floor(high * 1024)).map(lambda n: n / 1024)
    pairs = st.lists(values, min_size=2, max_size=2, unique=True).map(sorted)
    ranges = pairs.map(lambda pair: {"low": pair[0], "high": pair[1], "log": pair[0] > 0.5})
    stepped = st.builds(
        lambda start, n: {"low": start, "high": start + n / 1024, "step": 1 / 1024}, values, st.integers(2, 9)
    )
    return st.one_of(choices(values), ranges, *([stepped] if high > 1 else []))


def names(*known):
    return choices(st.sampled_from(known))


SPACES = st.fixed_dictionaries(
    {},
    optional={
        "rank": wholes(1, 64),
        "alpha": st.one_of(
            reals(1 / 8, 64),
            st.builds(lambda raw: {"ratio": raw}, reals(1 / 8, 4)),
            st.builds(lambda raw: {"absolute": raw}, reals(1 / 8, 64)),
        ),
        "modules": names("query", "attention", "all-linear", "q_proj+v_proj"),
        "quantization": names("nf4", "nf4_double", "fp4", "int8", "bf16", "fp16", "fp32"),
        "dropout": reals(0, 0.9),
        "bias": names("none", "lora_only", "all"),
        "learning_rate": reals(1 / 1024, 0.9),
        "batch_size": wholes(1, 32),
        "gradient_accumulation": wholes(1, 8),
        "weight_decay": reals(0, 2),
        "warmup": reals(0, 0.9),
        "scheduler": names("linear", "cosine", "constant"),
    },
)

# Few values each, so that two points drawn on their own are often equal.
POINTS = st.fixed_dictionaries(
    {
        "rank": st.sampled_from([4, 8]),
        "alpha": st.sampled_from([8, 16, 8.0, 16.0]),
        "dropout": st.sampled_from([0, 0.0, 0.1]),
        "bias": st.sampled_from(["none", "all"]),
    }
).map(lambda few: LoraConfiguration(**{**POINT, **few}))


def contains(parameter, value):
    if isinstance(parameter, Range):
        steps = 0 if parameter.step is None else (value - parameter.low) / parameter.step
        return parameter.low <= value <= parameter.high and steps == pytest.approx(round(steps))
    return value in parameter if isinstance(parameter, list) else value == parameter


@given(SPACES, st.integers(0, 99))
def test_draws_lie_inside_the_space(raw, seed):
    """Whatever mapping parses, a configuration drawn from it takes each value from its parameter."""
    space = LoraSpace.model_validate(raw)
    drawn = space.ask(new_trial(seed), DEFAULTS)
    for name, parameter in space.parameters().items():
        value = drawn.alpha / drawn.rank if name == "alpha_ratio" else getattr(drawn, name)
        assert contains(parameter, value), name
    left = DEFAULTS.keys() - space.parameters().keys()
    assert {name: getattr(drawn, name) for name in left} == {name: DEFAULTS[name] for name in left}


@given(SPACES, st.integers(0, 99))
def test_a_seed_draws_the_same_again(raw, seed):
    """The same sampler state draws the same configuration."""
    space = LoraSpace.model_validate(raw)
    assert space.ask(new_trial(seed), DEFAULTS) == space.ask(new_trial(seed), DEFAULTS)


@pytest.mark.parametrize(
    "raw",
    [
        {"rank": {"low": 0, "high": 4}},
        {"rank": {"low": 1.5, "high": 4}},
        {"dropout": {"low": 0.0, "high": 1.0}},
        {"dropout": {"low": -0.1, "high": 0.3}},
        {"learning_rate": {"low": 0.0, "high": 0.1}},
        {"alpha": {"low": -1, "high": 8}},
        {"alpha": {"ratio": {"low": 0.0, "high": 2.0}}},
        {"batch_size": {"low": 0, "high": 8}},
    ],
)
def test_ranges_keep_the_bounds_of_their_field(raw):
    """A range that reaches where a fixed value may not be is refused."""
    with pytest.raises(ValidationError):
        LoraSpace.model_validate(raw)


def test_alpha_between_integers_is_continuous():
    """`alpha: {low: 1, high: 64}` is a range of numbers, as alpha is one."""
    assert LoraSpace.model_validate({"alpha": {"low": 1, "high": 64}}).size()[1] == [
        "dropout",
        "learning_rate",
        "alpha",
    ]


@given(POINTS, POINTS)
def test_fingerprints_are_equal_exactly_when_points_are(one, other):
    """Two configurations share a fingerprint if and only if every resolved value is equal."""
    assert (one.fingerprint == other.fingerprint) == (one == other)


@pytest.mark.parametrize("name", LoraConfiguration.model_fields)
def test_every_value_counts_in_the_fingerprint(name):
    """A change of any one value changes the fingerprint."""
    other = {
        "modules": "mlp",
        "quantization": "int8",
        "bias": "all",
        "scheduler": "cosine",
        "seed": 3,
        "method": "full",
    }
    changed = {**POINT, name: other[name] if name in other else POINT[name] / 2 if POINT[name] < 1 else POINT[name] + 1}
    changed["weight_decay"] = 0.5 if name == "weight_decay" else changed["weight_decay"]
    assert LoraConfiguration(**changed).fingerprint != LoraConfiguration(**POINT).fingerprint


@given(st.integers(1, 256), st.integers(1, 64).map(lambda n: n / 8))
def test_alpha_by_ratio_and_absolute_are_one_point(rank, ratio):
    """An alpha as a multiple of the rank, and the same alpha as a number, are the same configuration."""
    by_ratio = LoraSpace.model_validate({**ONE, "rank": rank, "alpha": {"ratio": ratio}}).ask(FixedTrial({}), DEFAULTS)
    absolute = LoraSpace.model_validate({**ONE, "rank": rank, "alpha": rank * ratio}).ask(FixedTrial({}), DEFAULTS)
    assert by_ratio == absolute
    assert by_ratio.fingerprint == absolute.fingerprint


def test_searched_and_default_values_are_one_point():
    """A batch size that the space fixes and one that comes from `training` make the same configuration."""
    searched = LoraSpace.model_validate({**ONE, "batch_size": 8}).ask(FixedTrial({}), {**DEFAULTS, "batch_size": 2})
    default = LoraSpace.model_validate(ONE).ask(FixedTrial({}), DEFAULTS)
    assert searched.fingerprint == default.fingerprint


@given(POINTS)
def test_fingerprint_survives_the_study(point):
    """A configuration that went through JSON has the fingerprint that it had."""
    assert LoraConfiguration(**json.loads(point.model_dump_json())).fingerprint == point.fingerprint
    assert len(point.fingerprint) == 16
    assert int(point.fingerprint, 16) >= 0


def test_minus_zero_is_zero():
    """A dropout of -0.0 is the same configuration as one of 0.0, under the same fingerprint."""
    one, other = (LoraConfiguration(**{**POINT, "dropout": zero}) for zero in (0.0, -0.0))
    assert one == other
    assert one.fingerprint == other.fingerprint


def test_the_order_of_a_module_set_does_not_matter():
    """`query+value` and `value+query` train the same modules, so they are one choice."""
    with pytest.raises(ValidationError, match="each choice once"):
        LoraSpace.model_validate({"modules": ["query+value", "value+query"]})


def test_resolve_prefers_what_was_drawn():
    """A drawn value wins over the default of the same name, and the alpha ratio becomes absolute."""
    drawn = {**ONE, "alpha_ratio": 2.0, "batch_size": 4}
    del drawn["alpha"]
    resolved = resolve(drawn, DEFAULTS)
    assert (resolved.alpha, resolved.batch_size, resolved.scheduler) == (16.0, 4, "linear")


@pytest.mark.parametrize(
    ("raw", "name", "parameter"),
    [
        (32, "alpha", 32.0),
        ([16, 32], "alpha", [16.0, 32.0]),
        ({"low": 8.0, "high": 32.0}, "alpha", Range(low=8.0, high=32.0)),
        ({"absolute": [16, 32]}, "alpha", [16.0, 32.0]),
        ({"ratio": [1, 2]}, "alpha_ratio", [1.0, 2.0]),
        (AlphaRatio(ratio=2.0), "alpha_ratio", 2.0),
        (AlphaAbsolute(absolute=32.0), "alpha", 32.0),
    ],
)
def test_alpha_has_short_forms(raw, name, parameter):
    """A number, a list or a range of alpha is absolute; a ratio is asked for under a name of its own."""
    parameters = LoraSpace(alpha=raw).parameters()
    assert describe(parameters[name]) == describe(parameter)
    assert {"alpha", "alpha_ratio"} & parameters.keys() == {name}


@pytest.mark.parametrize(
    ("raw", "parameter"),
    [
        ("attention", "attention"),
        (" query + value ", "query+value"),
        ([["q_proj", "v_proj"], "mlp"], ["q_proj+v_proj", "mlp"]),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
    ],
)
def test_module_sets_are_named_strings(raw, parameter):
    """A list inside the list of choices is one set; a list of names is a list of choices."""
    assert LoraSpace(modules=raw).modules == parameter


@pytest.mark.parametrize("raw", ["", "  ", [[]], [1], [["q_proj", 2]], {"a": 1}, None])
def test_module_sets_are_names(raw):
    """What names no module is refused with an example of what does."""
    with pytest.raises(ValidationError, match="such as attention or query\\+value"):
        LoraSpace(modules=raw)


@pytest.mark.parametrize("raw", ["+", "query++value", "query+"])
def test_parts_of_module_sets_are_not_empty(raw):
    """A plus without a name on either side is refused when the file is read."""
    with pytest.raises(ValidationError):
        LoraSpace(modules=raw)


def test_default_space_is_the_grid_that_the_project_starts_from():
    """Without a space there are 450 discrete configurations, and dropout and learning rate are continuous."""
    assert LoraSpace().size() == (5 * 2 * 5 * 3 * 3, ["dropout", "learning_rate"])


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([0.5, 1, 2]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(["nf4", "int8", "bf16"]), min_size=1, max_size=3, unique=True),
)
def test_size_is_the_number_of_configurations(ranks, ratios, quantizations):
    """The size of a space of choices is the number of distinct fingerprints that it can draw."""
    space = LoraSpace(**{**ONE, "rank": ranks, "alpha": {"ratio": ratios}, "quantization": quantizations})
    keys = ("rank", "alpha_ratio", "quantization")
    points = [dict(zip(keys, point, strict=True)) for point in itertools.product(ranks, ratios, quantizations)]
    drawn = {space.ask(FixedTrial(point), DEFAULTS).fingerprint for point in points}
    assert space.size() == (len(drawn), [])


def test_fixed_space_asks_nothing():
    """A space without choices is drawn without a question to the sampler."""
    assert LoraSpace.model_validate(ONE).ask(FixedTrial({}), DEFAULTS) == LoraConfiguration(**POINT)


def test_label_is_short():
    """A configuration's label says rank, alpha, modules and quantization."""
    assert LoraConfiguration(**POINT).label == "r8 a16 attention nf4"


def test_configuration_refuses_what_no_space_allows():
    """All values of a configuration are checked at once, whoever built it."""
    with pytest.raises(ValidationError) as caught:
        LoraConfiguration(**{**POINT, "rank": 0, "alpha": math.nan, "dropout": 1, "learning_rate": 0, "color": "red"})
    assert {error["loc"][0] for error in caught.value.errors()} == {
        "rank",
        "alpha",
        "dropout",
        "learning_rate",
        "color",
    }
