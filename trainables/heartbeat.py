"""A sign of life beside a trial's files: which process works on it, and that it still comes forward.

`begin` writes `heartbeat.json` with the process's id and start time, and on which machine that is; `beat`, called at
every optimizer step and evaluation batch, renews the file's time, once a second at most: those of all trials that the
process has, up to the `end` of each. The driver only looks whether that time changes (search/watchdog.py); nobody
compares it with a clock.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

FILE = "heartbeat.json"
NODE = "LORAFRONT_NODE"  # in a worker's environment: the node of a cluster that it runs on
RENEW_SECONDS = 1.0
SAME_SECONDS = 2.0  # a process's start is computed from the clock, which may be set meanwhile


@dataclass(frozen=True)
class Sign:
    """What a heartbeat file says.

    Attributes:
        pid: of the worker.
        started: when that process started, in psutil's seconds: ids are used again, pairs are not.
        beat: changes with every beat.
        place: whose process ids these are.
        node: of a cluster; empty where there is none.
    """

    pid: int
    started: float
    beat: int
    place: str = ""
    node: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether the process is on another machine, or in another container."""
        return bool(self.place) and self.place != place()

    def process(self) -> psutil.Process | None:
        """The worker, or None where it is gone, or elsewhere."""
        if self.is_elsewhere:
            return None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) < SAME_SECONDS and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@functools.cache
def place() -> str:
    """Within which a process id means a process: the machine since it was started, and the container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116  # a link to nothing that has a path
    except OSError:  # not Linux
        return socket.gethostname()


class _Heart:
    """Of this process."""

    def __init__(self) -> None:
        self.files: set[Path] = set()
        self.renewed = 0.0


_heart = _Heart()


def begin(folder: Path) -> None:
    """Called where a process takes on the trial in `folder`. A full disk keeps nobody from it."""
    file = folder / FILE
    _heart.files.add(file)
    facts = {"pid": os.getpid(), "started": psutil.Process().create_time(), "place": place()}
    facts["node"] = os.environ.get(NODE, "")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts), encoding="utf-8")


def end(folder: Path) -> None:
    """The process does not work on that trial any more; nothing where it did not."""
    _heart.files.discard(folder / FILE)


def beat() -> None:
    """The trials came a step forward."""
    now = time.monotonic()
    if now - _heart.renewed < RENEW_SECONDS:
        return
    _heart.renewed = now
    for file in _heart.files:
        with contextlib.suppress(OSError):
            os.utime(file)


def read(folder: Path) -> Sign | None:
    """The sign in a trial's folder; None where there is none that can be read."""
    file = folder / FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        beat = file.stat().st_mtime_ns
        where = str(facts.get("place", "")), str(facts.get("node", ""))
        return Sign(int(facts["pid"]), float(facts["started"]), beat, *where)
    except (OSError, ValueError, KeyError, TypeError):
        return None
