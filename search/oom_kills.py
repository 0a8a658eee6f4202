"""Whether the kernel ended processes because the machine, or this container, ran out of memory."""

from __future__ import annotations

from pathlib import Path

COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # of the container, of the machine


class KernelKills:
    """Counts them since the last question."""

    def __init__(self) -> None:
        """Begin to count."""
        self._before = count()

    def more(self) -> bool:
        """Whether there was one since this was asked before."""
        now = count()
        before, self._before = self._before, now
        return now > before


def count(counters: tuple[Path, ...] = COUNTERS) -> int:
    """Processes that were ended so far; 0 where the kernel does not say."""
    found = 0
    for counter in counters:
        try:
            lines = counter.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return found
