"""Whether the kernel ended processes because the machine, or this container, ran out of memory."""

from __future__ import annotations

from pathlib import Path

COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # of the container, of the machine


class KernelKills:
    """Counts them since the last question."""

    def __init__(self, counters: tuple[Path, ...] = COUNTERS) -> None:
        """Args: counters: files of the kernel."""
        self._counters = counters
        self._before = count(counters)

    def more(self) -> bool:
        """Whether there was one since this was asked before."""
        now = count(self._counters)
        before, self._before = self._before, now
        return now > before


def count(counters: tuple[Path, ...]) -> int:
    """Processes that were ended so far; 0 where the kernel does not say."""
    found = 0
    for counter in counters:
        try:
            lines = counter.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return found
