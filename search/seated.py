"""The devices of a checked search, and the prediction of memory where they, a limit or a pack ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lorafront.search.devices import placement
from lorafront.search.peak_memory import PeakMemory
from lorafront.search.placement import MACHINE, Devices, Placement
from lorafront.search.prepared import VRAM, Prepared
from lorafront.trainables.engines import PROCESS
from lorafront.trainables.task import TASKS, task_named

if TYPE_CHECKING:
    from lorafront.search.paths import RootPaths
    from lorafront.search.search_file import SearchFile
    from lorafront.trainables.memory_model import MemoryModel
    from lorafront.trainables.memory_trace import DeviceKind


def seated(ready: Prepared, config: Any, root: RootPaths, devices: Sequence[Devices], kind: DeviceKind) -> Prepared:
    """Add the devices, and where something asks for it the prediction of memory."""
    seats = placement(ready.search, ready.facts, devices)
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
    """For the tasks whose batches are known, where the closed form is that of the step."""
    search = ready.search

    def model() -> MemoryModel | None:
        from lorafront.trainables import memory_model  # imports a session's libraries, seconds

        if not memory_model.exact(config, search.data.max_length):
            return None
        capability = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else memory_model.LATEST
        task, traced = task_named(search.task), root.traced.absolute()
        attention = search.model.attention
        return memory_model.MemoryModel(config, task, ready.tokens.labels, attention, traced, kind, capability)

    return PeakMemory(model, search, ready.tokens, ready.rungs[-1]) if search.task in TASKS else None
