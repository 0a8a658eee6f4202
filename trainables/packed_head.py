"""A new head that each trial of a pack trains in full, such as that of a classifier: linear modules, a copy per slot.

Shape legend: k slots of a bucket (K of the whole pass), t rows of a slot, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from lorafront.trainables.packed_base import NotPackable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorafront.trainables.packed_lora import Pass


class PackedHead:
    """The linear modules of a new head, each with a weight and a bias per slot."""

    def __init__(self, model: PreTrainedModel, heads: tuple[str, ...], dtype: torch.dtype) -> None:
        """Find them.

        Args:
            model: the base.
            heads: modules that are trained in full.
            dtype: that the base computes in.

        Raises:
            NotPackable: a head has parameters that are not those of a linear module.
        """
        self.dtype: Final = dtype
        self._heads = heads
        self.modules: Final = {
            name: module
            for name, module in model.named_modules()
            if any(name == head or name.startswith(f"{head}.") for head in heads)
            and list(module.parameters(recurse=False))
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

    def peft_name(self, name: str) -> str:
        """How PEFT calls one of the parameters in a model: with its wrapper around the whole head."""
        head = next(head for head in self._heads if name.startswith(f"{head}."))
        return f"base_model.model.{head}.modules_to_save.default{name.removeprefix(head)}"

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
        x_kti = x.reshape(now.slots, -1, x.shape[-1]).to(dtype)
        outputs = []
        for slots, bucket, values in now.parts():
            heads = bucket.layout.heads
            y_kto = torch.bmm(x_kti[slots], heads[f"{name}.weight"].of(values).to(dtype).mT)
            if f"{name}.bias" in heads:
                y_kto += heads[f"{name}.bias"].of(values).to(dtype).mT
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
        x_kti = x.reshape(now.slots, -1, x.shape[-1]).to(ctx.dtype)
        gy_kto = gradients[0].reshape(now.slots, -1, gradients[0].shape[-1]).to(ctx.dtype)
        gx = torch.empty_like(x_kti)
        for slots, bucket, values in now.parts():
            heads, into = bucket.layout.heads, bucket.trained[0]
            found = {f"{name}.weight": torch.bmm(gy_kto[slots].mT, x_kti[slots])}
            if f"{name}.bias" in heads:
                found[f"{name}.bias"] = gy_kto[slots].sum(1)[..., None]
            for key, gradient in found.items():
                if now.first:
                    heads[key].of(into).copy_(gradient)
                else:
                    heads[key].of(into).add_(gradient)
            gx[slots] = torch.bmm(gy_kto[slots], heads[f"{name}.weight"].of(values).to(ctx.dtype))
        return gx.view(x.shape).to(x.dtype), None, None, None, None
