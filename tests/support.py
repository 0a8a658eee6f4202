"""Constants and builders that tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.config import TrialConfig

PROJECT = Path(__file__).parent.parent
TINY_LLAMA = PROJECT / "examples" / "tiny-llama"
SHARED_DATA = PROJECT.parent / "shared" / "data"

LORA = {
    "rank": 4,
    "alpha": 8.0,
    "modules": "attention",
    "quantization": "bf16",
    "dropout": 0.0,
    "bias": "none",
    "learning_rate": 5e-3,
    "batch_size": 4,
    "gradient_accumulation": 1,
    "weight_decay": 0.0,
    "warmup": 0.1,
    "scheduler": "linear",
}

MakeTrial = Callable[..., TrialConfig]


def lora(**changes: Any) -> LoraConfiguration:
    """A configuration that trains in a moment."""
    return LoraConfiguration(**{**LORA, **changes})
