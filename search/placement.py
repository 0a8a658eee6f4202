"""How much of a device a trial gets: from its predicted peak memory, corrected by what trials measured. Pure.

A share is a number of sixteenths of a device. What it must hold is the memory of the trial's process: its tensors at
the peak, a margin for what the prediction does not see, and what a process takes beside its tensors (context and
fragmentation on a GPU, libraries on a CPU).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorafront.search.correction import Correction
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.sizes import parse_size, size_text

WHOLE = 16
# Few sizes, so that one trial's worker can go on with the next; each as large as so many at once allow.
STEPS = (1, 2, 3, 4, 5, 8, 11, WHOLE)
WORKER, MACHINE = "a worker", "this machine"  # names of devices that are no GPUs


@dataclass(frozen=True)
class Devices:
    """Devices of one type.

    Attributes:
        name: of the type.
        bytes: of each that trials may use.
        count: how many there are.
        context: bytes that a process takes beside its allocator's, before any was measured; 0 counts tensors alone.
        are_gpus: to Ray.
    """

    name: str
    bytes: int
    count: int = 1
    context: int = 0
    are_gpus: bool = False

    def share(self, need: int) -> int | None:
        """Sixteenths of one that hold so many bytes, rounded up to a step; None where it is too small.

        Args:
            need: bytes of a process.
        """
        return next((step for step in STEPS if need * WHOLE <= step * self.bytes), None)


@dataclass(frozen=True)
class Seat:
    """A part of a device.

    Attributes:
        share: in sixteenths of a device; a multiple of 16 is so many devices.
        devices: of which type.
        context: bytes that a process takes there beside its allocator's.
    """

    share: int
    devices: Devices
    context: int

    @property
    def cap(self) -> int | None:
        """Bytes that its allocator may take there; None where it sits on no device."""
        return max(1, min(self.share, WHOLE) * self.devices.bytes // WHOLE - self.context) if self.share else None

    @property
    def gpus(self) -> float:
        """The share in devices."""
        return self.share / WHOLE


ANYWHERE = Seat(0, Devices("none", 0, 0), 0)  # trials need no device


class Placement:
    """Seats of trials on the devices of one search, and who sits where."""

    def __init__(self, types: Sequence[Devices] = (), fixed: int | None = None, most: int | None = None) -> None:
        """Nobody sits anywhere.

        Args:
            types: of devices; without any, a trial needs none.
            fixed: the share that every trial gets whatever it needs; none is by prediction.
            most: trials at once that there are cores for; none is any number.
        """
        self._most = most or sum(devices.count for devices in types) * WHOLE
        self.types = tuple(sorted(types, key=lambda devices: devices.bytes))
        self.fixed = fixed
        self._corrections: dict[tuple[str, str], Correction] = {}
        self._free = {devices.name: dict.fromkeys(range(devices.count), WHOLE) for devices in self.types}
        self._last = max((devices.count for devices in self.types), default=0)  # no device gets an index again
        self._taken: dict[str, tuple[Seat, list[int]]] = {}

    def resize(self, types: Sequence[Devices], most: int) -> None:
        """Devices have come or gone. Of a type that is not there any more, none is free until some come back.

        Args:
            types: as they are now.
            most: trials at once that there are cores for.
        """
        self._most = max(1, most)
        now = {devices.name for devices in types}
        away = [replace(devices, count=0) for devices in self.types if devices.name not in now]
        self.types = tuple(sorted([*types, *away], key=lambda devices: devices.bytes))
        for devices in self.types:
            free = self._free.setdefault(devices.name, {})
            for index in sorted(free, key=lambda index: free[index], reverse=True)[: max(0, len(free) - devices.count)]:
                del free[index]  # whoever sits there is gone too, or Ray lets others wait for it
            first = max((self._last, *free)) + 1
            free.update({first + more: WHOLE for more in range(devices.count - len(free))})
            self._last = max((self._last, *free))

    def correction(self, key: str, devices: Devices | None = None) -> Correction:
        """That of a base key on a type of device; none is the largest."""
        name = (devices or self.types[-1]).name if self.types else ""
        return self._corrections.setdefault((key, name), Correction())

    def too_large(self, key: str, predicted: int) -> str:
        """Why no device is large enough for a trial, in words; empty where one is.

        Margins are for sharing: what is expected to fit may have a whole device.

        Args:
            key: of its base.
            predicted: bytes of tensors at its peak.
        """
        if not self.types:
            return ""
        correction, largest = self.correction(key), self.types[-1]
        context = correction.context_or(largest.context)
        need = correction.expected(predicted) + context
        if need > largest.bytes:
            return f"it needs {size_text(need)}, and {largest.name} has {size_text(largest.bytes)}"
        if correction.hopeless(predicted, largest.bytes - context):
            return f"it needs no less than a trial that ran out of memory on {largest.name}"
        return ""

    def seat(self, key: str, predicted: int | None, *, alone: bool = False) -> Seat:
        """The least that a trial needs: on the smallest type of device that it fits, else the whole of the largest.

        Args:
            key: of its base.
            predicted: bytes of tensors at its peak; None where it cannot be predicted: it gets a whole device.
            alone: it gets a whole device in any case, as after it ran out of memory.
        """
        if not self.types:
            return ANYWHERE
        share, devices = WHOLE, self._present[-1]
        if self.fixed is not None:
            share = max(WHOLE, self.fixed) if alone else self.fixed
        elif predicted is not None and not alone:
            share, devices = self._smallest(lambda one: self.correction(key, one).need(predicted, one.context))
        return Seat(share, devices, self.correction(key, devices).context_or(devices.context))

    def pack_seat(self, key: str, size: int) -> Seat:
        """As `seat`, of a worker with several trials.

        Args:
            key: of their base.
            size: bytes of tensors, with all margins.
        """
        if not self.types:
            return ANYWHERE
        share, devices = self.fixed or WHOLE, self._present[-1]
        if self.fixed is None:
            share, devices = self._smallest(lambda one: size + self.correction(key, one).context_or(one.context))
        return Seat(share, devices, self.correction(key, devices).context_or(devices.context))

    def _smallest(self, need: Callable[[Devices], int]) -> tuple[int, Devices]:
        """The share of the smallest type of device that holds a need there, else the whole of the largest."""
        held = ((one.share(need(one)), one) for one in self._present)
        return next(((step, one) for step, one in held if step is not None), (WHOLE, self._present[-1]))

    @property
    def _present(self) -> tuple[Devices, ...]:
        """Types of which there are any now; where all have gone, those that may come back."""
        return tuple(devices for devices in self.types if devices.count) or self.types

    def holds(self, who: str, size: int) -> bool:
        """Whether so many bytes of tensors, with all margins, fit where a worker sits."""
        cap = self.seat_of(who).cap
        return cap is None or size <= cap

    def contains(self, who: str, seat: Seat) -> bool:
        """Whether the seat of a worker is as large as another one, on the same type of device."""
        here, _ = self._taken[who]
        return here.devices.name == seat.devices.name and here.share >= seat.share

    def widened(self, seat: Seat, workers: int | None = None) -> Seat:
        """As large as the cores allow, where there is room: its worker can go on with more trials then.

        Args:
            seat: the least.
            workers: that share the devices; none is as many as there are cores for.
        """
        if self.fixed is not None or not seat.share:
            return seat
        each = sum(devices.count for devices in self.types) * WHOLE // (workers or self._most)
        steps = [step for step in STEPS if seat.share <= step <= each]
        return next((wide for step in reversed(steps) if self.has_room(wide := replace(seat, share=step))), seat)

    def goes_on(self, who: str, seat: Seat, running: int) -> bool:
        """Whether a worker goes on with a trial where it sits, or ends so that another one can sit better.

        It ends where the trial does not fit, and where what it would leave is a seat for one more trial of the kind.

        Args:
            who: the worker, which is free.
            seat: the least that the trial needs.
            running: other workers.
        """
        here, place = self._taken[who]
        if not self.contains(who, seat):
            return False
        if not place or running + 1 >= self._most:
            return True
        free = min(self._free[here.devices.name].get(index, 0) for index in place)
        return (free + here.share - seat.share) // seat.share == free // seat.share

    def has_room(self, seat: Seat) -> bool:
        """Whether it is free now."""
        return self._place(seat) is not None

    def has_any_room(self) -> bool:
        """Whether there is any free part of a device, or trials need none."""
        return not self.types or any(room for free in self._free.values() for room in free.values())

    def take(self, who: str, seat: Seat) -> None:
        """Somebody sits down where there is room."""
        place = self._place(seat) or []
        for index in place:
            self._free[seat.devices.name][index] -= min(seat.share, WHOLE)
        self._taken[who] = (seat, place)

    def leave(self, who: str) -> None:
        """Whoever sat there has gone; nothing where nobody did."""
        seat, place = self._taken.pop(who, (ANYWHERE, []))
        for index in place:
            if index in self._free[seat.devices.name]:
                self._free[seat.devices.name][index] += min(seat.share, WHOLE)

    @property
    def is_empty(self) -> bool:
        """Whether all devices have gone."""
        return bool(self.types) and not any(devices.count for devices in self.types)

    def lacks(self, who: str) -> bool:
        """Whether all devices of the type have gone that somebody was to sit on."""
        name = self._taken[who][0].devices.name
        return any(devices.name == name and not devices.count for devices in self.types)

    def seat_of(self, who: str) -> Seat:
        """Where somebody sits."""
        return self._taken[who][0]

    def most_at_once(self) -> int | None:
        """Of the smallest seats that trials may have; None where they need no device."""
        if not self.types:
            return None
        count, share = sum(devices.count for devices in self.types), self.fixed or STEPS[0]
        return count * (WHOLE // share) if share < WHOLE else count // (share // WHOLE)

    def _place(self, seat: Seat) -> list[int] | None:
        """Indices of devices that have room: the fullest ones, so that large trials find empty ones."""
        if seat.devices.name not in self._free:
            return []
        each, count = min(seat.share, WHOLE), max(1, seat.share // WHOLE)
        fitting = sorted((room, index) for index, room in self._free[seat.devices.name].items() if room >= each)
        return [index for _, index in fitting[:count]] if len(fitting) >= count else None


def rehearsed(text: str) -> list[Devices]:
    """Devices that are only pretended, of which nothing but tensors takes memory: `2x24GB,80GB`; an empty text is none.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        counts: Counter[int] = Counter()
        for count, _, size in map(_times, filter(None, text.split(","))):
            counts[parse_size(size)] += int(count)
    except ValueError as error:
        raise InvalidInput(f"--devices must be such as 2x24GB,80GB ({error})") from error
    return [
        Devices(f"a rehearsed GPU of {size_text(size)}", size, count, are_gpus=True) for size, count in counts.items()
    ]


def _times(text: str) -> tuple[str, str, str]:
    return text.partition("x") if "x" in text else ("1", "x", text)
