"""One autograd function per group of linears with the same input: base products plus the adapters of all slots.

Nothing of one trial enters what another one computes. Backward writes the adapters' gradients into their buckets; it
keeps the input, which the model keeps anyway, and the small inner products, and draws dropout masks again.

Shape legend: k slots of a bucket (K of the whole pass), t rows of a slot (batch times tokens), i inputs, o outputs,
r rank of the bucket, g adapted linears of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lorafront.trainables.packed_base import BaseLinear, Group
    from lorafront.trainables.packed_bucket import Part, Pass


class GroupOfLinears(torch.autograd.Function):
    """Outputs of the linears of one group: base product plus scaled B A of the (dropped) input, for all slots.

    The adapters are no inputs of the graph. `anchor` is a number that requires a gradient, so that backward is called
    where the input needs none.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, group: Group, now: Pass) -> tuple[torch.Tensor, ...]:
        """Args: x: [K b, …, i], slot by slot."""
        del anchor
        outputs = {one.name: one.product(x, now.slots, training=now.training) for one in group.linears}
        # Norms give float32 under CUDA's autocast: rounded once for all products, and kept in the smaller dtype.
        narrow = x.to(now.values[0].dtype) if now.training else x
        inner: list[torch.Tensor] = []
        for part in now.parts():
            linears = part.bucket.layout.stacked[group.name]
            if not linears:
                continue
            x_kti = by_slot(narrow, now)[part.slots].to(part.values.dtype)
            s_ktr = _inner(x_kti, part, group.name, linears, now)
            inner.append(s_ktr)
            for one, s in zip(linears, torch.split(s_ktr, part.bucket.layout.shape.rank, dim=2), strict=True):
                _add(by_slot(outputs[one.name], now)[part.slots], s, part.b(one.name), rounded=one.quantized)
        if now.training:
            ctx.save_for_backward(narrow, *inner)
            ctx.group, ctx.now, ctx.dtype = group, now, x.dtype
        return tuple(outputs.values())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        """Gradient of the input; those of the adapters go into their buckets."""
        x, *inner = ctx.saved_tensors
        group, now = ctx.group, ctx.now
        dtype = now.values[0].dtype
        gy = {one.name: gradient.to(dtype).contiguous() for one, gradient in zip(group.linears, gradients, strict=True)}
        gx = None
        if ctx.needs_input_grad[0]:
            first, *others = group.linears
            gx = first.input_gradient(gy[first.name].view(-1, first.outputs))
            for one in others:
                gx += one.input_gradient(gy[one.name].view(-1, one.outputs))
            gx = by_slot(gx, now)
        left = iter(inner)
        for part in now.parts():
            linears = part.bucket.layout.stacked[group.name]
            if linears:
                x_kti = by_slot(x, now)[part.slots]
                gy_kto = [by_slot(gy[one.name], now)[part.slots] for one in linears]
                gs_ktr = _backward_of_b(next(left), gy_kto, part, group.name, linears, now)
                _backward_of_a(x_kti, gs_ktr, None if gx is None else gx[part.slots], part, group.name, linears, now)
        return None if gx is None else gx.view(x.shape).to(ctx.dtype), None, None, None


def by_slot(x: torch.Tensor, now: Pass) -> torch.Tensor:
    """[K, t, w] of [K b, …, w]."""
    return x.reshape(now.slots, -1, x.shape[-1])


def _inner(x_kti: torch.Tensor, part: Part, group: str, linears: Sequence[BaseLinear], now: Pass) -> torch.Tensor:
    """[k, t, g r]: the input times A, scaled; exactly 0 where a trial does not adapt a linear."""
    a_kir, dropout = part.a(group), part.bucket.dropout
    if now.training and part.bucket.layout.shape.dropout:
        places_t = now.numbered(x_kti.shape[1])
        dropped = (torch.where(dropout.kept(one.name, places_t, x_kti.shape[2]), x_kti, 0) for one in linears)
        own = torch.split(a_kir, part.bucket.layout.shape.rank, dim=2)
        s_ktr = _joined([torch.bmm(x, a) for x, a in zip(dropped, own, strict=True)])
    else:
        s_ktr = torch.bmm(x_kti, a_kir)
    return part.bucket.scaled_(s_ktr, group, training=now.training)


def _add(y_kto: torch.Tensor, s_ktr: torch.Tensor, b_kro: torch.Tensor, *, rounded: bool) -> None:
    """Y += s B, in place; where dtypes differ, in float32, or after rounding as PEFT does over quantized bases."""
    if y_kto.dtype == s_ktr.dtype:
        y_kto.baddbmm_(s_ktr, b_kro)
    elif rounded:
        y_kto += torch.bmm(s_ktr, b_kro).to(y_kto.dtype)
    else:
        y_kto.copy_(y_kto + torch.bmm(s_ktr, b_kro))


def _backward_of_b(
    s_ktr: torch.Tensor,
    gy_kto: Sequence[torch.Tensor],
    part: Part,
    group: str,
    linears: Sequence[BaseLinear],
    now: Pass,
) -> torch.Tensor:
    """Write the gradients of B; return that of the unscaled inner products, [k, t, g r]."""
    layout, found = part.bucket.layout, []
    for one, s, gy in zip(linears, torch.split(s_ktr, layout.shape.rank, dim=2), gy_kto, strict=True):
        now.write(layout.b[one.name].of(part.bucket.trained[0]), torch.bmm(s.mT, gy))
        found.append(torch.bmm(gy, part.b(one.name).mT))
    return part.bucket.scaled_(_joined(found), group, training=True)


def _backward_of_a(
    x_kti: torch.Tensor,
    gs_ktr: torch.Tensor,
    gx_kti: torch.Tensor | None,
    part: Part,
    group: str,
    linears: Sequence[BaseLinear],
    now: Pass,
) -> None:
    """Write the gradient of A, and add that of the input to `gx_kti`, through the masks that forward drew."""
    a_kir, shape, dropout = part.a(group), part.bucket.layout.shape, part.bucket.dropout
    ga_kir = part.bucket.layout.a[group].of(part.bucket.trained[0])
    if not shape.dropout:
        now.write(ga_kir, torch.bmm(x_kti.mT, gs_ktr))
        if gx_kti is not None:
            gx_kti.baddbmm_(gs_ktr, a_kir.mT)
        return
    places_t = now.numbered(x_kti.shape[1])
    parts = (torch.split(tensor, shape.rank, dim=2) for tensor in (ga_kir, gs_ktr, a_kir))
    for one, ga, gs, a in zip(linears, *parts, strict=True):
        kept = dropout.kept(one.name, places_t, x_kti.shape[2])
        now.write(ga, torch.bmm(torch.where(kept, x_kti, 0).mT, gs))
        if gx_kti is not None:
            gx_kti += torch.where(kept, torch.bmm(gs, a.mT), 0)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]  # type: ignore[arg-type]
