"""Spaces and points that are known to be good, each with its source.

Plain data, in the form in which a search file would say it.
"""

from __future__ import annotations

from typing import Any

# The grid of the two studies that this project starts from: ranks 4 to 64, alpha once and twice the rank, five groups
# of modules, NF4 against int8 against 16 bits, dropout up to 0.3, and which biases to train.
DEFAULT_SPACE: dict[str, Any] = {
    "rank": [4, 8, 16, 32, 64],
    "alpha": {"ratio": [1, 2]},
    "modules": ["query", "query+value", "query+key+value", "attention", "attention+mlp"],
    "quantization": ["nf4", "int8", "bf16"],
    "dropout": {"low": 0.0, "high": 0.3},
    "bias": ["none", "lora_only", "all"],
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
}
