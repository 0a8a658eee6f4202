"""Recipes of other trainers as the beginning of a search: what is read, what is told, what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import lora

from lorafront.search.init_file import commented, told_of
from lorafront.search.own_recipe import KINDS, OwnRecipe, read_own_recipe
from lorafront.search.own_recipe_words import module_set
from lorafront.search.search_file import SearchFile, read_search_file
from lorafront.search.yaml_file import read_yaml
from lorafront.spaces import modules
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.presets import DEFAULT_SPACE

# axolotl (Apache-2.0), examples/llama-3/qlora.yml of July 2026, shortened.
AXOLOTL_QLORA = """
base_model: NousResearch/Meta-Llama-3-8B
# optionally might have model_type or tokenizer_type
model_type: AutoModelForCausalLM

load_in_8bit: false
load_in_4bit: true

datasets:
  - path: aaditya/alpaca_subset_1
    type: alpaca
dataset_prepared_path:
val_set_size: 0
output_dir: ./outputs/qlora-out

adapter: qlora
lora_model_dir:

sequence_len: 4096
sample_packing: true

lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true

wandb_project:

gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 0.0002

bf16: auto
tf32: false
gradient_checkpointing: true
attn_implementation: flash_attention_2

warmup_ratio: 0.1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
# axolotl, examples/llama-3/lora-1b.yml of July 2026, shortened.
AXOLOTL_LORA = """
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.1
adapter: lora
sequence_len: 2048
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules:
  - gate_proj
  - down_proj
  - up_proj
  - q_proj
  - v_proj
  - k_proj
  - o_proj
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
"""
# LLaMA-Factory (Apache-2.0), examples/train_qlora/qwen3_lora_sft_otfq.yaml of August 2026, shortened.
LLAMA_FACTORY = """
### model
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
quantization_bit: 4  # choices: [8 (bnb/hqq/eetq), 4 (bnb/hqq), 3 (hqq), 2 (hqq)]
quantization_method: bnb  # choices: [bnb, hqq, eetq]
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,alpaca_en_demo
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""
# LLaMA-Factory, data/dataset_info.json of August 2026, two of its entries.
DATASETS = {
    "identity": {"file_name": "identity.json"},
    "glaive_toolcall_en_demo": {
        "file_name": "glaive_toolcall_en_demo.json", "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"},
    },
}  # fmt: skip
# TRL (Apache-2.0), examples/cli_configs/example_config.yaml of July 2026, with LoRA as in trl/scripts/sft.py.
TRL = """
model_name_or_path:
  Qwen/Qwen2.5-0.5B
dataset_name:
  stanfordnlp/imdb
report_to:
  none
learning_rate:
  0.0001
lr_scheduler_type:
  cosine
use_peft: true
lora_r: 32
lora_alpha: 16
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
num_train_epochs: 1
"""
LLAMA = [
    f"model.layers.0.{part}"
    for part in (*(f"self_attn.{n}_proj" for n in "qkvo"), *(f"mlp.{n}_proj" for n in ("gate", "up", "down")))
] + ["lm_head"]


def recipe(folder: Path, text: str | dict[str, Any], name: str = "recipe.yaml") -> OwnRecipe:
    file = folder / name
    file.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return read_own_recipe(file)


def refused(folder: Path, text: str | dict[str, Any], name: str = "recipe.yaml") -> str:
    with pytest.raises(InvalidInput) as caught:
        recipe(folder, text, name)
    return str(caught.value)


def file_of(folder: Path, found: OwnRecipe, **asked: Any) -> SearchFile:
    file = folder / "search.yaml"
    file.write_text(commented("mine", asked, found), encoding="utf-8")
    return read_search_file(file)


def test_a_recipe_of_axolotl(tmp_path: Path) -> None:
    """All that it says of model, data, training and LoRA is in the file; the space has it; the rest is told."""
    found = recipe(tmp_path, AXOLOTL_QLORA)
    search = file_of(tmp_path, found)
    assert (found.kind, search.model.name, search.data.path) == (
        "axolotl", "NousResearch/Meta-Llama-3-8B", "aaditya/alpaca_subset_1"
    )  # fmt: skip
    assert (search.data.format, search.data.max_length, search.data.train_rows) == ("alpaca", 4096, None)
    training = search.training
    assert (training.epochs, training.batch_size, training.gradient_accumulation) == (4, 2, 4)
    assert (training.scheduler, training.warmup, training.optimizer) == ("cosine", 0.1, "adamw")
    assert training.gradient_checkpointing
    assert search.baseline.said() == {
        "rank": 32, "alpha": search.baseline.alpha, "modules": "all-linear", "quantization": "nf4_double",
        "dropout": 0.05, "bias": "none", "learning_rate": 2e-4,
    }  # fmt: skip
    assert search.baseline.alpha.absolute == 16
    assert search.space.alpha.ratio == [0.5, 1, 2]
    assert search.space.modules == [*DEFAULT_SPACE["modules"], "all-linear"]
    assert {line.split(":")[0] for line in found.left} == {
        "attn_implementation", "model_type", "optimizer", "output_dir", "sample_packing", "special_tokens", "tf32",
        "val_set_size",
    }  # fmt: skip
    text = (tmp_path / "search.yaml").read_text()
    assert all(f"#   {line.split('(')[0].strip()}" in text for line in found.left)


def test_names_of_modules_become_groups_where_they_are_all_of_one(tmp_path: Path) -> None:
    """Llama's seven projections are attention+mlp, so that they are one choice with the space's own."""
    found = recipe(tmp_path, AXOLOTL_LORA)
    search = file_of(tmp_path, found)
    assert (search.baseline.modules, search.baseline.quantization) == ("attention+mlp", "bf16")
    assert search.space.modules == DEFAULT_SPACE["modules"]
    assert search.training.optimizer == "paged_adamw_8bit"
    assert 'optimizer: "adamw_8bit" (read as paged_adamw_8bit)' in found.left
    assert any(line.startswith("val_set_size: 0.1 (here a number of rows") for line in found.left)


@given(st.lists(st.sampled_from([name.rsplit(".", 1)[-1] for name in LLAMA]), min_size=1, unique=True))
def test_groups_mean_the_modules_that_were_named(names: list[str]) -> None:
    """Whatever of a model's modules is named, the set in our words has exactly these."""
    found = set(modules.resolve(module_set(names), LLAMA).names)
    assert found == {name for name in LLAMA if name.rsplit(".", 1)[-1] in names}


def test_a_recipe_of_llama_factory(tmp_path: Path) -> None:
    """Its own defaults stand where it is silent; a data set is found in the index beside it."""
    found = recipe(tmp_path, LLAMA_FACTORY)
    search = file_of(tmp_path, found)
    assert found.kind == "LLaMA-Factory"
    point = search.baseline
    assert (point.rank, point.alpha.absolute, point.modules, point.quantization) == (8, 16, "all-linear", "nf4_double")
    assert (search.data.path, search.data.train_rows, search.training.epochs) == ("identity", 1000, 3)
    assert found.theirs["baseline.alpha"] == 16
    assert "dataset identity: no dataset_info.json has it; put its path into data.path, and its format" in found.left
    assert search.training.gradient_checkpointing

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(DATASETS))
    search = file_of(tmp_path, recipe(tmp_path, LLAMA_FACTORY))
    assert (search.data.path, search.data.format) == (str(tmp_path / "data" / "identity.json"), "alpaca")
    chats = recipe(tmp_path, LLAMA_FACTORY.replace("identity,alpaca_en_demo", "glaive_toolcall_en_demo"))
    search = file_of(tmp_path, chats)
    assert (search.data.format, search.data.columns) == ("messages", {"messages": "conversations"})
    assert any(line.startswith("dataset_info.json tags: messages have role and content here") for line in chats.left)


def test_a_recipe_of_trl(tmp_path: Path) -> None:
    """As YAML and as JSON; what TRL tells by the columns of the rows is left to the user, who may say it at once."""
    found = recipe(tmp_path, TRL)
    search = file_of(tmp_path, found)
    assert (found.kind, search.model.name, search.data.path) == ("TRL", "Qwen/Qwen2.5-0.5B", "stanfordnlp/imdb")
    point = search.baseline
    assert (point.rank, point.alpha.absolute, point.dropout, point.modules) == (32, 16, 0.05, "query+value")
    assert (search.training.batch_size, search.training.warmup, search.data.max_length) == (2, 0, 1024)
    assert point.quantization == "fp32"
    assert "packing: true" in found.left
    as_json = recipe(tmp_path, read_yaml(tmp_path / "recipe.yaml")[0], "recipe.json")
    assert (as_json.said, as_json.left) == (found.said, found.left)
    other = file_of(tmp_path, found, **{"data.path": "rows.jsonl", "data.format": "prompt_completion"})
    assert (other.data.path, other.data.format) == ("rows.jsonl", "prompt_completion")


def test_the_folder_of_a_peft_adapter(tmp_path: Path) -> None:
    """As PEFT and transformers write it; the pickle beside it is never opened."""
    from peft import LoraConfig
    from transformers import TrainingArguments

    LoraConfig(
        r=8, lora_alpha=24, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
        base_model_name_or_path="org/model",
    ).save_pretrained(tmp_path)  # fmt: skip
    opened = tmp_path / "opened"
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(Opens(str(opened))))
    found = read_own_recipe(tmp_path)
    search = file_of(tmp_path, found)
    assert (found.kind, search.model.name, search.task) == ("PEFT", "org/model", "causal_lm")
    point = search.baseline
    assert (point.rank, point.alpha.absolute, point.dropout, point.modules) == (8, 24, 0.1, "query+value")
    assert "training_args.bin: not read: a pickle can run code" in found.left
    assert not opened.exists()
    assert any("baseline.learning_rate 0.0002" in line for line in told_of(found, {}) if "so ours" in line)

    state = {"max_steps": 300, "train_batch_size": 4, "log_history": [{"learning_rate": 9e-5, "step": 1}, {"loss": 2}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    search = file_of(tmp_path, read_own_recipe(tmp_path))
    assert (search.training.steps, search.training.batch_size, search.baseline.learning_rate) == (300, 4, 9e-5)

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), learning_rate=3e-4, num_train_epochs=2, per_device_train_batch_size=6,
        lr_scheduler_type="cosine", optim="paged_adamw_8bit", use_cpu=True,
    )  # fmt: skip
    (tmp_path / "training_args.json").write_text(arguments.to_json_string())
    search = file_of(tmp_path, read_own_recipe(tmp_path / "adapter_config.json"))
    assert (search.training.epochs, search.training.steps, search.training.batch_size) == (2, None, 6)
    assert (search.baseline.learning_rate, search.training.optimizer) == (3e-4, "paged_adamw_8bit")


class Opens:
    """Unpickled, it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_the_folder_of_an_export(tmp_path: Path) -> None:
    """Every value of the configuration comes back, and the rows that it was trained on."""
    own = lora(rank=8, alpha=12.0, quantization="int8", weight_decay=0.01, scheduler="cosine", dropout=0.05)
    numbers = {
        "search": "demo", "trial": 7, "model": "org/model", "dtype": "bfloat16", "train_rows": 256, "seed": 3,
        "configuration": own.model_dump(mode="json"), "measurements": {"perplexity": 3.0},
    }  # fmt: skip
    (tmp_path / "lorafront.json").write_text(json.dumps(numbers))
    (tmp_path / "training_arguments.json").write_text(json.dumps({"optim": "paged_adamw_8bit", "max_grad_norm": 0.5}))
    search = file_of(tmp_path, read_own_recipe(tmp_path))
    assert (search.seed, search.training.rows, search.training.max_grad_norm) == (3, 256, 0.5)
    assert search.training.optimizer == "paged_adamw_8bit"
    assert search.training.defaults() == {name: getattr(own, name) for name in search.training.defaults()}
    point = search.baseline.said()
    assert point.pop("alpha").absolute == 12
    assert point == {name: getattr(own, name) for name in point}


def test_what_is_no_recipe_is_told_with_what_was_found(tmp_path: Path) -> None:
    """Its keys and those of all kinds; a search file is named as one, and so is a folder of something else."""
    text = refused(tmp_path, {"a": 1, "b": 2})
    assert "recipe.yaml is no recipe that is known here; it has a, b." in text
    assert all(kind.name in text for kind in KINDS)
    assert "could be of LLaMA-Factory or TRL" in refused(tmp_path, {"model_name_or_path": "m"})
    assert "is a search file already" in refused(tmp_path, {"model": "m", "data": {"path": "d"}})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInput, match="has neither adapter_config"):
        read_own_recipe(tmp_path / "folder")
    with pytest.raises(InvalidInput, match="cannot read"):
        read_own_recipe(tmp_path / "nothing.json")
    for wrong in ("[1]", "{", '{"a": 1, "a": 2}', "[" * 100_000):
        assert "recipe.json" in refused(tmp_path, wrong, "recipe.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("adapter: lora -> adapter:", "recipe.yaml:7:1  adapter: must be lora or qlora"),
        ("lora_r: 16 -> lora_r: many", 'lora_r: must be a number (got "many")'),
        ("lora_r: 16 -> lora_r: 0", "lora_r: must be a whole number of 1 or more (got 0)"),
        ("learning_rate: 0.0002 -> learning_rate: -1", "learning_rate: must be above 0 (got -1)"),
        ("bf16: auto -> rl: dpo", "rl: is no supervised fine-tuning"),
        ("num_epochs: 1 -> num_epochs: .nan", "num_epochs: must be a finite number"),
        ("    type: alpaca ->     split: [a]", "recipe.yaml:5:5  datasets[0].split: must be text"),
        ("lora_r: 16 -> lora_r: !!python/object:os.system 16", "lora_r: YAML tags are not allowed"),
        ("lora_r: 16 -> lora_r: 16\nlora_r: 8", "lora_r: duplicate key 'lora_r' (lines 9 and 10)"),
        ("bf16: auto -> <<: {lora_r: 8}", "keys must be text"),
        ("  - gate_proj ->   - '.*gate.*'", "recipe.yaml:12:1  lora_target_modules: must be names"),
    ],
)
def test_what_cannot_be_a_baseline_is_refused_at_its_line(tmp_path: Path, change: str, said: str) -> None:
    """Another training, values out of bounds, and YAML that says one thing twice or wants to run code."""
    old, new = change.split(" -> ")
    assert old in AXOLOTL_LORA
    assert said in refused(tmp_path, AXOLOTL_LORA.replace(old, new))


def test_a_pattern_of_modules_is_refused(tmp_path: Path) -> None:
    """Nobody knows which modules it means before there is a model."""
    text = AXOLOTL_QLORA.replace("lora_target_linear: true", r"lora_target_modules: 'layers.[\d]+.(mlp|self_attn)'")
    assert "a pattern has no counterpart" in refused(tmp_path, text)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "m", "r": 8, "target_modules": ".*_proj"}
    assert "is a pattern" in refused(tmp_path, adapter, "adapter_config.json")


def test_strange_yaml_where_nothing_is_read_is_only_told(tmp_path: Path) -> None:
    """Keys that are numbers and values with tags have no counterpart anyway; anchors are followed."""
    odd = "added_tokens_overrides: {128: x}\ncallbacks: !!python/name:os.system\nsize: &n 8\n"
    text = AXOLOTL_LORA.replace("lora_r: 16", "lora_r: *n")
    found = recipe(tmp_path, odd + text)
    assert found.said["baseline.rank"] == 8
    told = "\n".join(found.left)
    assert "added_tokens_overrides: not read: keys must be text" in told
    assert "callbacks: not read: YAML tags are not allowed" in told


def test_files_that_are_too_large_or_too_deep_are_refused(tmp_path: Path) -> None:
    """Before anything is made of them; so are aliases that would make billions of values."""
    assert "bytes" in refused(tmp_path, AXOLOTL_LORA + "#" * 1_000_001)
    bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
    )
    assert "too many values or aliases" in refused(tmp_path, bomb + AXOLOTL_LORA)
    (tmp_path / "large.json").write_bytes(b" " * 20_000_001)
    with pytest.raises(InvalidInput, match="at most 20,000,000"):
        read_own_recipe(tmp_path / "large.json")


def test_secrets_of_a_recipe_are_shown_nowhere(tmp_path: Path) -> None:
    """Neither by the name of their key nor by their form; the key itself is told."""
    odd = (
        'hub_token: abcdefgh\nnested: {api_key: xyz12345}\nnote: "hf_abcdefghijklmnopqrstuv"\nhf_use_auth_token: true\n'
    )
    found = recipe(tmp_path, AXOLOTL_LORA + odd)
    text = commented("mine", {}, found) + "\n".join(told_of(found, {}))
    assert {"hub_token: not shown", "nested: not shown", "note: not shown", "hf_use_auth_token: true"} <= set(
        found.left
    )
    assert not any(secret in text for secret in ("abcdefgh", "xyz12345"))


def test_rank_stabilized_lora_is_a_larger_alpha(tmp_path: Path) -> None:
    """It divides by the root of the rank: alpha 32 at rank 16 is 128 where it is divided by the rank."""
    found = recipe(tmp_path, AXOLOTL_LORA + "peft_use_rslora: true\npeft_use_dora: true\n")
    search = file_of(tmp_path, found)
    assert search.baseline.alpha.absolute == 128
    assert search.space.alpha.ratio == [1, 2, 8]
    told = "\n".join(found.left)
    assert "peft_use_rslora: true (the same as a larger alpha" in told
    assert "peft_use_dora: true (plain LoRA here)" in told


def test_paths_are_found_beside_the_recipe(tmp_path: Path) -> None:
    """Where the current folder does not have them; names of the hub and what is nowhere stay as they are."""
    (tmp_path / "rows.jsonl").write_text("{}")
    found = recipe(tmp_path, AXOLOTL_LORA.replace("teknium/GPT4-LLM-Cleaned", "rows.jsonl"))
    assert found.said["data.path"] == str(tmp_path / "rows.jsonl")
    assert found.said["model.name"] == "NousResearch/Llama-3.2-1B"


@pytest.mark.parametrize(
    ("said", "base"),
    [("", "nf4_double"), ("{bnb_4bit_use_double_quant: false}", "nf4"), ("{bnb_4bit_quant_type: fp4}", "fp4")],
)
def test_four_bits_of_axolotl(tmp_path: Path, said: str, base: str) -> None:
    """Double quantization unless it is switched off."""
    found = recipe(tmp_path, f"{AXOLOTL_QLORA}bnb_config_kwargs: {said}\n")
    assert found.said["baseline.quantization"] == base


@pytest.mark.parametrize(
    ("said", "share", "left"),
    [
        ("warmup_steps: 10\nmax_steps: 200", 0.05, False), ("warmup_steps: 10", 0.03, True),
        ("warmup_steps: 0.2", 0.2, False), ("warmup_steps: 0", 0.0, False), ("", 0.03, False),
        ("lr_scheduler: constant\nwarmup_ratio: 0.5", 0.0, True), ("max_steps: -1\nwarmup_ratio: 0.5", 0.5, False),
    ],
)  # fmt: skip
def test_warm_up_is_a_share_of_the_steps(tmp_path: Path, said: str, share: float, left: bool) -> None:
    """Steps become one where the recipe tells how many there are; where not they are told."""
    text = AXOLOTL_LORA.replace("lr_scheduler: cosine", "") + said + "\n"
    found = recipe(tmp_path, text)
    assert file_of(tmp_path, found).training.warmup == share
    assert any(line.startswith("warmup") for line in found.left) == left
