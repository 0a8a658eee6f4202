"""Columns of other people's tables of results: what they are usually called, in which unit, and what a cell says. Pure.

Nothing is guessed twice: two columns that could be the same thing are a problem, and so is a cell that says nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafront.spaces.errors import Problem, did_you_mean
from lorafront.spaces.modules import in_order
from lorafront.spaces.quantization import QUANTIZATIONS
from lorafront.spaces.sizes import GIB, MIB

# Our name to the field's: PEFT, transformers, axolotl, LLaMA-Factory and torchtune say these.
HYPERPARAMETER_NAMES: dict[str, tuple[str, ...]] = {
    "rank": ("r", "lora_r", "lora_rank", "lora_dim"),
    "alpha": ("lora_alpha",),
    "alpha_ratio": ("alpha_over_rank", "alpha_over_r"),
    "modules": ("target_modules", "lora_target_modules", "lora_target", "lora_modules", "lora_attn_modules"),
    "quantization": ("quantisation", "quant", "precision", "bits", "quantization_bit"),
    "load_in_4bit": (),
    "load_in_8bit": (),
    "dropout": ("lora_dropout",),
    "bias": ("lora_bias",),
    "learning_rate": ("lr", "peak_lr"),
    "batch_size": ("per_device_train_batch_size", "train_batch_size", "micro_batch_size"),
    "gradient_accumulation": ("gradient_accumulation_steps", "grad_accum", "grad_accum_steps"),
    "weight_decay": ("wd",),
    "warmup": ("warmup_ratio",),
    "scheduler": ("lr_scheduler_type", "lr_scheduler"),
    "seed": ("random_seed",),
}
MODEL_NAMES = {"model": ("base_model", "model_name", "model_name_or_path")}
WHOLE = frozenset({"rank", "batch_size", "gradient_accumulation", "seed"})
REAL = frozenset({"alpha", "alpha_ratio", "dropout", "learning_rate", "weight_decay", "warmup"})


@dataclass(frozen=True)
class Measured:
    """A measurement: its usual names, and how many of our unit one of theirs is.

    Attributes:
        names: in our unit.
        stems: with one of `units` behind them.
        units: suffix to factor.
        low: what no value is below.
        high: what no value is above.
    """

    names: tuple[str, ...]
    stems: tuple[str, ...] = ()
    units: Mapping[str, float] = field(default_factory=dict)
    low: float = 0.0
    high: float = math.inf


# GB and MB of memory are 2**30 and 2**20 bytes, as in `spaces.sizes`; those of files are decimal, as in `objectives`.
MEMORY = {"gb": 1.0, "gib": 1.0, "mb": MIB / GIB, "mib": MIB / GIB, "bytes": 1 / GIB}
_MEMORY_STEMS = (
    "peak_vram", "max_vram", "vram", "peak_memory", "max_memory", "gpu_memory", "peak_gpu_memory", "max_gpu_memory",
    "max_memory_allocated", "peak_memory_allocated", "peak_mem", "max_mem",
)  # fmt: skip
_TIMES = ("train_time", "training_time", "train_runtime", "training_runtime", "runtime")
_SHARE = {"percent": 0.01, "pct": 0.01}
MEASUREMENTS: dict[str, Measured] = {
    "perplexity": Measured(
        ("ppl", "val_ppl", "eval_ppl", "valid_ppl", "eval_perplexity", "val_perplexity", "validation_perplexity"), low=1
    ),
    "eval_loss": Measured(("val_loss", "valid_loss", "validation_loss")),
    "accuracy": Measured(("acc", "eval_accuracy", "val_accuracy", "val_acc"), ("accuracy", "acc"), _SHARE, high=1),
    "f1": Measured(("macro_f1", "f1_macro", "eval_f1", "val_f1"), ("f1", "macro_f1"), _SHARE, high=1),
    "peak_vram_gb": Measured(_MEMORY_STEMS, _MEMORY_STEMS, MEMORY, high=10_000),
    "train_seconds": Measured(
        _TIMES,
        ("train", "training", *_TIMES),
        {"s": 1, "sec": 1, "seconds": 1, "min": 60, "minutes": 60, "h": 3600, "hours": 3600},
    ),
    "tokens_per_second": Measured(("tokens_per_sec", "train_tokens_per_second", "tokens_s")),
    "trainable_params": Measured(
        ("trainable_parameters", "num_trainable_params", "trainable"),
        ("trainable_params", "trainable_parameters", "trainable"),
        {"k": 1e3, "m": 1e6, "million": 1e6, "b": 1e9},
    ),
    "adapter_mb": Measured(
        ("adapter_size",), ("adapter", "adapter_size"), {"bytes": 1e-6, "kb": 1e-3, "mb": 1, "mib": MIB / 1e6}
    ),
}
OURS = (*HYPERPARAMETER_NAMES, *MEASUREMENTS, *MODEL_NAMES)
_PREFIX = re.compile(r"^(params|metrics|config|hparams|summary|lora_config)_")  # of what MLflow and W&B write


def _table_of_names() -> dict[str, tuple[str, float]]:
    """Every usual name to (ours, factor)."""
    found = {alias: (ours, 1.0) for ours, names in (HYPERPARAMETER_NAMES | MODEL_NAMES).items() for alias in names}
    for ours, known in MEASUREMENTS.items():
        found |= {f"{stem}_{unit}": (ours, factor) for stem in known.stems for unit, factor in known.units.items()}
        found |= dict.fromkeys(known.names, (ours, 1.0))
    return found | {ours: (ours, 1.0) for ours in OURS}


USUAL = _table_of_names()


@dataclass(frozen=True)
class Column:
    """A column of the table: its name there, and how many of our unit one of its is."""

    theirs: str
    factor: float = 1.0


def plain(name: str) -> str:
    """`params.lora_r`, `LoRA r` and `eval/loss` in the form of `USUAL`."""
    return _PREFIX.sub("", re.sub(r"[^a-z0-9%]+", "_", name.strip().lower()).strip("_").replace("%", "percent"))


def match(names: Sequence[str], chosen: Mapping[str, str]) -> tuple[dict[str, Column], list[Problem]]:
    """Which column is what, and what is not clear about it.

    Args:
        names: of the table's columns.
        chosen: our name to the table's, by the user; nothing else is taken for these.
    """
    found: dict[str, Column] = {}
    problems = []
    for ours, theirs in chosen.items():
        if ours not in OURS:
            problems.append(Problem((f"--map {ours}",), f"is none of {', '.join(OURS)}.{did_you_mean(ours, OURS)}"))
        elif theirs not in names:
            problems.append(
                Problem((f"--map {ours}",), f"no column {theirs!r}.{did_you_mean(theirs, names)} {there(names)}")
            )
        else:
            found[ours] = Column(theirs, _factor(ours, theirs))
    candidates: dict[str, list[Column]] = {}
    for name in names:
        ours, factor = USUAL.get(plain(name), ("", 1.0))
        if ours and ours not in chosen and name not in chosen.values():
            candidates.setdefault(ours, []).append(Column(name, factor))
    for ours, columns in candidates.items():
        own = [column for column in columns if column.theirs == ours] or columns
        if len(own) > 1:
            could = ", ".join(repr(column.theirs) for column in own)
            problems.append(Problem((), f"columns {could} could all be {ours}; say which: --map {ours}=COLUMN"))
        found[ours] = own[0]
    return found, problems


def there(names: Sequence[str]) -> str:
    """The table's columns, for messages."""
    return f"The table has {', '.join(names)}."


def _factor(ours: str, theirs: str) -> float:
    """From the unit at the end of a column's name; one where it has none."""
    units = MEASUREMENTS[ours].units if ours in MEASUREMENTS else {}
    return units.get(plain(theirs).rsplit("_", 1)[-1], 1.0)


def cell(ours: str, column: Column, raw: object) -> Any:
    """What a cell says, in our unit.

    Raises:
        ValueError: it says nothing that we understand; the message has the rule and the cell.
    """
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        raise ValueError("is empty")
    if ours in MEASUREMENTS:
        return _measured(ours, _number(raw) * column.factor, raw)
    if ours in WHOLE:
        value = _number(raw)
        if not value.is_integer():
            raise ValueError(f"must be an integer (got {raw!r})")
        return int(value)
    if ours in REAL:
        return _number(raw)
    if ours in {"load_in_4bit", "load_in_8bit"}:
        return _truth(raw)
    if ours == "quantization":
        return _quantization(raw)
    return _modules(raw) if ours == "modules" else str(raw).strip()


def _measured(ours: str, value: float, raw: object) -> float | int:
    known = MEASUREMENTS[ours]
    if not known.low <= value <= known.high or (not value and ours in {"peak_vram_gb", "train_seconds"}):
        raise ValueError(f"is no {ours} in this unit (got {raw!r}, which would be {value:g})")
    return round(value) if ours == "trainable_params" else value


def _number(raw: object) -> float:
    try:
        value = math.nan if isinstance(raw, bool) else float(raw)  # type: ignore[arg-type]  # what is none raises
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number (got {raw!r})")
    return value + 0.0


def _truth(raw: object) -> bool:
    word = str(raw).strip().lower()
    if word not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError(f"must be true or false (got {raw!r})")
    return word in {"true", "1", "yes"}


# The kind of four bits is seldom said; NF4 is QLoRA's, and 16 bits are bfloat16 in nearly all of today's training.
WORDS = {
    **dict.fromkeys(("4", "4_0", "4bit", "4_bit", "int4", "qlora"), "nf4"),
    **dict.fromkeys(("8", "8_0", "8bit", "8_bit"), "int8"),
    **dict.fromkeys(("16", "16_0", "16bit", "16_bit", "none", "no", "bfloat16", "lora"), "bf16"),
    **dict.fromkeys(("float16", "half"), "fp16"),
    **dict.fromkeys(("32", "32_0", "float32", "full"), "fp32"),
}


def _quantization(raw: object) -> str:
    word = re.sub(r"[^a-z0-9]+", "_", str(raw).strip().lower())
    found = WORDS.get(word, word)
    if found not in QUANTIZATIONS:
        raise ValueError(f"must be one of {', '.join(QUANTIZATIONS)}, or bits: 4, 8, 16, 32 (got {raw!r})")
    return found


def quantization_of(flags: Mapping[str, bool]) -> str:
    """What `load_in_4bit` and `load_in_8bit` come to."""
    return "nf4" if flags.get("load_in_4bit") else "int8" if flags.get("load_in_8bit") else "bf16"


def _modules(raw: object) -> str:
    """A module set from `q_proj,v_proj`, `['q_proj', 'v_proj']`, `q_proj v_proj` or a JSON list, in one order."""
    if isinstance(raw, str) and raw.strip().startswith("["):
        try:
            raw = json.loads(raw.replace("'", '"'))
        except json.JSONDecodeError as error:
            raise ValueError(f"is no list of modules (got {raw!r})") from error
    names = raw if isinstance(raw, (list, tuple)) else re.split(r"[\s,;|+]+", str(raw).strip())
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"is no list of modules (got {raw!r})")
    return "+".join(in_order(sorted({name.strip() for name in names})))
