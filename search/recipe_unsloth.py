"""A configuration of Unsloth's command line: `unsloth train --config unsloth.yaml`.

Keys: `Config` of `unsloth_cli.config` in unsloth 2026.10.9. It says less than the others.
"""

from __future__ import annotations

from typing import Any

from lorafront.search.recipe import LENGTH, TRAIN, VALIDATION, Recipe, commented, yaml_text
from lorafront.spaces.quantization import FOUR_BIT

FILE = "unsloth.yaml"
SHAPES = {"text": "text", "pairs": "text", "turns": "turns"}
COMMAND = f"unsloth train --config {FILE}"
OWN_CLIP = 1.0  # the gradient norm that transformers clips to by itself
_FORMATS = {"text": "raw", "pairs": "raw", "turns": "chatml"}


def files(recipe: Recipe) -> dict[str, str]:
    """Names of files and what they hold."""
    return {FILE: commented(recipe, COMMAND, [LENGTH], _unsaid(recipe)) + yaml_text(_content(recipe))}


def _content(recipe: Recipe) -> dict[str, Any]:
    lora, arguments = recipe.lora, recipe.arguments
    return {
        "model": recipe.model.name,
        "data": {
            "local_dataset": [f"{recipe.rows_as(SHAPES[recipe.form])}/{TRAIN}"],
            "format_type": _FORMATS[recipe.form],
        },
        "training": {
            "training_type": "lora",
            "max_seq_length": recipe.max_length,
            "load_in_4bit": lora.quantization in FOUR_BIT,
            "output_dir": "./unsloth-out",
            "num_epochs": 1,
            "max_steps": recipe.steps,
            "learning_rate": lora.learning_rate,
            "batch_size": arguments["per_device_train_batch_size"],
            "gradient_accumulation_steps": arguments["gradient_accumulation_steps"],
            "warmup_steps": arguments["warmup_steps"],
            "weight_decay": lora.weight_decay,
            "random_seed": arguments["seed"],
            "packing": False,
            "train_on_completions": recipe.form == "turns",
            "gradient_checkpointing": "true" if arguments["gradient_checkpointing"] else "none",
        },
        "lora": {
            "lora_r": lora.rank,
            "lora_alpha": recipe.whole_alpha,
            "lora_dropout": lora.dropout,
            "target_modules": ",".join(recipe.targets),
        },
    }


def _unsaid(recipe: Recipe) -> list[str]:
    lora, arguments = recipe.lora, recipe.arguments
    held_out = f"{recipe.rows_as(SHAPES[recipe.form])}/{VALIDATION}"
    found = [
        *recipe.unsaid_alpha("unsloth"),
        *recipe.unsaid_bias("unsloth"),
        f"optimizer {arguments['optim']}: unsloth takes adamw_8bit on CUDA",
        f"evaluation: unsloth's command line does none; the rows are in {held_out}",
    ]
    if lora.quantization == "int8":
        found += ["quantization int8: unsloth stores in 4 or in 16 bits; load_in_4bit is off, which needs more memory"]
    elif lora.quantization in {"nf4", "fp4"}:
        found += [f"quantization {lora.quantization}: unsloth's 4 bits are NF4 with quantized constants"]
    elif lora.quantization not in FOUR_BIT:
        found += [f"base in {lora.quantization}: unsloth chooses the type of a base in 16 bits by the GPU"]
    if arguments["lr_scheduler_type"] != "linear":
        found += [f"scheduler {lora.scheduler}: unsloth's command line has linear only"]
    if arguments["max_grad_norm"] != OWN_CLIP:
        found += [f"clipping at {arguments['max_grad_norm']:g}: unsloth clips at {OWN_CLIP:g}"]
    if recipe.model.revision:
        found += [f"revision {recipe.model.revision} of the model"]
    if recipe.model.attention != "auto":
        found += [f"attention {recipe.model.attention}: unsloth has its own"]
    if recipe.form == "pairs":
        found += ["prompts are not masked: unsloth reads prompt and completion without a template as one text"]
    if recipe.form == "turns":
        found += ["every turn of the assistant is trained on, not only the last one"]
    return found
