"""What is known of a trial before it runs: numbers that follow from its configuration and the model's config alone."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.modules import is_head
from lorafront.trainables.model_facts import ModelFacts
from lorafront.trainables.models import compute_dtype

ADAPTER_BYTES = torch.float32.itemsize  # PEFT keeps A and B in float32 whatever the base is stored in
KNOWN = ("trainable_params", "adapter_mb")


def known_measurements(
    lora: LoraConfiguration, facts: ModelFacts, adapted: Collection[str], on: torch.device, *, new_head: bool = False
) -> dict[str, float]:
    """`trainable_params` and `adapter_mb` (10**6 bytes) as the session will report them.

    Args:
        lora: the configuration.
        facts: of the model.
        adapted: names of the linear modules that get an adapter.
        on: where the trial trains; it decides in which dtype biases are stored.
        new_head: the task puts a new head on the model, which is trained as well. Its size depends on the labels and
            on what the weights lack, so it is left out, and the numbers are lower bounds.
    """
    if lora.method == "full":
        return {"trainable_params": facts.parameters, "adapter_mb": _stored(lora, on) * facts.parameters / 1e6}
    matrices = sum(lora.rank * sum(facts.linears[name]) for name in adapted)
    biases = _bias_elements(lora, facts, adapted, new_head=new_head)
    stored = _stored(lora, on) if biases else 0
    return {"trainable_params": matrices + biases, "adapter_mb": (ADAPTER_BYTES * matrices + stored * biases) / 1e6}


def _stored(lora: LoraConfiguration, on: torch.device) -> int:
    """Bytes of a parameter of the base that is not quantized."""
    return compute_dtype(lora.quantization, on).itemsize


def _bias_elements(lora: LoraConfiguration, facts: ModelFacts, adapted: Collection[str], *, new_head: bool) -> int:
    if lora.bias == "all":
        return sum(size for name, size in facts.biases.items() if not (new_head and is_head(name)))
    if lora.bias == "lora_only":
        return sum(facts.biases.get(f"{name}.bias", 0) for name in adapted)
    return 0
