"""A configuration for TRL's own fine-tuning script: `trl sft --config trl.yaml`.

Keys: `ScriptArguments`, `SFTConfig` and `ModelConfig` of trl 1.16.
"""

from __future__ import annotations

from typing import Any

from lorafront.search.recipe import LENGTH, Recipe, commented, yaml_text
from lorafront.spaces.quantization import FOUR_BIT

FILE = "trl.yaml"
SHAPES = {"text": "text", "pairs": "pairs", "turns": "prompted"}
COMMAND = f"trl sft --config {FILE}"


def files(recipe: Recipe) -> dict[str, str]:
    """Names of files and what they hold."""
    unsaid = [*recipe.unsaid_alpha("trl"), *recipe.unsaid_bias("trl's script")]
    if recipe.form == "text":
        unsaid += ["blocks of text: trl puts the begin and end tokens around each; the trial had them around documents"]
    return {FILE: commented(recipe, COMMAND, [LENGTH], unsaid) + yaml_text(_content(recipe))}


def _content(recipe: Recipe) -> dict[str, Any]:
    lora, kind = recipe.lora, recipe.lora.quantization
    four_bit: dict[str, Any] = {}
    if kind in FOUR_BIT:
        quant_type, nested = FOUR_BIT[kind]
        four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": quant_type, "use_bnb_nested_quant": nested}
    return {
        "model_name_or_path": recipe.model.name,
        **({"model_revision": recipe.model.revision} if recipe.model.revision else {}),
        "dtype": recipe.dtype,
        **({"attn_implementation": recipe.model.attention} if recipe.model.attention != "auto" else {}),
        **four_bit,
        **({"load_in_8bit": True} if kind == "int8" else {}),
        "use_peft": True,
        "lora_r": lora.rank,
        "lora_alpha": recipe.whole_alpha,
        "lora_dropout": lora.dropout,
        "lora_target_modules": list(recipe.targets),
        "dataset_name": recipe.rows_as(SHAPES[recipe.form]),
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        "max_length": recipe.max_length,
        "packing": False,
        **recipe.arguments,
        "eval_strategy": "steps",
        "eval_steps": recipe.steps,
        "report_to": "none",
        "output_dir": "trl-out",
    }
