"""Full fine-tuning: every weight of a base trains, and the base comes back as it was. What LoRA is compared with.

The weights are kept aside in main memory while they train: on the device there is one copy, as without a shared base.
In 16 bits AdamW steps on float32 copies (trainables/master_weights.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


class WholeModel:
    """The weights of a base while they train."""

    def __init__(self, model: torch.nn.Module, keep: bool = True) -> None:
        """Let every parameter train.

        Args:
            model: the base, not quantized.
            keep: its weights, to give them back.
        """
        self._model = model
        self._before = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()} if keep else {}
        model.requires_grad_(requires_grad=True)

    @torch.no_grad()
    def give_back(self) -> None:
        """The weights as they were, frozen."""
        self._model.requires_grad_(requires_grad=False)
        for name, parameter in self._model.named_parameters():
            parameter.copy_(self._before[name])
        self._before = {}


def seeded_head(modules: Sequence[str], name: str) -> str | None:
    """The name under which PEFT would train this parameter of a new head; None where it is no part of one.

    A head is drawn by its name, so it starts the same whether the rest is adapted or trained.
    """
    for module in modules:
        if name.startswith(f"{module}."):
            return f"base_model.model.{module}.modules_to_save.default{name.removeprefix(module)}"
    return None


def counts(model: torch.nn.Module) -> tuple[int, int]:
    """(trained parameters, all of them); what is tied counts once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def save_weights(model: torch.nn.Module, file: Path) -> None:
    """Write every parameter, each once."""
    save_file({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, file)


@torch.no_grad()
def load_weights(model: torch.nn.Module, file: Path) -> None:
    """The inverse of `save_weights`."""
    found = load_file(file)
    for name, parameter in model.named_parameters():
        parameter.copy_(found[name])
