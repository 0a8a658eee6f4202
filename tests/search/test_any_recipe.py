"""Whatever a recipe says, the search that begins with it is valid and has its values."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafront.search.init_file import commented
from lorafront.search.own_recipe import OwnRecipe, read_own_recipe
from lorafront.search.search_file import parse_search
from lorafront.search.widened_space import widened
from lorafront.search.yaml_file import read_yaml
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.lora import LoraSpace
from lorafront.spaces.presets import DEFAULT_SPACE
from lorafront.spaces.start_points import StartPoint, outside

WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
RATE, SHARE = st.floats(1e-7, 1.0), st.floats(0, 0.99)
NAMES = st.sampled_from(
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "c_attn"]
)
TARGETS = st.lists(NAMES, min_size=1, unique=True)
FILE = st.text(st.characters(categories=["L", "N"], codec="utf-8"), min_size=1, max_size=10)
TRAINER = {
    "learning_rate": RATE, "gradient_accumulation_steps": st.integers(1, 64), "weight_decay": SHARE,
    "seed": st.integers(0, 999), "warmup_ratio": SHARE, "max_steps": st.integers(-1, 999),
    "max_grad_norm": st.floats(0.01, 9),
}  # fmt: skip
LORA = {"lora_r": st.integers(1, 999), "lora_alpha": st.integers(1, 999), "lora_dropout": SHARE,
        "lora_target_modules": TARGETS}  # fmt: skip
RECIPES = {
    "axolotl": st.fixed_dictionaries(
        {"base_model": FILE, "adapter": st.sampled_from(["lora", "qlora"])},
        optional={
            **TRAINER, **LORA, "micro_batch_size": st.integers(1, 64), "num_epochs": st.floats(0.1, 9),
            "sequence_len": st.integers(2, 9999), "load_in_8bit": st.booleans(),
            "bf16": st.sampled_from([True, False, "auto"]), "val_set_size": st.sampled_from([0, 0.1, 50]),
            "lora_target_linear": st.booleans(),
            "datasets": st.lists(st.fixed_dictionaries({"path": FILE}, optional={
                "type": st.sampled_from(["alpaca", "completion", "chat_template", "own"]), "field": FILE, "name": FILE,
                "split": st.sampled_from(["train", "train[:9]", "test"])}), max_size=2),
        },
    ),
    "LLaMA-Factory": st.fixed_dictionaries(
        {"model_name_or_path": FILE, "finetuning_type": st.just("lora")},
        optional={
            **TRAINER, "lora_rank": st.integers(1, 999), "lora_alpha": st.integers(1, 999), "lora_dropout": SHARE,
            "lora_target": st.just("all") | TARGETS.map(",".join), "quantization_bit": st.sampled_from([2, 4, 8]),
            "cutoff_len": st.integers(2, 9999), "num_train_epochs": st.floats(0.1, 9), "dataset": FILE,
            "per_device_train_batch_size": st.integers(1, 64), "fp16": st.booleans(), "use_rslora": st.booleans(),
        },
    ),
    "TRL": st.fixed_dictionaries(
        {"model_name_or_path": FILE, "use_peft": st.just("true"), "dataset_name": FILE},
        optional={
            **TRAINER, **LORA, "load_in_4bit": st.booleans(), "use_bnb_nested_quant": st.booleans(),
            "dtype": st.sampled_from(["auto", "bfloat16", "float16", "float32"]), "max_length": st.integers(2, 9999),
            "lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant", "polynomial"]),
            "optim": st.sampled_from(["adamw_torch", "adamw_8bit", "lion_8bit"]), "dataset_text_field": FILE,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECIPES)
@settings(max_examples=40)  # each writes and reads files
@given(data=st.data())
def test_any_recipe_becomes_a_search_with_its_values(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: Any
) -> None:
    """Whatever else stands in it, the file parses, holds the baseline in its space, and drops no key without a word."""
    told: dict[str, Any] = data.draw(RECIPES[kind])
    junk = {f"x_{key}": value for key, value in data.draw(st.dictionaries(WORDS, JUNK, max_size=3)).items()}
    folder = tmp_path_factory.mktemp("any")
    found = read(folder, {**junk, **told})
    search = parse_search(read_yaml(_written(folder, commented("mine", {}, found)))[0])
    assert found.kind == kind
    assert not outside(search.baseline, search.space, search.training.defaults())
    point, training = search.baseline, search.training
    assert point.rank == told.get("lora_r", told.get("lora_rank", point.rank))
    assert point.learning_rate == told.get("learning_rate", point.learning_rate)
    assert point.dropout == told.get("lora_dropout", point.dropout)
    if "lora_alpha" in told and not told.get("use_rslora"):
        assert point.alpha.absolute == told["lora_alpha"]
    assert training.gradient_accumulation == told.get("gradient_accumulation_steps", training.gradient_accumulation)
    assert search.model.name == told.get("base_model", told.get("model_name_or_path"))
    if told.get("max_steps", 0) > 0:
        assert training.steps == told["max_steps"]
    said = "\n".join(found.left)
    assert "\n\n" not in said
    assert said.isascii()
    assert len(found.left) >= sum(value is not None and value not in ("", [], {}) for value in junk.values())


def read(folder: Path, said: dict[str, Any]) -> OwnRecipe:
    file = folder / "recipe.json"
    file.write_text(json.dumps(said), encoding="utf-8")
    return read_own_recipe(file)


def _written(folder: Path, text: str) -> Path:
    file = folder / "search.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", RECIPES)
@settings(max_examples=40)  # each writes and reads files
@given(data=st.data())
def test_any_value_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, kind: str, data: Any) -> None:
    """A value of the wrong kind under any key is an error of ours with that key, or is told; nothing else is raised."""
    told: dict[str, Any] = data.draw(RECIPES[kind])
    key = data.draw(st.sampled_from(sorted(told)))
    folder = tmp_path_factory.mktemp("any")
    with contextlib.suppress(InvalidInput):
        found = read(folder, {**told, key: data.draw(JUNK)})
        parse_search(read_yaml(_written(folder, commented("mine", {}, found)))[0])


@given(
    st.integers(1, 4096), st.integers(1, 4096), SHARE, RATE, st.sampled_from(["nf4", "fp4", "fp32"]),
    st.sampled_from(["attention", "q_proj+dense", "all-linear"]),
)  # fmt: skip
def test_a_widened_space_has_the_point_and_what_it_had(
    rank: int, alpha: int, dropout: float, rate: float, quantization: str, names: str
) -> None:
    """It is valid, nothing of the space is lost, and widening it again changes nothing."""
    point = {"rank": rank, "alpha": alpha, "modules": names, "quantization": quantization, "dropout": dropout,
             "bias": "all", "learning_rate": rate}  # fmt: skip
    space = widened(DEFAULT_SPACE, point)
    parsed = LoraSpace.model_validate(space)
    assert not outside(StartPoint.model_validate(point), parsed, {})
    assert set(DEFAULT_SPACE["rank"]) <= set(space["rank"])
    assert set(DEFAULT_SPACE["modules"]) <= set(space["modules"])
    assert space["learning_rate"]["low"] <= DEFAULT_SPACE["learning_rate"]["low"]
    assert widened(space, point) == space
