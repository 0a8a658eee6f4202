"""Peak memory of a piece of work: the CUDA allocator's own count on a GPU, a count of live tensor storages elsewhere.

Both count bytes of tensors that are alive at once, rounded up to the 512 bytes in which CUDA's allocator deals. The CPU
count does not see scratch space inside a kernel; the GPU count does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lorafront.spaces.sizes import GIB, size_text
from lorafront.trainables.session import Measurements

ROUND = 512
CUDA, CPU = "cuda_allocator", "cpu_live_storages"


@dataclass(frozen=True)
class Memory:
    """Peak bytes.

    Attributes:
        allocated: tensors alive at once.
        reserved: what the allocator held from the device; equal to allocated where there is no such allocator.
        process: all that the process held on the device, by NVML (reserved where NVML hides processes); on a CPU its
            resident memory, libraries included.
        source: `cuda_allocator` or `cpu_live_storages`.
    """

    allocated: int
    reserved: int
    process: int
    source: str

    def in_this_process(self) -> Memory:
        """The same peak with what the process holds now; a GPU's is left as it was measured."""
        return self if self.source == CUDA else replace(self, process=psutil.Process().memory_info().rss)

    def metrics(self) -> Measurements:
        """In GiB, as reported; only what this kind of device has."""
        measured = Measurements(
            peak_vram_gb=self.allocated / GIB, process_memory_gb=self.process / GIB, peak_vram_source=self.source
        )
        if self.source == CUDA:
            measured["peak_reserved_gb"] = self.reserved / GIB
        return measured


class MemoryCapExceeded(MemoryError):
    """More tensors than were allowed.

    Attributes:
        held: bytes of the tensors that were there.
        requested: bytes that were asked for.
        available: bytes that were left.
    """

    def __init__(self, held: int, requested: int, available: int) -> None:
        """Args: as the attributes."""
        self.held = held
        self.requested = requested
        self.available = available
        super().__init__(f"out of memory: {size_text(requested)} were asked for, {size_text(available)} were left")


def cap_memory(cap: int | None, on: torch.device) -> None:
    """Let the allocator of this process take so many bytes of a GPU at most; a CPU's are counted by `measure_peak`.

    What is asked for beyond fails with torch's own out of memory, and other processes do not notice.
    """
    if on.type == "cuda":
        index = torch.cuda.current_device()  # torch refuses a device without its number here
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if cap is None else min(1.0, cap / total), index)
        torch.cuda.reset_peak_memory_stats(index)


def measure_peak(
    work: Callable[[], object],
    resident: Callable[[], Iterable[torch.Tensor]],
    on: torch.device,
    cap: int | None = None,
) -> Memory:
    """Run `work` and return the peak.

    Args:
        work: what to measure.
        resident: gives the tensors that are there before it starts; asked on a CPU only.
        on: the device.
        cap: bytes of tensors at most; on a GPU `cap_memory` is who sees to it.

    Raises:
        MemoryCapExceeded: on a CPU, there were more.
    """
    if on.type == "cuda":
        torch.cuda.synchronize(on)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(on)
        work()
        torch.cuda.synchronize(on)
        reserved = torch.cuda.max_memory_reserved(on)
        return Memory(torch.cuda.max_memory_allocated(on), reserved, _process_bytes(on) or reserved, CUDA)
    with LiveStorages(resident(), cap) as live:
        work()
    return Memory(live.peak, live.peak, psutil.Process().memory_info().rss, CPU)


def _process_bytes(on: torch.device) -> int:
    """What NVML says that this process holds; 0 where it does not say (some containers hide process ids)."""
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(on).uuid  # an index would ignore CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        mine = psutil.Process().pid
        return sum(p.usedGpuMemory or 0 for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == mine)
    except pynvml.NVMLError:
        return 0


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of distinct storages that are alive while the mode is on.

    A storage is counted once however many views it has, from the operation that makes it until its last owner drops it.
    """

    def __init__(self, resident: Iterable[torch.Tensor] = (), cap: int | None = None) -> None:
        """Args: resident: tensors that exist already. cap: bytes, beyond which it raises MemoryCapExceeded."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._cap = cap
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        for tensor in resident:
            self._add(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch's guard against it costs as much as an operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then count what it made."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._add(value)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001  # the address of the storage itself; torch names no public one
        known = self._seen.get(key)
        if (known is not None and known() is not None) or tensor.is_meta:
            return
        size = -(-storage.nbytes() // ROUND) * ROUND
        if self._cap is not None and self.live + size > self._cap:
            raise MemoryCapExceeded(self.live, size, max(0, self._cap - self.live))
        self.live += size
        self.peak = max(self.peak, self.live)
        self._seen[key] = weakref.ref(storage, lambda ref: self._drop(key, ref, size))

    def _drop(self, key: int, ref: Any, size: int) -> None:
        self.live -= size
        if self._seen.get(key) is ref:
            del self._seen[key]
