"""LLaMA-Factory's recipes: `llamafactory-cli train recipe.yaml`. Names and defaults: its `hparams` of August 2026."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from lorafront.search.own_recipe_fields import Fields, Values, above_zero, demand, flag, mapping, share, text, whole
from lorafront.search.own_recipe_trainer import (
    DEFAULTS,
    Lookup,
    dtype,
    evaluation,
    hub_model,
    modules,
    split,
    trainer,
    variants,
)

KEYS = ("finetuning_type", "lora_rank", "lora_target", "cutoff_len", "stage", "template", "dataset", "dataset_dir",
        "quantization_bit", "model_name_or_path")  # fmt: skip
INDEX = "dataset_info.json"
FOUR, EIGHT = 4, 8  # bits
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}


def read(f: Fields, lookup: Lookup) -> Values:
    """Take what has a counterpart; returns LLaMA-Factory's own defaults."""
    hub_model(f)
    if f.take("finetuning_type", text) not in {"lora", None}:
        f.refuse("finetuning_type", "must be lora: nothing else is searched here")
    stage = f.take("stage", text)
    if stage not in {"sft", "pt", None}:
        f.refuse("stage", "must be sft or pt: no trial here compares with anything else")
    f.put("baseline.rank", "lora_rank", whole(1))
    f.put("baseline.alpha", "lora_alpha", above_zero)
    f.put("baseline.dropout", "lora_dropout", share)
    modules(f, "lora_target")
    variants(f)
    _base(f)
    kernel = f.take("flash_attn", text)
    f.set("model.attention", {"disabled": "eager", "sdpa": "sdpa"}.get(kernel or ""))
    if kernel not in {"auto", "disabled", "sdpa"}:
        f.leave(
            "flash_attn", "the model's own choice here; model: {name: ..., attention: flash_attention_2} asks for it"
        )
    trainer(f)
    f.set("training.gradient_checkpointing", not f.take("disable_gradient_checkpointing", flag))
    f.put("data.max_length", "cutoff_len", whole(2))
    f.put("data.train_rows", "max_samples", whole(1))
    evaluation(f, "val_size")
    if f.take("train_on_prompt", flag):
        f.leave("train_on_prompt", "prompts are not trained on here")
    _data(f, lookup, raw_text=stage == "pt")
    return {
        **DEFAULTS, "baseline.rank": 8, "baseline.alpha": 2.0 * f.values.get("baseline.rank", 8),
        "baseline.dropout": 0.0, "baseline.modules": "all-linear", "baseline.learning_rate": 5e-5,
        "data.max_length": 2048,
    }  # fmt: skip


def _base(f: Fields) -> None:
    """Its 4 bits are NF4 with double quantization unless it says otherwise; 16 bits where it computes in them."""
    bits, kind = f.take("quantization_bit", whole(1)), f.take("quantization_type", text)
    single = f.take("double_quantization", flag) is False
    held = dtype(f, ("bf16", "bf16"), ("pure_bf16", "bf16"), ("fp16", "fp16"))
    if f.take("quantization_method", text) not in {"bnb", "bitsandbytes"}:
        f.leave("quantization_method", "bitsandbytes here")
    if bits not in {FOUR, EIGHT}:
        f.leave("quantization_bit", "4 or 8 here; read as 4")
    in_four = "fp4" if kind == "fp4" else "nf4" if single else "nf4_double"
    f.set("baseline.quantization", held or "fp32" if bits is None else "int8" if bits == EIGHT else in_four)


def _data(f: Fields, lookup: Lookup, *, raw_text: bool) -> None:
    folder = f.take("dataset_dir", text) or "data"
    for key, place in (("dataset", "data.path"), ("eval_dataset", "data.eval_path")):
        names = f.take(key, _listed) or []
        if not names:
            continue
        if len(names) > 1:
            f.leave(key, "one data set here: the first")
        entry, found_in = lookup(folder, names[0])
        f.set(place, _path(entry or {}, found_in) or names[0])
        if entry is None and folder != "ONLINE":  # then names are the hub's
            f.note(f"{key} {names[0]}", f"no {INDEX} has it; put its path into {place}, and its format")
        if place == "data.path" and raw_text:
            f.set("data.format", "text")
        if place == "data.path" and entry is not None:
            _entry(Fields(entry, (INDEX, names[0]), f), raw_text=raw_text)


def _listed(value: Any) -> list[str]:
    found = value.split(",") if isinstance(value, str) else value
    demand(isinstance(found, list) and all(text(name).strip() for name in found), "must be names of data sets")
    return [name.strip() for name in found]


def _path(entry: dict[str, Any], folder: str) -> str | None:
    name, url = entry.get("file_name"), entry.get("hf_hub_url")
    return url if isinstance(url, str) else str(PurePath(folder) / name) if isinstance(name, str) else None


def _entry(f: Fields, *, raw_text: bool) -> None:
    """What `dataset_info.json` says of a data set (its `data/parser.py`)."""
    f.taken |= {"file_name", "hf_hub_url", "ms_hub_url", "om_hub_url"}
    f.put("data.config_name", "subset", text)
    split(f, "split")
    messages = f.take("formatting", text) not in {"alpaca", None}
    columns, tags = f.take("columns", _names) or {}, f.take("tags", _names) or {}
    if messages:
        ours = {"messages": "messages"}
        if (tags.get("role_tag", "from"), tags.get("content_tag", "value")) != ("role", "content"):
            f.note(f"{INDEX} tags", "messages have role and content here; convert rows of another form")
    else:
        ours = {"text": "prompt"} if raw_text else {"instruction": "prompt", "input": "query", "output": "response"}
    f.set("data.format", "messages" if messages else "text" if raw_text else "alpaca")
    theirs = {name: columns.get(key, _COLUMNS[key]) for name, key in ours.items()}
    f.set("data.columns", {name: column for name, column in theirs.items() if name != column} or None)
    f.finish()


def _names(value: Any) -> dict[str, str]:
    return {str(key): text(name) for key, name in mapping(value).items() if name is not None}
