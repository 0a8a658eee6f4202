"""What the recipes of several trainers say in the same names, which are those of `transformers.TrainingArguments`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lorafront.search.own_recipe_fields import (
    Fields,
    Values,
    above_zero,
    at_least_zero,
    demand,
    flag,
    shown,
    text,
    whole,
)
from lorafront.search.own_recipe_fields import share as below_one
from lorafront.search.own_recipe_words import TASKS, module_names, module_set, optimizer, scheduler

# (folder, name) to LLaMA-Factory's entry of a data set, None where there is none, and the folder that has it.
Lookup = Callable[[str, str], tuple[dict[str, Any] | None, str]]
RSLORA = "rslora"  # a place of which `own_recipe` makes a larger alpha
NUMBERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "baseline.learning_rate": ("learning_rate", above_zero),
    "training.batch_size": ("per_device_train_batch_size", whole(1)),
    "training.eval_batch_size": ("per_device_eval_batch_size", whole(1)),
    "training.gradient_accumulation": ("gradient_accumulation_steps", whole(1)),
    "training.weight_decay": ("weight_decay", at_least_zero),
    "training.max_grad_norm": ("max_grad_norm", above_zero),
    "seed": ("seed", whole(0)),
}
DEFAULTS: Values = {
    "training.batch_size": 8, "training.gradient_accumulation": 1, "training.epochs": 3.0, "training.warmup": 0.0,
    "training.scheduler": "linear", "training.optimizer": "adamw", "training.max_grad_norm": 1.0, "seed": 42,
    "task": "causal_lm", "baseline.bias": "none",
}  # fmt: skip
_FIRST_ROWS = re.compile(r"train(?:\[:(\d{1,9})\])?")


def trainer(
    f: Fields,
    names: dict[str, str] | None = None,
    *,
    optimizer_key: str = "optim",
    scheduler_key: str = "lr_scheduler_type",
    epochs_key: str = "num_train_epochs",
) -> None:
    """How long and how it trains.

    Args:
        f: the recipe.
        names: keys that are called otherwise than by transformers, by place.
        optimizer_key: of the optimizer.
        scheduler_key: of the scheduler.
        epochs_key: of the number of epochs.
    """
    for place, (key, read) in NUMBERS.items():
        f.put(place, (names or {}).get(place, key), read)
    _length(f, epochs_key)
    if found := f.take(optimizer_key, text):
        ours, said = optimizer(found)
        f.set("training.optimizer", ours)
        f.leave(optimizer_key, said)
    if found := f.take(scheduler_key, text):
        ours, said = scheduler(found)
        f.set("training.scheduler", ours)
        f.leave(scheduler_key, said)
    _warmup(f, never=found == "constant")


def _length(f: Fields, epochs_key: str) -> None:
    """Steps come before epochs in every trainer; -1 is none."""
    steps = f.take("max_steps", whole(-1))
    if steps is not None and steps > 0:
        f.set("training.steps", steps)
        f.leave(epochs_key, "max_steps decides")
    else:
        f.put("training.epochs", epochs_key, above_zero)


def _warmup(f: Fields, *, never: bool) -> None:
    """Here a share of the steps. Where steps are given they count; a part of one is a share (transformers 5)."""
    share, steps = f.take("warmup_ratio", below_one), f.take("warmup_steps", at_least_zero)
    total = f.values.get("training.steps")
    if never:
        f.leave("warmup_ratio", "the scheduler constant has none")
        f.leave("warmup_steps", "the scheduler constant has none")
        share = 0.0
    elif steps is not None and 0 < steps < 1:
        share = steps
    elif steps and total and steps < total:
        share = steps / total
    elif steps:
        f.leave("warmup_steps", "here a share of the steps, whose number the recipe does not tell")
    elif steps == 0 and share is None:
        share = 0.0
    f.set("training.warmup", share)


def evaluation(f: Fields, key: str) -> None:
    """Rows to evaluate on; elsewhere also a share of them."""
    size = f.take(key, at_least_zero)
    if size is not None and size >= 1:
        f.put("data.eval_rows", key, whole(1))
    else:
        f.leave(key, "here a number of rows, data.eval_rows; without it a tenth, 500 at most")


def modules(f: Fields, key: str, *others: str) -> None:
    """Args: others: names that come to those of the key."""
    names = [*(f.take(key, module_names) or []), *others]
    f.set("baseline.modules", module_set(names) if names else None)


def attention(f: Fields, key: str) -> None:
    """Which implementation of attention; those that need another package are the user's to ask for."""
    found = f.take(key, text)
    if found in {"sdpa", "eager"}:
        f.set("model.attention", found)
    elif found != "auto":
        f.leave(key, "the model's own choice here; model: {name: ..., attention: flash_attention_2} asks for it")


def variants(f: Fields, prefix: str = "") -> None:
    """Kinds of LoRA that are not trained here."""
    if f.take(f"{prefix}use_rslora", flag):
        f.set(RSLORA, value=True)
        f.leave(f"{prefix}use_rslora", "the same as a larger alpha, which stands in the baseline")
    if f.take(f"{prefix}use_dora", flag):
        f.leave(f"{prefix}use_dora", "plain LoRA here")


def dtype(f: Fields, *flags: tuple[str, str]) -> str | None:
    """What weights that are not quantized are held in.

    Args:
        f: the recipe.
        flags: (key, ours); the first that is true or `auto` counts.
    """
    held = [ours for key, ours in flags if f.take(key, lambda value: value == "auto" or flag(value))]
    return held[0] if held else None


def hub_model(f: Fields) -> None:
    """`model_name_or_path` and its revision."""
    f.put("model.name", "model_name_or_path", text)
    revision = f.take("model_revision", text)
    f.set("model.revision", None if revision == "main" else revision)


def task(value: Any) -> str:
    """PEFT's name of a task as ours."""
    demand(isinstance(value, str) and value in TASKS, f"must be one of {', '.join(TASKS)}")
    return TASKS[value]


def split(f: Fields, key: str) -> None:
    """`train` is what is read here, `train[:1000]` its first rows."""
    found = _FIRST_ROWS.fullmatch(f.take(key, text) or "train")
    if found is None:
        f.leave(key, "the split that is called train is read here")
    elif found[1]:
        f.set("data.train_rows", max(1, int(found[1])))


def entries(f: Fields, key: str) -> list[Fields]:
    """The data sets of a list: the first as fields, none where it says none; the others are left."""

    def read(value: Any) -> list[dict[str, Any]]:
        demand(
            isinstance(value, list) and all(isinstance(entry, dict) for entry in value), "must be a list of mappings"
        )
        return list(value)

    found = f.take(key, read) or []
    for index, entry in enumerate(found[1:], start=1):
        f.note(f"{key}[{index}]", f"{shown(key, entry)} (one data set here: the first)")
    return [Fields(found[0], (key, 0), f)] if found else []
