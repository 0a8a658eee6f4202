"""A configuration file of Axolotl: `axolotl train axolotl.yaml`.

Keys: `AxolotlInputConfig` of axolotl 0.19.
"""

from __future__ import annotations

from typing import Any

from lorafront.search.recipe import LENGTH, TRAIN, VALIDATION, Recipe, commented, yaml_text
from lorafront.spaces.quantization import FOUR_BIT

FILE = "axolotl.yaml"
SHAPES = {"text": "text", "pairs": "pairs", "turns": "turns"}
COMMAND = f"axolotl train {FILE}"
# How rows of each form are read: without a template of Axolotl's, because the rows have theirs.
_PAIRS = {"field_instruction": "prompt", "field_output": "completion", "format": "{instruction}",
          "no_input_format": "{instruction}"}  # fmt: skip
_READ: dict[str, dict[str, Any]] = {
    "text": {"type": "completion", "field": "text"},
    "pairs": {"type": _PAIRS},
    # `train` is true at the last turn alone.
    "turns": {"type": "chat_template", "field_messages": "messages", "message_field_training": "train",
              "roles_to_train": [], "train_on_eos": "turn"},
}  # fmt: skip


def files(recipe: Recipe) -> dict[str, str]:
    """Names of files and what they hold."""
    unsaid = [*recipe.unsaid_alpha("axolotl"), *recipe.unsaid_bias("axolotl")]
    if recipe.form == "text":
        unsaid += ["blocks of text: axolotl ends each with the end token; the trial had it at the end of documents"]
    if recipe.form == "turns":
        unsaid += ["what the chat template writes behind the end of the last turn: axolotl does not train on it"]
    return {FILE: commented(recipe, COMMAND, [LENGTH], unsaid) + yaml_text(_content(recipe))}


def _content(recipe: Recipe) -> dict[str, Any]:
    lora, arguments = recipe.lora, recipe.arguments
    return {
        "base_model": recipe.model.name,
        **({"revision_of_model": recipe.model.revision} if recipe.model.revision else {}),
        **({"attn_implementation": recipe.model.attention} if recipe.model.attention != "auto" else {}),
        **_quantization(lora.quantization),
        "bf16": recipe.dtype == "bfloat16",
        "fp16": recipe.dtype == "float16",
        **({"float32": True} if recipe.dtype == "float32" else {}),
        "tf32": False,
        "lora_r": lora.rank,
        "lora_alpha": recipe.whole_alpha,
        "lora_dropout": lora.dropout,
        "lora_target_modules": list(recipe.targets),
        **({"lora_fan_in_fan_out": True} if recipe.fan_in_fan_out else {}),
        "datasets": [_rows(recipe, TRAIN)],
        "test_datasets": [_rows(recipe, VALIDATION)],
        "dataset_prepared_path": "axolotl-prepared",
        "sequence_len": recipe.max_length,
        "excess_length_strategy": "truncate",
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "train_on_inputs": False,
        "micro_batch_size": arguments["per_device_train_batch_size"],
        "eval_batch_size": arguments["per_device_eval_batch_size"],
        "gradient_accumulation_steps": arguments["gradient_accumulation_steps"],
        "max_steps": recipe.steps,
        "optimizer": arguments["optim"],
        "learning_rate": lora.learning_rate,
        "lr_scheduler": arguments["lr_scheduler_type"],
        "warmup_steps": arguments["warmup_steps"],
        "weight_decay": lora.weight_decay,
        "max_grad_norm": arguments["max_grad_norm"],
        "gradient_checkpointing": arguments["gradient_checkpointing"],
        "seed": arguments["seed"],
        "eval_strategy": "steps",
        "eval_steps": recipe.steps,
        "output_dir": "./axolotl-out",
    }


def _quantization(kind: str) -> dict[str, Any]:
    if kind in FOUR_BIT:
        quant_type, nested = FOUR_BIT[kind]
        own = {"bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": nested}
        return {"adapter": "qlora", "load_in_4bit": True, "bnb_config_kwargs": own}
    return {"adapter": "lora", "load_in_8bit": kind == "int8", "load_in_4bit": False}


def _rows(recipe: Recipe, name: str) -> dict[str, Any]:
    return {
        "path": f"{recipe.rows_as(SHAPES[recipe.form])}/{name}",
        "ds_type": "json",
        "split": "train",
        **_READ[recipe.form],
    }
