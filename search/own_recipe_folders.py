"""What is left of a training in a folder: a PEFT adapter, or an export of ours. Only JSON is read, never a pickle."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from lorafront.search.own_recipe_fields import Fields, Values, above_zero, demand, flag, mapping, share, text, whole
from lorafront.search.own_recipe_trainer import Lookup, modules, task, trainer, variants
from lorafront.search.own_recipe_words import EVERY_LINEAR, optimizer
from lorafront.spaces.lora import LoraConfiguration

PEFT_KEYS = ("peft_type", "base_model_name_or_path", "target_modules", "task_type")
EXPORT_KEYS = ("configuration", "search", "trial", "train_rows")
STATE, ARGUMENTS, EXPORTED_ARGUMENTS = "trainer_state.json", "training_args.json", "training_arguments.json"
_IN_TRAINING = frozenset({"batch_size", "gradient_accumulation", "weight_decay", "warmup", "scheduler"})


def adapter(f: Fields, _: Lookup) -> Values:
    """`adapter_config.json` of PEFT, with the JSON files of its training under their names; returns PEFT's defaults."""
    f.put("model.name", "base_model_name_or_path", text)
    f.put("model.revision", "revision", text)
    if f.take("peft_type", text) != "LORA":
        f.refuse("peft_type", "must be LORA: nothing else is searched here")
    f.put("task", "task_type", task)
    f.put("baseline.rank", "r", whole(1))
    f.put("baseline.alpha", "lora_alpha", above_zero)
    f.put("baseline.dropout", "lora_dropout", share)
    f.put("baseline.bias", "bias", _bias)
    named = f.take("target_modules", lambda value: value)
    if isinstance(named, str) and named not in EVERY_LINEAR:  # any other text is a pattern to PEFT
        f.refuse("target_modules", "is a pattern, which has no counterpart: put the names that it means in a list")
    else:
        modules(f, "target_modules")
    variants(f)
    _state(Fields(f.take(STATE, mapping) or {}, (STATE,), f))
    arguments = Fields(f.take(ARGUMENTS, mapping) or {}, (ARGUMENTS,), f)
    trainer(arguments)
    arguments.put("training.gradient_checkpointing", "gradient_checkpointing", flag)
    arguments.finish()
    if "training.steps" in f.values and "training.epochs" in f.values:
        del f.values["training.steps"]  # the trainer's state counts what the arguments say in epochs
    return {"baseline.rank": 8, "baseline.alpha": 8.0, "baseline.dropout": 0.0, "baseline.bias": "none"}


def _state(f: Fields) -> None:
    """What transformers' trainer writes down beside a checkpoint; its log has learning rates, not the peak itself."""
    steps = f.take("max_steps", whole(-1))
    f.set("training.steps", steps if steps and steps > 0 else None)
    f.put("training.batch_size", "train_batch_size", whole(1))
    log = [entry.get("learning_rate") for entry in f.take("log_history", _list) or [] if isinstance(entry, dict)]
    rates = [float(rate) for rate in log if isinstance(rate, (int, float)) and 0 < rate < 1]
    if rates:
        f.set("baseline.learning_rate", max(rates))
        f.note(f"{STATE}.learning_rate", f"{max(rates):g} is the largest that was logged; the peak may have been more")


def export(f: Fields, _: Lookup) -> Values:
    """`lorafront.json` of an export, with its training arguments under their name."""
    f.put("model.name", "model", text)
    for name, value in (f.take("configuration", _configuration) or {}).items():
        f.set(f"training.{name}" if name in _IN_TRAINING else f"baseline.{name}", value)
    f.put("training.rows", "train_rows", whole(1))
    f.put("seed", "seed", whole(0))
    said = Fields(f.take(EXPORTED_ARGUMENTS, mapping) or {}, (EXPORTED_ARGUMENTS,), f)
    said.put("training.max_grad_norm", "max_grad_norm", above_zero)
    said.put("training.gradient_checkpointing", "gradient_checkpointing", flag)
    said.set("training.optimizer", optimizer(said.take("optim", text) or "")[0])
    f.leave("measurements", "measured there; the baseline is trained again here")
    return {}


def _configuration(value: Any) -> dict[str, Any]:
    try:
        return LoraConfiguration.model_validate(value).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError("must be a configuration as lorafront exports it") from error


def _bias(value: Any) -> str:
    demand(value in ("none", "all", "lora_only"), "must be none, all or lora_only")
    return str(value)


def _list(value: Any) -> list[Any]:
    demand(isinstance(value, list), "must be a list")
    return list(value)
