"""One trial's adapter in a pack: its numbers by the names that PEFT gives them, and the stack that trains many of them.

A slot's numbers are its own until it is stacked; from then on they are views of its bucket. Stacking again, when trials
join or leave, copies them: milliseconds.

Shape legend: k slots, n numbers of a trial in its bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from lorafront.trainables.frozen_base import initial_a
from lorafront.trainables.keyed_random import site_keys, threshold, word
from lorafront.trainables.packed_adamw import OptimizerState
from lorafront.trainables.packed_base import NotPackable
from lorafront.trainables.packed_bucket import Bucket, Dropout, Layout, Shape, bucket_rank

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig
    from lorafront.trainables.packed_base import PackedBase
    from lorafront.trainables.packed_head import PackedHead

PREFIX = "base_model.model."  # of all names in an adapter file
VALUES, MEAN, SQUARE = "values", "exp_avg", "exp_avg_sq"
KINDS = (VALUES, MEAN, SQUARE)
Numbers = dict[str, torch.Tensor]


@dataclass
class Counters:
    """What `OptimizerState` has for one slot: tensors without dimensions, on the device."""

    steps: torch.Tensor
    alive: torch.Tensor
    scale: torch.Tensor
    growing: torch.Tensor

    def scaler(self) -> dict[str, float]:
        """As the state of a torch.amp.GradScaler."""
        known = torch.amp.GradScaler("cpu").state_dict()
        return {**known, "scale": float(self.scale), "_growth_tracker": int(self.growing)}


class Slot:
    """The adapter of one trial.

    Attributes:
        linears: names of the modules that it adapts, in the model's order.
        names: of its parameters as in an adapter file, in the order in which PEFT has them.
    """

    def __init__(self, config: TrialConfig, base: PackedBase, head: PackedHead, scale: float) -> None:
        """A fresh adapter: A is drawn, B is zero, the head as `PackedHead.fresh` says.

        Args:
            config: the trial.
            base: what it adapts.
            head: what it trains in full.
            scale: of the loss at first; 1 where it is not scaled.

        Raises:
            NotPackable: it adapts a module that the model does not call in a pass.
        """
        self.config: Final = config
        self.head: Final = head
        self.linears: Final = [name for name in base.order if name in base.linears and _is_target(name, config.targets)]
        uncalled = [name for name in self.linears if name not in base.called]
        if uncalled:
            raise NotPackable(f"the model does not call {', '.join(uncalled)} as modules")
        self.names: Final = _names(self.linears, head, base)
        self._stack: tuple[Bucket, int] | None = None
        on = base.model.device
        self._own: dict[str, Numbers] = {VALUES: {}}
        for name in self.linears:
            linear = base.linears[name]
            a = initial_a(config.seed, f"{PREFIX}{name}.lora_A.default.weight", (config.lora.rank, linear.inputs))
            self._own[VALUES][f"{PREFIX}{name}.lora_A.weight"] = a.to(on)
            self._own[VALUES][f"{PREFIX}{name}.lora_B.weight"] = torch.zeros(
                linear.outputs, config.lora.rank, device=on
            )
        self._own[VALUES] |= {f"{PREFIX}{name}": value for name, value in head.fresh(config.seed).items()}
        for kind in (MEAN, SQUARE):
            self._own[kind] = {name: torch.zeros_like(value) for name, value in self._own[VALUES].items()}
        self.counters = Counters(
            torch.zeros((), device=on),
            torch.ones((), device=on, dtype=torch.bool),
            torch.full((), scale, device=on),
            torch.zeros((), device=on),
        )

    @property
    def numbers(self) -> dict[str, Numbers]:
        """Values and both moments, by name, in PEFT's shapes; views where the slot is stacked."""
        if self._stack is None:
            return self._own
        bucket, place = self._stack
        flats = (bucket.values, *bucket.trained[1:])
        return {kind: self._views(bucket.layout, flat, place) for kind, flat in zip(KINDS, flats, strict=True)}

    def _views(self, layout: Layout, flat_kn: torch.Tensor, place: int) -> Numbers:
        found: Numbers = {}
        for name in self.linears:
            a_ri, b_or = layout.adapter(flat_kn, place, name, self.config.lora.rank)
            found |= {f"{PREFIX}{name}.lora_A.weight": a_ri, f"{PREFIX}{name}.lora_B.weight": b_or}
        for name, shape in self.head.parameters():
            found[f"{PREFIX}{name}"] = layout.heads[name].of(flat_kn)[place].reshape(shape)
        return found

    def shape(self, on: torch.device) -> Shape:
        """Which bucket it stands in.

        On a CPU adapters of one bucket adapt the same modules, because there the zeros of the others take time; on a
        GPU a call takes longer than they do.
        """
        rank = self.config.lora.rank
        if on.type == "cpu":
            return Shape(bucket_rank(rank, on), frozenset(self.linears), self.config.lora.dropout > 0)
        return Shape(bucket_rank(rank, on), frozenset(), self.config.lora.dropout > 0)

    def move(self, bucket: Bucket, place: int) -> None:
        """Its numbers are copied to a place in a bucket, and are views of it from now on."""
        flats = (bucket.values, *bucket.trained[1:])
        if self._stack is not None and self._stack[0].layout == bucket.layout:
            before, row = self._stack
            for old, new in zip((before.values, *before.trained[1:]), flats, strict=True):
                new[place] = old[row]
        else:
            for kind, flat in zip(KINDS, flats, strict=True):
                numbers = self.numbers[kind]
                for name, view in self._views(bucket.layout, flat, place).items():
                    view.copy_(numbers[name])
        self._stack, self._own = (bucket, place), {}

    def move_out(self) -> None:
        """Its numbers are its own again, and keep no bucket alive."""
        if self._stack is not None:
            copies = {kind: {n: v.clone() for n, v in found.items()} for kind, found in self.numbers.items()}
            self._stack, self._own = None, copies

    def drop(self) -> None:
        """Nobody will ask for its numbers."""
        self._stack, self._own = None, {kind: {} for kind in KINDS}


class Stack:
    """Slots that train together.

    Attributes:
        slots: in their order in a pass.
        buckets: the same order.
        state: of the optimizer.
    """

    def __init__(self, slots: Sequence[Slot], base: PackedBase, head: PackedHead) -> None:
        """Copy the slots' numbers into fresh buckets."""
        on = base.model.device
        together: dict[Shape, list[Slot]] = {}
        for slot in slots:
            together.setdefault(slot.shape(on), []).append(slot)
        self.slots: Final = [slot for members in together.values() for slot in members]
        self.buckets: Final = [_bucket(shape, members, base, head) for shape, members in together.items()]
        self.seeds: Final = torch.tensor([word(str(slot.config.seed)) for slot in self.slots], dtype=torch.int32).to(on)
        counters = [slot.counters for slot in self.slots]
        self.state: Final = OptimizerState(
            *(torch.stack([getattr(one, name) for one in counters]) for name in ("steps", "alive", "scale", "growing"))
        )

    def keep_counters(self) -> None:
        """Give the slots what the optimizer counted."""
        for place, slot in enumerate(self.slots):
            own = (getattr(self.state, name)[place] for name in ("steps", "alive", "scale", "growing"))
            slot.counters = Counters(*own)

    def keys(self, moments_k: torch.Tensor, sites: torch.Tensor) -> torch.Tensor:
        """int32[k, s]: what is drawn from at some sites in a pass."""
        return site_keys(self.seeds, moments_k, sites)

    def draw(self, moments_k: torch.Tensor, sites: torch.Tensor) -> None:
        """The buckets take their keys of a pass, one for each linear."""
        keys = self.keys(moments_k, sites)
        start = 0
        for bucket in self.buckets:
            bucket.dropout.keys = keys[start : start + len(bucket)]
            start += len(bucket)

    def only(self, slots: Sequence[Slot]) -> tuple[list[Slot], list[Bucket]]:
        """Some of its slots, in their order, and buckets of them alone."""
        if len(slots) == len(self.slots):
            return self.slots, self.buckets
        wanted, chosen, buckets, start = set(map(id, slots)), list[Slot](), list[Bucket](), 0
        for bucket in self.buckets:
            places = [place for place in range(len(bucket)) if id(self.slots[start + place]) in wanted]
            if places:
                buckets.append(bucket.only(places))
                chosen += [self.slots[start + place] for place in places]
            start += len(bucket)
        return chosen, buckets


def _bucket(shape: Shape, slots: list[Slot], base: PackedBase, head: PackedHead) -> Bucket:
    on, count = base.model.device, len(slots)
    adapted = frozenset(name for slot in slots for name in slot.linears)
    groups = [group for group in base.groups if any(one.name in adapted for one in group.linears)]
    # All of a group or nothing, so that the shape of a product does not depend on who else is in the bucket.
    if not shape.targets:
        adapted = frozenset(one.name for group in groups for one in group.linears)
    layout = Layout(Shape(shape.rank, adapted, shape.dropout), base.groups, head.parameters())
    scales, partial = {}, set()
    for name, linears in layout.stacked.items():
        rows = [[_scaling(slot, one.name) for one in linears] for slot in slots]
        if linears:
            scales[name] = torch.tensor(rows).repeat_interleave(shape.rank, dim=1).to(on)[:, None]
        if any(0.0 in row for row in rows):
            partial.add(name)
    dropped = [slot.config.lora.dropout for slot in slots]
    sites = {name: place for place, name in enumerate(base.linears)}
    dropout = Dropout(
        torch.tensor([[[threshold(share)]] for share in dropped], dtype=torch.int16).to(on),
        torch.tensor([[[1 / (1 - share)]] for share in dropped]).to(on),
        sites,
        torch.zeros(0, dtype=torch.int32),
    )
    bucket = Bucket(layout, torch.zeros(count, layout.size, device=on), scales, frozenset(partial), dropout)
    bucket.start_training()
    for place, slot in enumerate(slots):
        slot.move(bucket, place)
    return bucket


def _scaling(slot: Slot, linear: str) -> float:
    return slot.config.lora.alpha / slot.config.lora.rank if linear in slot.linears else 0.0


def _is_target(name: str, targets: tuple[str, ...]) -> bool:
    """As PEFT matches a list of names: the whole name, or its end."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _names(linears: list[str], head: PackedHead, base: PackedBase) -> list[str]:
    found = [(base.order[name], f"{PREFIX}{name}.lora_{half}.weight") for name in linears for half in "AB"]
    found += [(base.order[name.rpartition(".")[0]], f"{PREFIX}{name}") for name, _ in head.parameters()]
    return [name for _, name in sorted(found, key=lambda pair: pair[0])]
