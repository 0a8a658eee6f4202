"""Adapters of many trials in memory: buckets of those with the same shape, and the pass that uses them.

In a bucket stand `A[k, i, g r]` for a group of g linears with the same input and `B[k, r, o]` for each linear, all
views of one flat float32 buffer with a row per trial. Ranks are filled up with zeros, whose gradients are exactly zero,
so they stay zero.

Shape legend: k slots of a bucket (K of the whole pass), t rows of a slot (batch times tokens), i inputs, o outputs,
r rank of the bucket, g adapted linears of a group, n numbers of a trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from lorafront.trainables.keyed_random import keep

if TYPE_CHECKING:
    from lorafront.trainables.packed_base import Group

ALIGNED = 8  # numbers: a matrix of 16-bit values begins at 16 bytes, as fast products want it


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


def bucket_rank(rank: int, on: torch.device) -> int:
    """What a rank is filled up to: the next power of two, since few large products are faster than many small ones."""
    return max(16 if on.type == "cpu" else 8, 1 << (rank - 1).bit_length())


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
        self._columns: Final = {
            one.name: (name, shape.rank * place)
            for name, linears in self.stacked.items()
            for place, one in enumerate(linears)
        }
        self.size: Final = self._end

    def _span(self, shape: tuple[int, int]) -> Span:
        span = Span(self._end, shape)
        self._end = -(-span.stop // ALIGNED) * ALIGNED
        return span

    def __eq__(self, other: object) -> bool:
        """Whether every matrix stands at the same place."""
        if not isinstance(other, Layout):
            return NotImplemented
        return self.shape == other.shape and (self.a, self.b, self.heads) == (other.a, other.b, other.heads)

    __hash__ = None  # type: ignore[assignment]

    def adapter(self, flat_kn: torch.Tensor, place: int, name: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """([r, i], [o, r]): A and B of one linear of a trial, in PEFT's shapes; views."""
        group, first = self._columns[name]
        a_ir = self.a[group].of(flat_kn)[place][:, first : first + rank]
        return a_ir.T, self.b[name].of(flat_kn)[place][:rank].T


class Bucket:
    """The adapters of some trials, and what their optimizer knows.

    Attributes:
        values: float32[k, n], what is trained.
        scales: float32[k, 1, g r] by group: alpha over rank of each linear; 0 where a trial does not adapt it.
        partial: groups of which not every trial adapts every linear.
        gradients: float32[k, n]; None where nothing is trained.
        moments: float32[k, n] twice, the optimizer's averages of the gradient and of its square.
    """

    def __init__(
        self,
        layout: Layout,
        values: torch.Tensor,
        scales: dict[str, torch.Tensor],
        partial: frozenset[str],
        dropout: Dropout,
    ) -> None:
        """Args: layout: of values. values, scales, partial: as above. dropout: of these slots."""
        self.layout: Final = layout
        self.values: Final = values
        self.scales: Final = scales
        self.partial: Final = partial
        self.dropout: Final = dropout
        self.gradients: torch.Tensor | None = None
        self.moments: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rounded: torch.Tensor | None = None

    def start_training(self) -> None:
        """Make room for gradients and moments; all are 0."""
        self.gradients = torch.zeros_like(self.values)
        self.moments = torch.zeros_like(self.values), torch.zeros_like(self.values)

    @property
    def trained(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients and both moments."""
        if self.gradients is None or self.moments is None:
            raise RuntimeError("this bucket is a copy for evaluation")
        return self.gradients, *self.moments

    def __len__(self) -> int:
        return self.values.shape[0]

    def scaled_(self, s_ktr: torch.Tensor, group: str, *, training: bool) -> torch.Tensor:
        """Inner products of a group, or their gradient, times alpha over rank; in place.

        While training also times what dropout grows the rest by: it is the same number for a whole trial, so it need
        not touch the input. Where a trial does not adapt a linear they are 0 whatever was there.
        """
        scale = self.scales[group]
        s_ktr.mul_(scale * self.dropout.grown if training and self.layout.shape.dropout else scale)
        return s_ktr.masked_fill_(scale == 0, 0) if group in self.partial else s_ktr

    def only(self, places: list[int]) -> Bucket:
        """A copy of some of its trials, for evaluation."""
        chosen = torch.tensor(places, device=self.values.device)
        scales = {name: scale[chosen] for name, scale in self.scales.items()}
        return Bucket(self.layout, self.values[chosen], scales, self.partial, self.dropout)

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
        thresholds: int16[k, 1, 1].
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

    def write(self, into: torch.Tensor, gradient: torch.Tensor) -> None:
        """A gradient of this pass, over those of an earlier step or to those of the passes of this one."""
        if self.first:
            into.copy_(gradient)
        else:
            into += gradient

    @property
    def training(self) -> bool:
        """Whether there is a backward pass."""
        return self.places is not None

    def numbered(self, rows: int) -> torch.Tensor:
        """int32[rows]: `places`, or for a module that sees one row per text, those of the texts."""
        if self.places is not None and len(self.places) == rows:
            return self.places
        return torch.arange(rows, dtype=torch.int32, device=None if self.places is None else self.places.device)

    def parts(self) -> list[Part]:
        """The buckets with their slots."""
        found, start = [], 0
        for bucket, values in zip(self.buckets, self.values, strict=True):
            found.append(Part(slice(start, start + len(bucket)), bucket, values))
            start += len(bucket)
        return found


@dataclass(frozen=True)
class Part:
    """A bucket's share of a pass.

    Attributes:
        slots: of the pass.
        bucket: theirs.
        values: of the bucket, in the dtype of the products.
    """

    slots: slice
    bucket: Bucket
    values: torch.Tensor

    def a(self, group: str) -> torch.Tensor:
        """[k, i, g r] of a group."""
        return self.bucket.layout.a[group].of(self.values)

    def b(self, linear: str) -> torch.Tensor:
        """[k, r, o] of a linear."""
        return self.bucket.layout.b[linear].of(self.values)


def bare() -> Pass:
    """A pass over the base alone."""
    return Pass((), [])
