"""TRL's recipes: `trl sft --config recipe.yaml`, or the arguments of `SFTConfig` and `ModelConfig` as JSON.

Names and defaults: its `ModelConfig`, `SFTConfig` and `ScriptArguments` of July 2026.
"""

from __future__ import annotations

from lorafront.search.own_recipe_fields import Fields, Values, above_zero, flag, share, text, whole
from lorafront.search.own_recipe_trainer import (
    DEFAULTS,
    Lookup,
    attention,
    entries,
    hub_model,
    modules,
    split,
    task,
    trainer,
    variants,
)
from lorafront.search.own_recipe_words import DTYPES

KEYS = ("use_peft", "dataset_name", "lora_task_type", "use_bnb_nested_quant", "dataset_text_field", "max_seq_length",
        "assistant_only_loss", "completion_only_loss", "lora_r", "lora_target_modules",
        "model_name_or_path")  # fmt: skip


def read(f: Fields, _: Lookup) -> Values:
    """Take what has a counterpart; returns TRL's own defaults."""
    hub_model(f)
    lora = f.take("use_peft", flag)
    if lora is False:
        f.refuse("use_peft", "must be true: nothing but LoRA is searched here")
    elif lora is None:
        f.note("use_peft", "not said, which is full fine-tuning to TRL; read as true")
    f.put("baseline.rank", "lora_r", whole(1))
    f.put("baseline.alpha", "lora_alpha", above_zero)
    f.put("baseline.dropout", "lora_dropout", share)
    modules(f, "lora_target_modules")
    variants(f)
    f.put("task", "lora_task_type", task)
    _base(f)
    attention(f, "attn_implementation")
    trainer(f)
    f.put("training.gradient_checkpointing", "gradient_checkpointing", flag)
    for key in ("max_seq_length", "max_length"):  # what it was called before, and what counts
        f.put("data.max_length", key, whole(2))
    _data(f)
    return {
        **DEFAULTS, "baseline.rank": 16, "baseline.alpha": 32.0, "baseline.dropout": 0.05,
        "baseline.modules": "query+value",  # PEFT's own choice for most models
        "baseline.learning_rate": 2e-5, "baseline.quantization": "fp32", "data.max_length": 1024,
        "training.gradient_checkpointing": True,
    }  # fmt: skip


def _base(f: Fields) -> None:
    """Weights that are not quantized are held in `dtype`; `auto` is the model's own, nearly always bfloat16."""
    four, eight = f.take("load_in_4bit", flag), f.take("load_in_8bit", flag)
    kind, double = f.take("bnb_4bit_quant_type", text), f.take("use_bnb_nested_quant", flag)
    old, new = f.take("torch_dtype", text), f.take("dtype", text)
    name = new or old
    held = DTYPES.get(name, "bf16") if name else None
    in_four = "fp4" if kind == "fp4" else "nf4_double" if double else "nf4"
    f.set("baseline.quantization", in_four if four else "int8" if eight else held)
    for key in ("bf16", "fp16"):
        f.leave(key, "what the weights are held in decides here: baseline.quantization" if f.take(key, flag) else "")


def _data(f: Fields) -> None:
    """TRL tells the format of rows by their columns, of which a recipe says little."""
    found = entries(f, "datasets")
    for one in found:
        one.put("data.path", "path", text)
        one.put("data.config_name", "name", text)
        split(one, "split")
        one.finish()
    if found:
        f.leave("dataset_name", "datasets decides")
    else:
        f.put("data.path", "dataset_name", text)
        f.put("data.config_name", "dataset_config", text)
        split(f, "dataset_train_split")
    column = f.take("dataset_text_field", text)
    if f.take("assistant_only_loss", flag):
        f.set("data.format", "messages")
    elif f.take("completion_only_loss", flag):
        f.set("data.format", "prompt_completion")
    elif column:
        f.set("data.format", "text")
        f.set("data.columns", None if column == "text" else {"text": column})
    elif "data.path" in f.values:
        f.note("data.format", "TRL tells it by the columns; choose the one that the rows have")
