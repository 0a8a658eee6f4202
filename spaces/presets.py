"""Spaces and points that are known to be good, each with its source.

Plain data, in the form in which a search file would say it.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Preset:
    """A configuration that a published guide recommends.

    Attributes:
        name: for people.
        point: in the words of a start point in a search file.
        source: who recommends it.
    """

    name: str
    point: dict[str, Any]
    source: str


# Configurations to try first. The tiers are sizes of GPU memory for which each is commonly recommended (7 B models);
# none was measured here. The order is that in which a small budget takes them: the default, the two ends of the
# front, then what lies between.
PRESETS: tuple[Preset, ...] = (
    Preset(
        "recommended default",
        {"rank": 16, "alpha": {"ratio": 2}, "modules": "attention", "quantization": "nf4", "dropout": 0.05,
         "bias": "none", "learning_rate": 2e-4},
        "NF4 and 2e-4: Dettmers et al. 2023 (QLoRA), appendix B.2; alpha twice the rank: Raschka 2023, Practical Tips "
        "for Finetuning LLMs Using LoRA; rank 16: Unsloth's LoRA hyperparameters guide",
    ),
    Preset(
        "6-8 GB",
        {"rank": 8, "alpha": {"ratio": 2}, "modules": "query+value", "quantization": "nf4_double", "dropout": 0.05,
         "bias": "none", "learning_rate": 3e-4},
        "alpaca-lora, defaults of finetune.py (8, 16, query, value, 3e-4); double quantization: Dettmers et al. 2023",
    ),
    Preset(
        "over 16 GB",
        {"rank": 256, "alpha": {"ratio": 2}, "modules": "attention+mlp", "quantization": "bf16", "dropout": 0.05,
         "bias": "none", "learning_rate": 3e-4},
        "Raschka 2023, Practical Tips for Finetuning LLMs Using LoRA: all layers, rank 256, alpha 512",
    ),
    Preset(
        "8-12 GB",
        {"rank": 16, "alpha": {"ratio": 1}, "modules": "attention+mlp", "quantization": "nf4", "dropout": 0.0,
         "bias": "none", "learning_rate": 2e-4},
        "Unsloth's LoRA hyperparameters guide: alpha equal to the rank, all linear layers, no dropout, 2e-4",
    ),
    Preset(
        "12-16 GB",
        {"rank": 16, "alpha": {"ratio": 1}, "modules": "attention", "quantization": "int8", "dropout": 0.05,
         "bias": "none", "learning_rate": 3e-4},
        "alpaca-lora, the official weights of its README (16, alpha 16, query, key, value, output, 8 bits)",
    ),
)  # fmt: skip
