"""A configuration of LLaMA-Factory: `llamafactory-cli train llamafactory.yaml`, with its `dataset_info.json`.

Keys: `ModelArguments`, `DataArguments`, `TrainingArguments` and `FinetuningArguments` of llamafactory 0.9.5.
"""

from __future__ import annotations

import json
from typing import Any

from lorafront.search.recipe import LENGTH, TRAIN, VALIDATION, Recipe, commented, yaml_text
from lorafront.spaces.quantization import FOUR_BIT

FILE, DATASETS = "llamafactory.yaml", "dataset_info.json"
# Its template without words of its own ends no answer, so the rows bring the end token.
SHAPES = {"text": "text", "pairs": "ended", "turns": "turns"}
COMMAND = f"llamafactory-cli train {FILE}"
ATTENTION = {"auto": "auto", "sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}
_READ: dict[str, dict[str, Any]] = {
    "text": {"columns": {"prompt": "text"}},
    "pairs": {"columns": {"prompt": "prompt", "response": "completion"}},
    "turns": {"formatting": "sharegpt", "columns": {"messages": "messages"},
              "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                       "system_tag": "system"}},
}  # fmt: skip


def files(recipe: Recipe) -> dict[str, str]:
    """Names of files and what they hold."""
    unsaid = [*recipe.unsaid_alpha("llamafactory"), *recipe.unsaid_bias("llamafactory")]
    if recipe.form == "text":
        unsaid += [
            "blocks of text: llamafactory ends each with the end token; the trial had it at the end of documents"
        ]
    remarks = [LENGTH]
    if recipe.form == "turns":
        remarks += ["Without `template` llamafactory takes the chat template of the tokenizer."]
    return {
        FILE: commented(recipe, COMMAND, remarks, unsaid) + yaml_text(_content(recipe)),
        DATASETS: json.dumps({"train": _rows(recipe, TRAIN), "validation": _rows(recipe, VALIDATION)}, indent=2) + "\n",
    }


def _content(recipe: Recipe) -> dict[str, Any]:
    lora, kind = recipe.lora, recipe.lora.quantization
    quantized: dict[str, Any] = {}
    if kind in FOUR_BIT:
        quant_type, nested = FOUR_BIT[kind]
        quantized = {"quantization_bit": 4, "quantization_type": quant_type, "double_quantization": nested}
    elif kind == "int8":
        quantized = {"quantization_bit": 8}
    templates: dict[str, dict[str, Any]] = {"pairs": {"template": "empty"}, "turns": {"mask_history": True}}
    arguments = {name: value for name, value in recipe.arguments.items() if name != "gradient_checkpointing"}
    return {
        "model_name_or_path": recipe.model.name,
        **({"model_revision": recipe.model.revision} if recipe.model.revision else {}),
        "flash_attn": ATTENTION[recipe.model.attention],
        **({"quantization_method": "bnb", **quantized} if quantized else {}),
        "stage": "pt" if recipe.form == "text" else "sft",
        "do_train": True,
        "do_eval": True,
        "finetuning_type": "lora",
        "lora_rank": lora.rank,
        "lora_alpha": recipe.whole_alpha,
        "lora_dropout": lora.dropout,
        "lora_target": ",".join(recipe.targets),
        "dataset": "train",
        "eval_dataset": "validation",
        "dataset_dir": ".",
        **templates.get(recipe.form, {}),
        "cutoff_len": recipe.max_length,
        "packing": False,
        "disable_gradient_checkpointing": not recipe.arguments["gradient_checkpointing"],
        **arguments,
        "report_to": "none",
        "output_dir": "llamafactory-out",
    }


def _rows(recipe: Recipe, name: str) -> dict[str, Any]:
    return {"file_name": f"{recipe.rows_as(SHAPES[recipe.form])}/{name}", **_READ[recipe.form]}
