"""How a trial ended: the value is the sentence that the user reads, the name in lower case is what is stored.

`classify` turns an exception of a training session into one of them.
"""

from __future__ import annotations

import errno
from enum import Enum


class Outcome(Enum):
    """Why a trial has no more to report."""

    COMPLETE = "finished at full fidelity"
    STOPPED = "stopped early: others were ahead at the same rung"
    CANCELLED = "cancelled: `lorafront stop --trial` ended it at a rung"
    DIVERGED = "diverged: the loss was no longer a finite number"
    CUDA_OOM = "ran out of GPU memory"
    HOST_OOM = "ran out of the machine's memory"
    DISK_FULL = "the disk was full"
    USER_ERROR = "failed with an error of its own"
    BAD_METRIC = "reported no finite value for an objective"
    TIMEOUT = "made no progress for longer than is waited for, more often than is tried again"
    INFRA_LOST = "its worker process was lost more often than is tried again"
    IMPORTED = "the result of an earlier search: it teaches the sampler and is no trial of this one"

    @property
    def stored(self) -> str:
        """How it stands in the study and in tags."""
        return self.name.lower()

    @classmethod
    def of(cls, stored: str) -> Outcome:
        """The inverse of `stored`."""
        return cls[stored.upper()]

    @property
    def is_failure(self) -> bool:
        """True where the trial is told FAIL, so that no sampler learns from its values."""
        learned = {Outcome.COMPLETE, Outcome.STOPPED, Outcome.CANCELLED, Outcome.DIVERGED, Outcome.IMPORTED}
        return self not in learned

    @property
    def counts(self) -> bool:
        """True where the trial spends budget."""
        return self is not Outcome.IMPORTED


OUT_OF_MEMORY = frozenset({Outcome.CUDA_OOM, Outcome.HOST_OOM})


def classify(error: BaseException) -> Outcome:
    """Which outcome an exception means.

    bitsandbytes raises plain RuntimeErrors for CUDA's out of memory, so its text decides there.
    """
    text = str(error).lower()
    if type(error).__name__ in {"OutOfMemoryError", "CudaOutOfMemoryError"} or (
        "out of memory" in text and ("cuda" in text or "gpu" in text)
    ):
        return Outcome.CUDA_OOM
    if isinstance(error, MemoryError) or "defaultcpuallocator: can't allocate memory" in text:
        return Outcome.HOST_OOM
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Outcome.DISK_FULL
    return Outcome.USER_ERROR
