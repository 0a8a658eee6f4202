"""Start points: inside the space they stay as they are, outside they go to the nearest point that means something."""

from __future__ import annotations

import math
import random

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from pydantic import ValidationError

from lorafront.spaces import presets
from lorafront.spaces.lora import LoraSpace, resolve
from lorafront.spaces.modules import resolve as resolve_modules
from lorafront.spaces.objectives import Limit, broken_limit
from lorafront.spaces.parameters import Range, ask
from lorafront.spaces.start_points import (
    StartPoint,
    StartPoints,
    contains,
    nearest,
    outside,
    overlap_of_groups,
    overlap_on,
    place,
)
from lorafront.spaces.uniform_draw import UniformDraw

DEFAULTS = {
    "batch_size": 8, "gradient_accumulation": 1, "weight_decay": 0.0, "warmup": 0.03, "scheduler": "linear"
}  # fmt: skip
LLAMA = [f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"] + [
    f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")
]  # fmt: skip
GPT2 = ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]


def placed(point, **space):
    return place(
        StartPoint.model_validate(point), LoraSpace.model_validate(space), DEFAULTS, overlap_of_groups
    )  # fmt: skip


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.name)
def test_every_preset_is_a_point_with_a_source(preset):
    """A shipped preset says every parameter of the default space, and who recommends it."""
    point = StartPoint.model_validate(preset.point)
    assert set(point.said()) == {"rank", "alpha", "modules", "quantization", "dropout", "bias", "learning_rate"}
    assert preset.source


def test_the_recommended_default_is_the_first_preset():
    """Rank 16, alpha 32, all attention, NF4, at its place in the default space."""
    found = placed(presets.PRESETS[0].point)
    lora = resolve(found.values, DEFAULTS)
    assert (lora.rank, lora.alpha, lora.modules, lora.quantization) == (16, 32, "attention", "nf4")
    assert found.moved == {}


def test_a_point_outside_goes_to_the_nearest_one():
    """Each value moves to its nearest, ranks and rates by ratio; alpha keeps its ratio to the rank that is taken."""
    found = placed(
        {"rank": 256, "alpha": {"ratio": 2}, "modules": "attention+mlp", "quantization": "nf4_double",
         "learning_rate": 3e-4, "dropout": 0.05},
        rank=[4, 64], alpha=[8, 128], modules=["query", "attention"], quantization=["bf16", "int8"],
        learning_rate={"low": 1e-3, "high": 1e-2, "log": True}, dropout=[0.0, 0.1, 0.06],
    )  # fmt: skip
    assert found.values == {
        "rank": 64, "alpha": 128, "modules": "attention", "quantization": "int8", "learning_rate": 1e-3,
        "dropout": 0.06, "bias": "none",
    }  # fmt: skip
    assert set(found.moved) == {"rank", "modules", "quantization", "learning_rate", "dropout"}
    assert found.moved["rank"] == "rank 256 to 64"


def test_what_is_left_out_comes_from_the_default():
    """A point that says only a rank has the recommended default's other values, and nothing of it counts as moved."""
    found = placed({"rank": 8}, quantization="int8", learning_rate={"low": 1e-3, "high": 1e-2})
    lora = resolve(found.values, DEFAULTS)
    assert (lora.rank, lora.alpha, lora.quantization, lora.learning_rate, lora.batch_size) == (8, 16, "int8", 1e-3, 8)
    assert found.moved == {}


def test_a_space_that_shares_no_module_has_no_such_point():
    """A preset for attention is left out of a space that adapts only the feed-forward modules."""
    assert placed({"modules": "query+value"}, modules=["mlp"]) is None
    assert placed({"modules": "query+value"}, modules=["mlp", "all-linear"]) is not None


def test_module_sets_are_compared_on_the_model():
    """On a model with a fused projection, attention is nearest to query and value; names count as themselves."""
    fused = {name: resolve_modules(name, GPT2) for name in ("attention", "mlp", "all-linear")}
    overlap = overlap_on(GPT2, fused)
    assert max(fused, key=lambda choice: overlap("query+value", choice)) == "attention"
    assert overlap("query+value", "mlp") == 0
    named = {name: resolve_modules(name, LLAMA) for name in ("q_proj+v_proj", "mlp", "all-linear")}
    overlap = overlap_on(LLAMA, named)
    assert overlap("query+value", "q_proj+v_proj") == 1
    assert overlap("all-linear", "all-linear") == 1
    assert overlap("mlp", "all-linear") == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("point", "space", "keys"),
    [
        ({"rank": 8, "alpha": 16}, {"rank": [8, 16], "alpha": {"ratio": [1, 2]}}, []),
        ({"rank": 8, "alpha": {"ratio": 2}}, {"rank": [8, 16], "alpha": [16, 32]}, []),
        ({"rank": 8, "alpha": {"ratio": 4}}, {"rank": [8, 16], "alpha": [16, 64]}, ["alpha"]),
        ({"rank": 7}, {"rank": {"low": 4, "high": 8}}, []),
        ({"rank": 7}, {"rank": {"low": 4, "high": 8, "step": 2}}, ["rank"]),
        ({"learning_rate": 2e-3, "dropout": 0.1}, {"dropout": [0.1, 0.2]}, ["learning_rate"]),
        ({"modules": ["v_proj", "q_proj"]}, {"modules": ["q_proj+v_proj"]}, ["modules"]),
        ({"modules": ["q_proj", "v_proj"]}, {"modules": ["q_proj+v_proj"]}, []),
        ({"batch_size": 8}, {}, []),
        ({"batch_size": 16}, {}, ["batch_size"]),
        ({"batch_size": 16, "scheduler": "cosine"}, {"batch_size": [8, 16], "scheduler": "cosine"}, []),
        ({"quantization": "fp4", "bias": "all"}, {"quantization": ["nf4"], "bias": "none"}, ["quantization", "bias"]),
    ],
)  # fmt: skip
def test_what_the_space_does_not_have_is_named(point, space, keys):
    """A point's keys that lie outside the space are found, in either form of alpha, each with what there is."""
    found = outside(StartPoint.model_validate(point), LoraSpace.model_validate(space), DEFAULTS)
    assert list(found) == keys
    assert all("is not in the space, which has" in message for message in found.values())


@pytest.mark.parametrize("raw", [{"ratio": 1, "absolute": 2}, {}, 0, -1, {"ratio": math.nan}, "high"])
def test_a_bad_alpha_is_refused(raw):
    """One positive number, or one positive ratio."""
    with pytest.raises(ValidationError):
        StartPoint.model_validate({"alpha": raw})


def test_start_points_are_on_unless_switched_off():
    """Without a word the shipped points are tried, and a file's own are none."""
    assert StartPoints() == StartPoints(recommended=True, points=[])


NUMBERS = st.integers(1, 64)
RANGES = st.tuples(NUMBERS, st.integers(1, 64), st.booleans()).map(
    lambda t: Range[int](low=t[0], high=t[0] + t[1], log=t[2])
)
STEPS = st.tuples(NUMBERS, st.integers(1, 64), st.integers(1, 9)).map(
    lambda t: Range[int](low=t[0], high=t[0] + max(t[1], t[2]), step=t[2])
)
REALS = st.tuples(st.floats(1e-6, 1), st.floats(0.01, 1)).map(lambda t: Range[float](low=t[0], high=t[0] + t[1]))
PARAMETERS = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=6, unique=True), RANGES, STEPS, REALS)


@given(PARAMETERS, st.floats(0.5, 200))
def test_the_nearest_value_lies_inside(parameter, value):
    """Whatever is wanted, its nearest value is one of the parameter's, and is its own nearest value."""
    found = nearest(parameter, value, "rank")
    assert contains(parameter, found)
    assert nearest(parameter, found, "rank") == found


@given(st.integers(0, 10**6), PARAMETERS)
def test_uniform_draws_lie_inside(seed, parameter):
    """A uniform draw from any parameter is one of its values, and the same seed draws it again."""
    first, again = (ask(parameter, "x", UniformDraw(random.Random(seed))) for _ in range(2))
    assert first == again
    assert contains(parameter, first)


@given(st.integers(0, 10**6))
def test_a_draw_can_be_given_to_optuna(seed):
    """The values that a draw notes, given back through Optuna, come to the configuration that was drawn."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, draw = LoraSpace(), UniformDraw(random.Random(seed))
    drawn = space.ask(draw, DEFAULTS)
    assert space.ask(FixedTrial(draw.params), DEFAULTS) == drawn


@pytest.mark.parametrize(
    ("known", "broken"),
    [
        ({}, ""),
        ({"adapter_mb": 1.0}, ""),
        ({"adapter_mb": 1.25}, "adapter_mb 1.25 breaks adapter_mb <= 1"),
        ({"trainable_params": 5}, "trainable_params 5 breaks trainable_params >= 10"),
    ],
)
def test_a_limit_is_broken_by_what_is_known_only(known, broken):
    """A limit on something that is not known yet is not broken."""
    limits = (Limit("adapter_mb", "<=", 1.0), Limit("trainable_params", ">=", 10.0), Limit("perplexity", "<=", 2.0))
    assert broken_limit(limits, known) == broken
