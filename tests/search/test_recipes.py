"""Files of other trainers: every key is one of theirs, every value arrives or is said to be lost."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from support import lora

from lorafront.search.own_recipe import read_own_recipe
from lorafront.search.recipe import Form, Recipe
from lorafront.search.recipe_rows import RecipeRows
from lorafront.search.recipes import RECIPES, chosen_formats
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.quantization import FOUR_BIT, QUANTIZATIONS, UNQUANTIZED
from lorafront.trainables.config import ModelConfig, TrainingConfig

# Names that trainers accept, as their own classes of the version named there list them.
KNOWN = json.loads((Path(__file__).parent / "trainer_fields.json").read_text())
CAUSAL_FORMS: tuple[Form, ...] = ("text", "pairs", "turns")
YAML_FORMATS = ("trl", "axolotl", "llamafactory", "unsloth")


def known(trainer: str, section: str = "fields") -> set[str]:
    return set(" ".join(KNOWN[trainer][section]).split())


def recipe(configuration: LoraConfiguration, form: Form = "pairs", **changes: Any) -> Recipe:
    dtype = UNQUANTIZED.get(configuration.quantization, "bfloat16")
    arguments = {
        "learning_rate": configuration.learning_rate,
        "per_device_train_batch_size": configuration.batch_size,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": configuration.gradient_accumulation,
        "max_steps": 50,
        "weight_decay": configuration.weight_decay,
        "warmup_steps": 3,
        "lr_scheduler_type": "constant_with_warmup"
        if configuration.scheduler == "constant"
        else configuration.scheduler,
        "max_grad_norm": 0.5,
        "optim": "paged_adamw_8bit",
        "gradient_checkpointing": True,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "seed": 7,
    }
    fields: dict[str, Any] = {
        "facts": ("Trial 3 of lorafront search demo", "Measured: perplexity 12.3"),
        "model": ModelConfig(name="org/base", revision="abc", attention="sdpa"),
        "task": "causal_lm",
        "auto_class": "AutoModelForCausalLM",
        "pad_id": 0,
        "lora": configuration,
        "targets": ("k_proj", "q_proj"),
        "fan_in_fan_out": False,
        "optimizer": "paged_adamw_8bit",
        "dtype": dtype,
        "arguments": arguments,
        "max_length": 96,
        "form": form,
        "framed": False,
        "rows": "../rows",
    }
    return Recipe(**{**fields, **changes})


def written(name: str, given_recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The YAML file of a format: its text, and what it holds for a reader of YAML 1.1, as PyYAML is."""
    text = RECIPES[name].files(given_recipe)[f"{name}.yaml"]
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    return text, yaml.load(text)


configurations = st.builds(
    lora,
    rank=st.integers(1, 256),
    alpha=st.floats(0.1, 512),
    quantization=st.sampled_from(QUANTIZATIONS),
    dropout=st.floats(0, 0.9),
    bias=st.sampled_from(["none", "lora_only", "all"]),
    learning_rate=st.floats(1e-7, 1e-1),
    weight_decay=st.floats(0, 0.5),
    batch_size=st.integers(1, 64),
    gradient_accumulation=st.integers(1, 16),
    scheduler=st.sampled_from(["linear", "cosine", "constant"]),
)


@settings(deadline=None, max_examples=50)  # YAML takes a tenth of a second
@given(configurations, st.sampled_from(CAUSAL_FORMS))
def test_every_key_is_one_of_the_trainers(configuration: LoraConfiguration, form: Form) -> None:
    """No file has a key that its trainer does not know, at any level."""
    one = recipe(configuration, form)
    for name in ("trl", "axolotl", "llamafactory"):
        assert set(written(name, one)[1]) <= known(name), name
    unsloth = written("unsloth", one)[1]
    assert set(unsloth) <= known("unsloth")
    assert all(set(unsloth[section]) <= known("unsloth", section) for section in ("data", "training", "lora"))
    for rows in (written("axolotl", one)[1][key][0] for key in ("datasets", "test_datasets")):
        assert set(rows) <= known("axolotl", "datasets")
        assert not isinstance(rows["type"], dict) or set(rows["type"]) <= known("axolotl", "type")
    info = json.loads(RECIPES["llamafactory"].files(one)["dataset_info.json"])
    for rows in info.values():
        assert set(rows["columns"]) <= known("llamafactory", "columns")
        assert set(rows.get("tags", {})) <= known("llamafactory", "tags")


@settings(deadline=None, max_examples=50)  # YAML takes a tenth of a second
@given(configurations, st.sampled_from(CAUSAL_FORMS), st.sampled_from(YAML_FORMATS))
def test_every_value_arrives_or_is_said_to_be_lost(configuration: LoraConfiguration, form: Form, name: str) -> None:
    """Each number of the configuration stands in the file as a number; what the format cannot say is in its head."""
    text, content = written(name, recipe(configuration, form))
    flat = {**content, **content.get("training", {}), **content.get("lora", {})}

    def one_of(*keys: str) -> Any:
        return next(flat[key] for key in keys if key in flat)

    assert one_of("lora_r", "lora_rank") == configuration.rank
    assert flat["lora_dropout"] == configuration.dropout
    assert flat["learning_rate"] == configuration.learning_rate
    assert flat["weight_decay"] == configuration.weight_decay
    assert one_of("per_device_train_batch_size", "micro_batch_size", "batch_size") == configuration.batch_size
    assert flat["gradient_accumulation_steps"] == configuration.gradient_accumulation
    assert flat["max_steps"] == 50
    assert flat["warmup_steps"] == 3
    assert one_of("seed", "random_seed") == 7
    assert one_of("max_length", "sequence_len", "cutoff_len", "max_seq_length") == 96
    targets = one_of("lora_target_modules", "lora_target", "target_modules")
    assert (targets.split(",") if isinstance(targets, str) else targets) == ["k_proj", "q_proj"]
    assert one_of("model_name_or_path", "base_model", "model") == "org/base"
    head = text.split("\n" + next(iter(content)))[0]
    assert flat["lora_alpha"] == configuration.alpha or f"alpha {configuration.alpha:g}" in head
    assert configuration.bias == "none" or f"bias {configuration.bias}" in head
    for key, value in (("optimizer", "paged_adamw_8bit"), ("scheduler", configuration.scheduler)):
        said = one_of("optim", "optimizer") if key == "optimizer" and name != "unsloth" else None
        said = one_of("lr_scheduler_type", "lr_scheduler") if key == "scheduler" and name != "unsloth" else said
        assert (said is not None and str(said).startswith(value)) or f"{key} {value}" in head or value == "linear"
    assert all(line in head for line in ("# Trial 3 of lorafront search demo", "# Measured: perplexity 12.3"))
    assert "abc" in text
    assert "sdpa" in text


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_quantization_is_said_in_each_trainers_words(kind: str) -> None:
    """Four bits with their type and nesting, eight bits, and the type of an unquantized base."""
    one = recipe(lora(quantization=kind))
    trl, axolotl, factory, unsloth = (written(name, one)[1] for name in YAML_FORMATS)
    four, eight = kind in FOUR_BIT, kind == "int8"
    assert (trl.get("load_in_4bit", False), trl.get("load_in_8bit", False)) == (four, eight)
    assert (axolotl["load_in_4bit"], axolotl.get("load_in_8bit", False)) == (four, eight)
    assert axolotl["adapter"] == ("qlora" if four else "lora")
    assert factory.get("quantization_bit") == (4 if four else 8 if eight else None)
    assert unsloth["training"]["load_in_4bit"] == four
    if four:
        quant_type, nested = FOUR_BIT[kind]
        own = axolotl["bnb_config_kwargs"]
        assert (trl["bnb_4bit_quant_type"], trl["use_bnb_nested_quant"]) == (quant_type, nested)
        assert (own["bnb_4bit_quant_type"], own["bnb_4bit_use_double_quant"]) == (quant_type, nested)
        assert (factory["quantization_type"], factory["double_quantization"]) == (quant_type, nested)
    assert trl["dtype"] == UNQUANTIZED.get(kind, "bfloat16")
    assert (axolotl["bf16"], axolotl["fp16"], axolotl.get("float32", False)) == tuple(
        trl["dtype"] == name for name in ("bfloat16", "float16", "float32")
    )
    assert kind == "nf4_double" or kind in written("unsloth", one)[0]


@pytest.mark.parametrize("form", CAUSAL_FORMS)
@pytest.mark.parametrize("kind", ["nf4", "int8", "bf16"])
def test_the_trainers_own_classes_take_the_files(
    form: Form, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a trainer is installed, its own configuration class reads the file and has the values."""
    one = recipe(lora(quantization=kind), form)
    checked = 0
    monkeypatch.chdir(tmp_path)
    for name in YAML_FORMATS:
        for file, text in RECIPES[name].files(one).items():
            (tmp_path / file).write_text(text)
        try:
            {"trl": read_by_trl, "axolotl": read_by_axolotl, "llamafactory": read_by_llamafactory,
             "unsloth": read_by_unsloth}[name](tmp_path / f"{name}.yaml", one)  # fmt: skip
            checked += 1
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in {"trl", "axolotl", "llamafactory", "unsloth_cli", "omegaconf"}:
                raise
    if not checked:
        pytest.skip("none of trl, axolotl, llamafactory, unsloth is installed; the names of their fields are checked")


def read_by_trl(file: Path, one: Recipe) -> None:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser, get_peft_config

    classes = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)
    text = file.read_text() + "use_cpu: true\n"
    file.write_text(text.replace("optim: paged_adamw_8bit", "optim: adamw_torch"))
    _, training, model, _ = TrlParser(classes).parse_args_and_config(["--config", str(file)])
    adapter = get_peft_config(model)
    assert (adapter.r, adapter.lora_alpha, set(adapter.target_modules)) == (4, 8, {"k_proj", "q_proj"})
    assert (training.learning_rate, training.max_length) == (one.lora.learning_rate, 96)


def read_by_axolotl(file: Path, one: Recipe) -> None:
    from axolotl.utils.schemas.config import AxolotlInputConfig

    content = YAML(typ="safe").load(file)
    read = AxolotlInputConfig(**content)
    assert (read.lora_r, read.lora_target_modules, read.sequence_len) == (4, ["k_proj", "q_proj"], 96)
    assert (read.load_in_4bit or False) == (one.lora.quantization == "nf4")


def read_by_llamafactory(file: Path, one: Recipe) -> None:
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.hparams import get_train_args

    content = {**YAML(typ="safe").load(file), "use_cpu": True}
    model, data, training, finetuning, _ = get_train_args(content)
    assert (finetuning.lora_rank, finetuning.lora_target, data.cutoff_len) == (4, ["k_proj", "q_proj"], 96)
    assert model.quantization_bit == {"nf4": 4, "int8": 8}.get(one.lora.quantization)
    assert training.learning_rate == one.lora.learning_rate


def read_by_unsloth(file: Path, one: Recipe) -> None:
    from unsloth_cli.config import load_config

    read = load_config(file)
    assert (read.lora.lora_r, read.lora.target_modules) == (4, "k_proj,q_proj")
    assert read.training.learning_rate == one.lora.learning_rate


def test_rows_come_in_each_shape(tmp_path: Path) -> None:
    """Pairs, texts, conversations and labels are written as trainers read them; the last turn alone is trained on."""
    pairs = RecipeRows("pairs", [("Q: 1+1? ", "2")], [("Q: 2+2? ", "4")], "</s>")
    pairs.write(tmp_path, ["pairs", "ended", "text"])
    read = {shape: json.loads((tmp_path / shape / "train.jsonl").read_text()) for shape in ("pairs", "ended", "text")}
    assert read["pairs"] == {"prompt": "Q: 1+1? ", "completion": "2"}
    assert read["ended"] == {"prompt": "Q: 1+1? ", "completion": "2</s>"}
    assert read["text"] == {"text": "Q: 1+1? 2</s>"}
    assert json.loads((tmp_path / "pairs" / "validation.jsonl").read_text())["completion"] == "4"
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "id": 3}]
    turns = RecipeRows("turns", [chat], [chat])
    turns.write(tmp_path, ["turns", "prompted"])
    whole = json.loads((tmp_path / "turns" / "train.jsonl").read_text())["messages"]
    assert [turn["train"] for turn in whole] == [False, True]
    prompted = json.loads((tmp_path / "prompted" / "train.jsonl").read_text())
    assert prompted == {"prompt": [chat[0]], "completion": [{"role": "assistant", "content": "Ho"}]}


def test_formats_are_named_once_and_unknown_ones_refused() -> None:
    """Formats are split at commas, kept once, and a wrong one is named with what is near."""
    assert chosen_formats(["trl, peft", "trl"]) == ["trl", "peft"]
    with pytest.raises(InvalidInput, match="Did you mean 'axolotl'"):
        chosen_formats(["axolot"])


def test_recipes_are_frozen() -> None:
    """Writers share one recipe, so none may change it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe(lora()).task = "seq_cls"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["axolotl", "llamafactory", "trl"])
@settings(deadline=None, max_examples=25)
@given(configurations, st.integers(1, 512))
def test_a_search_can_begin_with_a_recipe_of_ours(
    tmp_path_factory: pytest.TempPathFactory, name: str, configuration: LoraConfiguration, alpha: int
) -> None:
    """What is written for another trainer comes back as the baseline, value for value."""
    configuration = configuration.model_copy(update={"alpha": float(alpha), "bias": "none"})
    file = tmp_path_factory.mktemp("round") / f"{name}.yaml"
    file.write_text(RECIPES[name].files(recipe(configuration))[f"{name}.yaml"], encoding="utf-8")
    said = read_own_recipe(file).said
    here = {"modules": "query+key", "warmup": 3 / 50}  # of the recipe, in which warm-up is a number of steps
    for key, value in {**configuration.model_dump(exclude={"seed"}), **here}.items():
        place = "training" if key in TrainingConfig.model_fields else "baseline"
        assert said.get(f"{place}.{key}", "none") == value
    assert (said["training.steps"], said["training.optimizer"], said["seed"]) == (50, "paged_adamw_8bit", 7)
    assert (said["model.name"], said["data.max_length"], said["training.max_grad_norm"]) == ("org/base", 96, 0.5)
