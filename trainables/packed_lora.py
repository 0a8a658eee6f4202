"""Adapters of many trials, stacked: one autograd function per group of linears with the same input.

Trials of a pack whose adapters have the same shape stand in one bucket: `A[k, i, g r]` for a group of g linears,
`B[k, r, o]` for each linear, all views of one flat float32 buffer with a row per trial. Ranks are filled up with zeros,
whose gradients are exactly zero, so they stay zero. Nothing of one trial enters what another one computes.

Shape legend: k slots of a bucket (K of the whole pass), t rows of a slot (batch times tokens), i inputs, o outputs,
r rank of the bucket, g adapted linears of a group, n numbers of a trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from lorafront.trainables.keyed_random import keep

if TYPE_CHECKING:
    from lorafront.trainables.packed_base import BaseLinear, Group

LEAST_RANK = 4


@dataclass(frozen=True)
class Shape:
    """What trials of one bucket have in common.

    Attributes:
        rank: that all are filled up to, a power of two.
        targets: names of the linears that any of them adapts.
        dropout: whether masks are drawn.
    """

    rank: int
    targets: frozenset[str]
    dropout: bool


def bucket_rank(rank: int) -> int:
    """The next power of two, 4 at least."""
    return max(LEAST_RANK, 1 << (rank - 1).bit_length())


@dataclass(frozen=True)
class Span:
    """Where a matrix stands in a trial's row of numbers."""

    start: int
    shape: tuple[int, int]

    @property
    def stop(self) -> int:
        """Behind its last number."""
        return self.start + self.shape[0] * self.shape[1]

    def of(self, flat_kn: torch.Tensor) -> torch.Tensor:
        """[k, rows, columns], a view."""
        return flat_kn[:, self.start : self.stop].view(-1, *self.shape)


class Layout:
    """Where the matrices of a bucket's trials stand."""

    def __init__(self, shape: Shape, groups: Sequence[Group], heads: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Lay them out.

        Args:
            shape: of the bucket.
            groups: of the base.
            heads: names and shapes of parameters that each trial trains in full.
        """
        self.shape: Final = shape
        self.stacked: Final = {
            group.name: [one for one in group.linears if one.name in shape.targets] for group in groups
        }
        self.a: Final[dict[str, Span]] = {}
        self.b: Final[dict[str, Span]] = {}
        self.heads: Final[dict[str, Span]] = {}
        self._end = 0
        for group in groups:
            linears = self.stacked[group.name]
            if linears:
                self.a[group.name] = self._span((linears[0].inputs, shape.rank * len(linears)))
            for one in linears:
                self.b[one.name] = self._span((shape.rank, one.outputs))
        for name, size in heads:
            self.heads[name] = self._span((size[0], size[1] if len(size) > 1 else 1))
        self.group_of: Final = {one.name: name for name, linears in self.stacked.items() for one in linears}
        self.size: Final = self._end

    def _span(self, shape: tuple[int, int]) -> Span:
        span = Span(self._end, shape)
        self._end = span.stop
        return span

    def parts(self, name: str, rank: int) -> tuple[tuple[str, slice, slice], tuple[str, slice, slice]]:
        """Where A and B of one linear stand: (group or linear, rows, columns) in `a` and in `b`."""
        group = self.group_of[name]
        first = [one.name for one in self.stacked[group]].index(name) * self.shape.rank
        return (group, slice(None), slice(first, first + rank)), (name, slice(rank), slice(None))


class Bucket:
    """The adapters of some trials, and what their optimizer knows.

    Attributes:
        values: float32[k, n], what is trained.
        scales: float32[k, 1, g r] by group: alpha over rank of each linear; 0 where a trial does not adapt it.
        gradients: float32[k, n]; None where nothing is trained.
        moments: float32[k, n] twice, the optimizer's averages of the gradient and of its square.
    """

    def __init__(self, layout: Layout, values: torch.Tensor, scales: dict[str, torch.Tensor], dropout: Dropout) -> None:
        """Args: layout: of values. values, scales: as above. dropout: of these slots."""
        self.layout: Final = layout
        self.values: Final = values
        self.scales: Final = scales
        self.unused: Final = {
            name: scale == 0 if bool((scale == 0).any()) else None for name, scale in scales.items()
        }  # asked once, not in every pass: it waits for the device
        self.dropout: Final = dropout
        self.gradients: torch.Tensor | None = None
        self.moments: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rounded: torch.Tensor | None = None

    def start_training(self, moments: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Make room for gradients; moments are float32[k, n] each."""
        self.gradients = torch.zeros_like(self.values)
        self.moments = moments

    @property
    def trained(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients and both moments."""
        if self.gradients is None or self.moments is None:
            raise RuntimeError("this bucket is a copy for evaluation")
        return self.gradients, *self.moments

    def __len__(self) -> int:
        return self.values.shape[0]

    def only(self, places: list[int]) -> Bucket:
        """A copy of some of its trials, for evaluation."""
        chosen = torch.tensor(places, device=self.values.device)
        scales = {name: scale[chosen] for name, scale in self.scales.items()}
        return Bucket(self.layout, self.values[chosen], scales, self.dropout)

    def as_type(self, dtype: torch.dtype) -> torch.Tensor:
        """[k, n], all values in another dtype; in the same memory each time."""
        if dtype == self.values.dtype:
            return self.values
        if self._rounded is None or self._rounded.dtype != dtype:
            self._rounded = self.values.to(dtype)
        else:
            self._rounded.copy_(self.values)
        return self._rounded


@dataclass
class Dropout:
    """Masks of a bucket's adapters.

    Attributes:
        thresholds: int16[k].
        grown: float32[k, 1, 1], what is kept is multiplied by it.
        keys: int32[k, sites] of the pass that runs.
        sites: name of a linear to its place in `keys`.
    """

    thresholds: torch.Tensor
    grown: torch.Tensor
    sites: dict[str, int]
    keys: torch.Tensor

    def kept(self, name: str, places_t: torch.Tensor, inputs: int) -> torch.Tensor:
        """bool[k, t, i]: the mask of one linear's adapters."""
        return keep(self.keys[:, self.sites[name]], self.thresholds, places_t, inputs)

    def grow(self, x_kti: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The input, or the gradient of it: both are dropped and grown alike."""
        return torch.where(kept, x_kti * self.grown.to(x_kti.dtype), 0)


@dataclass
class Pass:
    """One pass over a pack.

    Attributes:
        buckets: in the order of the slots.
        values: of each bucket, in the dtype of the adapters' products: float32 in an evaluation, as whoever loads the
            adapter computes, else that of the base, as under autocast.
        places: int32[t], number of each row of a slot for dropout; the same whatever the batch is padded to. None in
            an evaluation, which drops nothing and keeps nothing for a backward pass.
        first: gradients are written; else they are added to those of the passes before.
    """

    buckets: Sequence[Bucket]
    values: list[torch.Tensor]
    places: torch.Tensor | None = None
    first: bool = True
    slots: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the slots; a pass over the bare base has one and no buckets."""
        self.slots = sum(map(len, self.buckets)) or 1

    @property
    def training(self) -> bool:
        """Whether there is a backward pass."""
        return self.places is not None

    def numbered(self, rows: int) -> torch.Tensor:
        """int32[rows]: `places`, or for a module that sees one row per text, those of the texts."""
        if self.places is not None and len(self.places) == rows:
            return self.places
        return torch.arange(rows, dtype=torch.int32, device=None if self.places is None else self.places.device)

    def parts(self) -> list[tuple[slice, Bucket, torch.Tensor]]:
        """(its slots, bucket, its values) of each bucket."""
        found, start = [], 0
        for bucket, values in zip(self.buckets, self.values, strict=True):
            found.append((slice(start, start + len(bucket)), bucket, values))
            start += len(bucket)
        return found


def bare() -> Pass:
    """A pass over the base alone."""
    return Pass((), [])


class GroupOfLinears(torch.autograd.Function):
    """Outputs of the linears of one group: base product plus scaled B A of the (dropped) input, for all slots.

    The adapters are no inputs of the graph: backward writes their gradients into their bucket. `anchor` is a number
    that requires a gradient, so that backward is called where the input needs none.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, group: Group, now: Pass) -> tuple[torch.Tensor, ...]:
        """Args: x: [K b, …, i], slot by slot."""
        del anchor
        outputs = [one.product(x, now.slots, training=now.training) for one in group.linears]
        place = {one.name: index for index, one in enumerate(group.linears)}
        inner: list[torch.Tensor] = []
        for slots, bucket, values in now.parts():
            linears = bucket.layout.stacked[group.name]
            if not linears:
                continue
            x_kti = x.reshape(now.slots, -1, x.shape[-1])[slots].to(values.dtype)
            s_ktr = _inner(x_kti, bucket, values, group, linears, now)
            inner.append(s_ktr)
            for one, part in zip(linears, torch.split(s_ktr, bucket.layout.shape.rank, dim=2), strict=True):
                b_kro = bucket.layout.b[one.name].of(values)
                y = outputs[place[one.name]]
                _add(y.view(now.slots, -1, y.shape[-1])[slots], part, b_kro, rounded=one.quantized)
        if now.training:
            ctx.save_for_backward(x, *inner)
            ctx.group, ctx.now = group, now
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        """Gradient of the input; those of the adapters go into their buckets."""
        x, *inner = ctx.saved_tensors
        group, now = ctx.group, ctx.now
        dtype = now.values[0].dtype
        gy = [gradient.to(dtype).contiguous() for gradient in gradients]
        gx: torch.Tensor | None = None
        if ctx.needs_input_grad[0]:
            flat = [g.view(-1, g.shape[-1]) for g in gy]
            gx = sum(
                (one.input_gradient(g) for one, g in zip(group.linears[1:], flat[1:], strict=True)),
                start=group.linears[0].input_gradient(flat[0]),
            ).view(now.slots, -1, x.shape[-1])
        left = iter(inner)
        by_name = dict(zip((one.name for one in group.linears), gy, strict=True))
        for slots, bucket, values in now.parts():
            linears = bucket.layout.stacked[group.name]
            if linears:
                part = [by_name[one.name].view(now.slots, -1, by_name[one.name].shape[-1])[slots] for one in linears]
                x_kti = x.reshape(now.slots, -1, x.shape[-1])[slots].to(dtype)
                into = None if gx is None else gx[slots]
                _backward(group, linears, now, bucket, values, x_kti, next(left), part, into)
        return None if gx is None else gx.view(x.shape).to(x.dtype), None, None, None


def _inner(
    x_kti: torch.Tensor, bucket: Bucket, values: torch.Tensor, group: Group, linears: list[BaseLinear], now: Pass
) -> torch.Tensor:
    """[k, t, g r]: the input times A, scaled; exactly 0 where a trial does not adapt a linear."""
    a_kir = bucket.layout.a[group.name].of(values)
    if now.training and bucket.layout.shape.dropout:
        dropout, places_t = bucket.dropout, now.numbered(x_kti.shape[1])
        parts = [
            torch.bmm(dropout.grow(x_kti, dropout.kept(one.name, places_t, x_kti.shape[2])), part)
            for one, part in zip(linears, torch.split(a_kir, bucket.layout.shape.rank, dim=2), strict=True)
        ]
        s_ktr = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    else:
        s_ktr = torch.bmm(x_kti, a_kir)
    return _scaled(s_ktr, bucket, group)


def _scaled(s_ktr: torch.Tensor, bucket: Bucket, group: Group) -> torch.Tensor:
    s_ktr = s_ktr.mul_(bucket.scales[group.name].to(s_ktr.dtype))
    unused = bucket.unused[group.name]
    return s_ktr if unused is None else s_ktr.masked_fill_(unused, 0)


def _add(y_kto: torch.Tensor, s_ktr: torch.Tensor, b_kro: torch.Tensor, *, rounded: bool) -> None:
    """Y += s B, in place; where dtypes differ, in float32, or after rounding as PEFT does over quantized bases."""
    if y_kto.dtype == s_ktr.dtype:
        y_kto.baddbmm_(s_ktr, b_kro)
    elif rounded:
        y_kto += torch.bmm(s_ktr, b_kro).to(y_kto.dtype)
    else:
        y_kto.copy_(y_kto + torch.bmm(s_ktr, b_kro))


def _backward(
    group: Group,
    linears: list[BaseLinear],
    now: Pass,
    bucket: Bucket,
    values: torch.Tensor,
    x_kti: torch.Tensor,
    s_ktr: torch.Tensor,
    gy_kto: list[torch.Tensor],
    gx_kti: torch.Tensor | None,
) -> None:
    """Gradients of one bucket's A and B into its buffer, and of its input added to `gx_kti`."""
    layout, rank, (gradients, *_) = bucket.layout, bucket.layout.shape.rank, bucket.trained
    a_kir = layout.a[group.name].of(values)
    parts = []
    for one, s, gy in zip(linears, torch.split(s_ktr, rank, dim=2), gy_kto, strict=True):
        _write(layout.b[one.name].of(gradients), torch.bmm(s.mT, gy), first=now.first)
        parts.append(torch.bmm(gy, layout.b[one.name].of(values).mT))
    gs_ktr = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    _scaled(gs_ktr, bucket, group)
    ga = layout.a[group.name].of(gradients)
    if not layout.shape.dropout:
        _write(ga, torch.bmm(x_kti.mT, gs_ktr), first=now.first)
        if gx_kti is not None:
            gx_kti.baddbmm_(gs_ktr, a_kir.mT)
        return
    places_t = now.numbered(x_kti.shape[1])
    for index, one in enumerate(linears):
        own = slice(index * rank, (index + 1) * rank)
        kept = bucket.dropout.kept(one.name, places_t, x_kti.shape[2])
        _write(ga[..., own], torch.bmm(bucket.dropout.grow(x_kti, kept).mT, gs_ktr[..., own]), first=now.first)
        if gx_kti is not None:
            gx_kti += bucket.dropout.grow(torch.bmm(gs_ktr[..., own], a_kir[..., own].mT), kept)


def _write(into: torch.Tensor, gradient: torch.Tensor, *, first: bool) -> None:
    if first:
        into.copy_(gradient)
    else:
        into += gradient
