"""The devices of a checked search, and the prediction of memory where they, a limit or a pack ask for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorafront.search.peak_memory import PeakMemory, peak_memory
from lorafront.search.placement import MACHINE, Placement
from lorafront.search.prepared import VRAM, Prepared
from lorafront.trainables.engines import PROCESS
from lorafront.trainables.task import TASKS

if TYPE_CHECKING:
    from lorafront.search.paths import RootPaths
    from lorafront.search.search_file import SearchFile
    from lorafront.trainables.memory_trace import DeviceKind


def seated(ready: Prepared, config: Any, root: RootPaths, seats: Placement, kind: DeviceKind) -> Prepared:
    """Add the devices, and where something asks for it the prediction of memory."""
    memory, bounded = _memory(ready, config, root, kind), _asked(ready.search, seats)
    if memory is not None and not (memory.works if bounded else ready.search.engine != PROCESS):
        memory = None
    if memory is None and seats.types and seats.types[0].name == MACHINE:
        seats = Placement()  # else each trial had the whole machine to itself
    return replace(ready, placement=seats, memory=memory, bounded=bounded and memory is not None)


def _asked(search: SearchFile, seats: Placement) -> bool:
    """Whether peak memory decides what may run; tracing takes seconds."""
    return bool(seats.types) or any(limit.name == VRAM for limit in search.limits)


def _memory(ready: Prepared, config: Any, root: RootPaths, kind: DeviceKind) -> PeakMemory | None:
    """For the tasks whose batches are known."""
    if ready.search.task not in TASKS:
        return None
    return peak_memory(ready.search, config, ready.tokens, ready.rungs[-1], root.traced.absolute(), kind)
