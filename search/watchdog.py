"""Ends workers that have come to a stand, so that their trials are started again.

A worker renews a file at every step (trainables/heartbeat.py). The watchdog remembers when, by its own monotonic clock,
it last saw that file change: neither the worker's clock nor the file system's is trusted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lorafront.search.paths import SearchPaths
from lorafront.search.repeating import repeating
from lorafront.trainables import heartbeat

LOOKS_PER_LIMIT = 10
LONGEST_PAUSE = 10.0  # seconds between two looks
END_SECONDS = 10.0  # an ended worker is gone after so long, or it is stuck in the kernel


@dataclass
class Watchdog:
    """Watches the trials that run.

    Attributes:
        limit: seconds without a change after which a worker is ended.
        clock: monotonic seconds.
        end_elsewhere: ends a worker on another machine; False where that did not work.
    """

    limit: float
    clock: Callable[[], float] = time.monotonic
    end_elsewhere: Callable[[heartbeat.Sign], bool] = lambda _: False
    _overdue: set[int] = field(default_factory=set)
    _folders: dict[int, Path] = field(default_factory=dict)
    _seen: dict[int, tuple[heartbeat.Sign, float]] = field(default_factory=dict)

    def watch(self, number: int, folder: Path) -> None:
        """A worker is about to run this trial."""
        self.forget(number)
        (folder / heartbeat.FILE).unlink(missing_ok=True)  # of an earlier attempt; its worker may be at another trial
        self._folders[number] = folder

    def sign_of(self, number: int) -> heartbeat.Sign | None:
        """What a trial's worker has left; None where none came forward yet."""
        return heartbeat.read(self._folders[number]) if number in self._folders else None

    def forget(self, number: int) -> bool:
        """Nobody runs it any more; True where that is because its worker was ended here."""
        self._folders.pop(number, None)
        self._seen.pop(number, None)
        ended = number in self._overdue
        self._overdue.discard(number)
        return ended

    def look(self) -> list[int]:
        """End the workers that have not come forward for too long; return their trials, several of a pack."""
        silent = []
        for number, folder in list(self._folders.items()):
            sign = heartbeat.read(folder)
            if sign is None:
                continue
            before = self._seen.get(number)
            if before is None or before[0] != sign:
                self._seen[number] = (sign, self.clock())
            elif self.clock() - before[1] > self.limit and (sign.is_elsewhere or sign.process() is not None):
                silent.append((number, sign))
        return self._end(silent)

    def _end(self, silent: list[tuple[int, heartbeat.Sign]]) -> list[int]:
        folders = dict(self._folders)
        for number, _ in silent:
            self.forget(number)
            self._overdue.add(number)  # before the end, which the driver hears of at once
        stay = set()
        for worker, sign in {(sign.place, sign.pid): sign for _, sign in silent}.items():
            if sign.is_elsewhere and not self.end_elsewhere(sign):
                stay.add(worker)
            elif not sign.is_elsewhere:
                end_worker(sign)
        for number, sign in silent:
            if (sign.place, sign.pid) in stay and number in self._overdue:
                self._overdue.discard(number)
                self._folders[number] = folders[number]  # it is ended after as long again
        return [number for number, sign in silent if (sign.place, sign.pid) not in stay]

    @contextlib.contextmanager
    def watching(self, say: Callable[[str], None]) -> Iterator[None]:
        """Look again and again, in a thread, while the block runs."""

        def look() -> None:
            for number in self.look():
                say(f"trial {number} made no progress for {self.limit:.0f} s; its worker was ended")

        with repeating("watchdog", min(LONGEST_PAUSE, self.limit / LOOKS_PER_LIMIT), look):
            yield


def end_worker(sign: heartbeat.Sign) -> bool:
    """Kill the process that a heartbeat names; True where it lived."""
    process = sign.process()
    if process is None:
        return False
    with contextlib.suppress(psutil.Error):
        process.kill()  # also where it is stopped
        process.wait(END_SECONDS)
    return True


def end_leftovers(paths: SearchPaths, running: dict[int, int]) -> list[int]:
    """End workers that an older driver left behind, so that no two write for one trial.

    Args:
        paths: of a search whose lock we hold.
        running: trials that were never told, each with the epoch that last started it.

    Returns:
        Numbers of the trials whose workers were still there.
    """
    found = []
    for number, epoch in running.items():
        sign = heartbeat.read(paths.trial(number, epoch).path)
        if sign is not None and end_worker(sign):
            found.append(number)
    return found
