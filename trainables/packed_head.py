"""The head that each trial of a pack trains in full, such as that of a classifier: linear modules, a copy per slot.

Shape legend: k slots of a bucket (K of the whole pass), t rows of a slot, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from lorafront.trainables.frozen_base import head_spread, initial_head
from lorafront.trainables.packed_base import NotPackable, within
from lorafront.trainables.packed_lora import by_slot

if TYPE_CHECKING:
    from lorafront.trainables.frozen_base import FrozenBase
    from lorafront.trainables.packed_bucket import Pass


class PackedHead:
    """The linear modules of a head, each with a weight and a bias per slot."""

    def __init__(self, base: FrozenBase) -> None:
        """Find them.

        Args:
            base: with its model.

        Raises:
            NotPackable: a head has parameters that are not those of a linear module.
        """
        self.dtype: Final = base.dtype
        self._heads, self._new, model = base.trained_heads, tuple(base.new_modules), base.model
        self._spread = head_spread(model.config)
        self.modules: Final = {
            name: module
            for name, module in model.named_modules()
            if within(name, self._heads) and list(module.parameters(recurse=False))
        }
        for name, module in self.modules.items():
            if type(module) is not torch.nn.Linear:
                raise NotPackable(
                    f"the head has a {type(module).__name__} ({name}), and only linear modules are packed"
                )

    def parameters(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, shape) of each, in the model's order."""
        return [
            (f"{name}.{kind}", tuple(parameter.shape))
            for name, module in self.modules.items()
            for kind, parameter in module.named_parameters()
        ]

    def fresh(self, seed: int) -> dict[str, torch.Tensor]:
        """float32: what a trial begins with, by name; drawn where the base has none, else the base's own."""
        found = {}
        for name, shape in self.parameters():
            own = self.modules[name.rpartition(".")[0]].get_parameter(name.rpartition(".")[2])
            head = next(head for head in self._heads if within(name, (head,)))
            peft_name = f"base_model.model.{head}.modules_to_save.default{name.removeprefix(head)}"
            drawn = initial_head(seed, peft_name, shape, self._spread) if within(name, self._new) else own.detach()
            found[name] = drawn.to(own.device, self.dtype).float()
        return found

    def open(self, now: Callable[[], Pass], anchor: torch.Tensor) -> None:
        """From now on the modules compute with the slots' own weights."""
        for name, module in self.modules.items():
            module.forward = partial(self._forward, name, now, anchor)

    def close(self) -> None:
        """The modules are themselves again."""
        for module in self.modules.values():
            module.__dict__.pop("forward", None)

    def _forward(self, name: str, now: Callable[[], Pass], anchor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return LinearPerSlot.apply(x, anchor, name, now(), self.dtype)  # type: ignore[no-any-return,no-untyped-call]


class LinearPerSlot(torch.autograd.Function):
    """x W^T + b with weights of each slot; backward writes their gradients into the buckets."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, name: str, now: Pass, dtype: torch.dtype
    ) -> torch.Tensor:
        """Args: x: [K b, …, i], slot by slot. name: of the module. dtype: to compute in."""
        del anchor
        x_kti = by_slot(x, now).to(dtype)
        outputs = []
        for part in now.parts():
            heads = part.bucket.layout.heads
            y_kto = torch.bmm(x_kti[part.slots], heads[f"{name}.weight"].of(part.values).to(dtype).mT)
            if f"{name}.bias" in heads:
                y_kto += heads[f"{name}.bias"].of(part.values).to(dtype).mT
            outputs.append(y_kto)
        if now.training:
            ctx.save_for_backward(x)
            ctx.name, ctx.now, ctx.dtype = name, now, dtype
        return torch.cat(outputs).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        """Gradient of the input."""
        (x,) = ctx.saved_tensors
        name, now = ctx.name, ctx.now
        x_kti, gy_kto = by_slot(x, now).to(ctx.dtype), by_slot(gradients[0], now).to(ctx.dtype)
        gx = torch.empty_like(x_kti)
        for part in now.parts():
            heads, slots = part.bucket.layout.heads, part.slots
            found = {f"{name}.weight": torch.bmm(gy_kto[slots].mT, x_kti[slots])}
            if f"{name}.bias" in heads:
                found[f"{name}.bias"] = gy_kto[slots].sum(1)[..., None]
            for key, gradient in found.items():
                now.write(heads[key].of(part.bucket.trained[0]), gradient)
            gx[slots] = torch.bmm(gy_kto[slots], heads[f"{name}.weight"].of(part.values).to(ctx.dtype))
        return gx.view(x.shape).to(x.dtype), None, None, None, None
