"""What needs how much memory, what fits on which GPU, and how far batch and length can grow there.

A plan is arithmetic on predictions; it prints nothing. Of configurations that differ in neither rank, modules nor
quantization the one that needs the most stands for all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lorafront.search.correction import Correction
from lorafront.search.gpu_memory import CONTEXT, OVER, TIERS
from lorafront.search.placement import WHOLE, Devices
from lorafront.search.plan_subject import Subject
from lorafront.spaces.errors import InvalidInput, NotTraced, Problem
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.presets import PRESETS
from lorafront.spaces.sizes import GIB, MIB, parse_size
from lorafront.trainables.memory_model import Breakdown, Shapes

LARGEST_BATCH = 4096  # nobody asks for more rows


@dataclass(frozen=True)
class Limits:
    """How far one configuration can grow on one GPU.

    Attributes:
        batch: the most rows that fit at the length that is planned, up to `LARGEST_BATCH`; 0 where none does.
        length: the most tokens that fit in each row of the batch that is planned, up to what the model takes.
    """

    batch: int
    length: int


@dataclass(frozen=True)
class Row:
    """Configurations of one rank, module set and quantization.

    Attributes:
        lora: the one that needs the most.
        shapes: of its largest batch.
        configurations: how many there are.
        peak: predicted bytes of tensors, by what they are for.
        need: bytes of its process on a GPU of its own.
        at_once: by name of the GPU, how many trials it carries side by side; 0 where not even one fits.
    """

    lora: LoraConfiguration
    shapes: Shapes
    configurations: int
    peak: Breakdown
    need: int
    at_once: Mapping[str, int]

    @property
    def label(self) -> str:
        """Such as `r16 attention nf4`."""
        return f"r{self.lora.rank} {self.lora.modules} {self.lora.quantization}"

    @property
    def tier(self) -> str:
        """The tier that it belongs to by what it needs."""
        return next((name for name, size in TIERS.items() if self.need <= size), OVER)


@dataclass(frozen=True)
class Plan:
    """Rows of a subject on GPUs.

    Attributes:
        subject: what was planned.
        gpus: from small to large.
        rows: by modules and quantization in the order of the space, then by rank.
        fitting: by name of the GPU, how many of the subject's configurations fit.
    """

    subject: Subject
    gpus: tuple[Devices, ...]
    rows: tuple[Row, ...]
    fitting: Mapping[str, int]

    @property
    def anchor(self) -> Row:
        """The row of the recommended default, or what is nearest to it."""
        point = PRESETS[0].point

        def distance(row: Row) -> tuple[bool, bool, float]:
            lora = row.lora
            rank = abs(math.log2(lora.rank / point["rank"]))
            return lora.modules != point["modules"], lora.quantization != point["quantization"], rank

        return min(self.rows, key=distance)

    def largest(self, rows: Sequence[Row]) -> Row | None:
        """The one that stores its base in the most bytes, and of those with the largest adapter."""
        return max(rows, key=lambda row: (row.peak.parts["base"], row.peak.parts["adapters"]), default=None)

    def fitting_rows(self, gpu: Devices) -> list[Row]:
        """Those that fit."""
        return [row for row in self.rows if row.at_once[gpu.name]]


def parse_gpus(text: str) -> tuple[Devices, ...]:
    """`8GB,24GB` as devices, each size once, from small to large.

    Raises:
        InvalidInput: a part is no size.
    """
    try:
        sizes = {parse_size(part) for part in text.split(",")}
    except ValueError as error:
        raise InvalidInput([Problem(("--gpu",), str(error))]) from error
    return tuple(Devices(_name(size), size, context=CONTEXT) for size in sorted(sizes))


def _name(size: int) -> str:
    return f"{size / GIB:g}GB" if size >= GIB else f"{size / MIB:g}MB"


def room(gpu: Devices) -> int:
    """Predicted bytes of tensors that a GPU takes at most."""
    return gpu.bytes - gpu.context


def plan(subject: Subject, gpus: tuple[Devices, ...]) -> Plan:
    """Predict every configuration.

    Raises:
        NotTraced: the memory of this model cannot be predicted.
    """
    worst: dict[tuple[int, str, str], tuple[Breakdown, LoraConfiguration]] = {}
    counts: Counter[tuple[int, str, str]] = Counter()
    fitting = dict.fromkeys((gpu.name for gpu in gpus), 0)
    for lora in subject.configurations:
        peak = _predict(subject, lora, subject.largest(lora))
        key = (lora.rank, lora.modules, lora.quantization)
        counts[key] += 1
        if key not in worst or peak.total > worst[key][0].total:
            worst[key] = peak, lora
        for gpu in gpus:
            fitting[gpu.name] += _share(peak, gpu) is not None
    order = [
        list(dict.fromkeys(names)) for names in zip(*((modules, stored) for _, modules, stored in worst), strict=True)
    ]
    keys = sorted(worst, key=lambda key: (order[0].index(key[1]), order[1].index(key[2]), key[0]))
    rows = [_row(subject, gpus, worst[key][1], worst[key][0], counts[key]) for key in keys]
    return Plan(subject, gpus, tuple(rows), fitting)


def _predict(subject: Subject, lora: LoraConfiguration, shapes: Shapes) -> Breakdown:
    try:
        return subject.model.predict(lora, subject.training, shapes)
    except NotTraced as error:
        raise NotTraced(f"the peak memory of {subject.name} cannot be told before it trains ({error})") from error


def _share(peak: Breakdown, gpu: Devices) -> int | None:
    """As a search places trials: with a margin beside others, a whole GPU where it just fits."""
    share = gpu.share(Correction().need(peak.total, gpu.context))
    return WHOLE if share is None and peak.total <= room(gpu) else share


def _row(
    subject: Subject, gpus: tuple[Devices, ...], lora: LoraConfiguration, peak: Breakdown, configurations: int
) -> Row:
    shares = {gpu.name: _share(peak, gpu) for gpu in gpus}
    at_once = {name: WHOLE // share if share else 0 for name, share in shares.items()}
    return Row(lora, subject.largest(lora), configurations, peak, peak.total + gpus[0].context, at_once)


def limits(plan: Plan, row: Row) -> dict[str, Limits]:
    """By name of the GPU, how far a row's batch and length can grow there; some dozen predictions for each."""

    def rows_fit(gpu: Devices, rows: int) -> bool:
        return _share(_predict(plan.subject, row.lora, _with_rows(row.shapes, rows)), gpu) is not None

    def tokens_fit(gpu: Devices, tokens: int) -> bool:
        return _share(_predict(plan.subject, row.lora, _with_tokens(row.shapes, tokens)), gpu) is not None

    found: dict[str, Limits] = {}
    batch = length = 0  # what fits on a GPU fits on a larger one
    for gpu in plan.gpus:
        batch = largest(partial(rows_fit, gpu), LARGEST_BATCH, batch, row.shapes.rows)
        length = largest(partial(tokens_fit, gpu), plan.subject.longest, length, row.shapes.tokens)
        found[gpu.name] = Limits(batch, length)
    return found


def _with_rows(shapes: Shapes, rows: int) -> Shapes:
    """A batch of so many rows; one row needs no padding, and how several would differ one row does not say."""
    return replace(shapes, rows=rows, padded=rows > 1 and (shapes.padded or shapes.rows == 1))


def _with_tokens(shapes: Shapes, tokens: int) -> Shapes:
    """Rows of so many tokens; of an encoder-decoder on both sides."""
    return replace(shapes, tokens=tokens, completion=tokens if shapes.completion else 0)


def largest(fits: Callable[[int], bool], most: int, low: int = 0, guess: int = 1) -> int:
    """The largest number up to `most` that fits, where all below it do.

    Args:
        fits: whether a number does.
        most: the largest that is asked for.
        low: one that is known to fit; 0 for none.
        guess: what is asked first. A batch of one row is another kind of step, so it is asked for only where two rows
            do not fit.
    """
    high = min(max(guess, low + 1), most + 1)
    while high <= most and fits(high):
        low, high = high, min(2 * high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
