"""The devices that trials are placed on: the GPUs of this machine, its memory where it has none, or rehearsed ones."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from lorafront.search.gpu_memory import CONTEXT
from lorafront.search.nodes import Node, devices_of, least_memory, room
from lorafront.search.placement import MACHINE, WHOLE, WORKER, Devices, Placement
from lorafront.spaces.sizes import GIB, parse_size

if TYPE_CHECKING:
    from lorafront.search.search_file import SearchFile
    from lorafront.trainables.model_facts import ModelFacts

LIBRARIES = GIB  # resident in a worker without a GPU beside its tensors; 0.7 to 0.8 GiB measured
LARGE = 1 / 8  # of a machine's memory that weights in all workers may take before trials are placed by memory
CGROUP = Path("/sys/fs/cgroup")  # of this container


def placement(
    search: SearchFile, facts: ModelFacts, pretended: Sequence[Devices] = (), nodes: Sequence[Node] = ()
) -> Placement:
    """Seats on what there is.

    Args:
        search: its resources, and objectives that need a device alone.
        facts: of the model.
        pretended: takes the place of what there is.
        nodes: of the cluster that trials run on; none is this machine.
    """
    resources = search.resources
    alone = WHOLE if any(objective.alone for objective in search.objective_list) else None
    fixed = alone if resources.gpus_per_trial == "auto" else int(resources.gpus_per_trial * WHOLE)
    here = [_gpus()] if torch.cuda.is_available() and not nodes else []
    found = pretended or here or devices_of(nodes, resources.cpus_per_trial)
    most = most_workers(search, nodes, gpus=bool(found))
    if found:
        return Placement(found, fixed, most)
    memory = least_memory(nodes) if nodes else free_memory()
    if resources.memory_per_worker is not None:
        size = parse_size(resources.memory_per_worker)
        return Placement([Devices(WORKER, size, max(1, min(most, memory // size)), LIBRARIES)], WHOLE)
    if facts.parameters * torch.float32.itemsize * most > memory * LARGE:
        return Placement([Devices(MACHINE, memory, 1, LIBRARIES)], alone, most)
    return Placement()  # all that fits at once is far less than there is


def most_workers(search: SearchFile, nodes: Sequence[Node], *, gpus: bool) -> int:
    """Workers at once that there are cores for.

    Args:
        search: its resources.
        nodes: of the cluster that trials run on; none is this machine.
        gpus: each needs one.
    """
    each, most = search.resources.cpus_per_trial, search.resources.max_concurrent
    workers = max(1, room(nodes, each, gpus=gpus) if nodes else cores() // each)
    return min(workers, most or workers)


def workers(search: SearchFile, seats: Placement, nodes: Sequence[Node]) -> int:
    """Workers at once that there are cores and seats for."""
    for_cores = most_workers(search, nodes, gpus=any(one.are_gpus for one in seats.types))
    return max(1, min(for_cores, seats.most_at_once() or for_cores))


def cores() -> int:
    """CPU cores that this process may use: those of its container, where it is in one."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return max(1, min(own, int(quota) // int(period))) if quota.isdigit() else own


def free_memory() -> int:
    """Bytes of memory that are free: those of its container, where it is in one."""
    own = int(psutil.virtual_memory().available)
    most, used = _cgroup("memory.max"), _cgroup("memory.current")
    return max(0, min(own, int(most) - int(used))) if most.isdigit() and used.isdigit() else own


def _cgroup(name: str) -> str:
    with contextlib.suppress(OSError):
        return (CGROUP / name).read_text(encoding="ascii").strip()
    return ""


def _free(index: int) -> int:
    """Bytes of a GPU that nobody uses: by NVML, because torch would take some for a context of this process."""
    import pynvml

    found = torch.cuda.get_device_properties(index)
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{found.uuid}")).free)
    except pynvml.NVMLError:
        return int(found.total_memory)


def _gpus() -> Devices:
    """All GPUs that this process sees, each as large as the one with the least free memory.

    Ray hands out GPUs of one machine without looking at their size.
    """
    free = [_free(index) for index in range(torch.cuda.device_count())]
    names = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return Devices(", ".join(names), min(free), len(free), CONTEXT, are_gpus=True)
