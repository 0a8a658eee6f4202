"""One driver per search: a lock file that the kernel releases when the driver dies, however it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from lorafront.search.paths import SearchPaths
from lorafront.spaces.errors import SearchOwned

PROBE_SECONDS = 0.5  # `is_driven` holds the lock for a moment; a driver that starts just then waits so long


@contextmanager
def owned(paths: SearchPaths) -> Iterator[None]:
    """Own the search while the block runs.

    Raises:
        SearchOwned: another driver is alive.
    """
    lock = FileLock(paths.driver_lock, timeout=PROBE_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise SearchOwned(
            f"search {paths.name!r} is being run by another process; see `lorafront status {paths.name}`"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_driven(paths: SearchPaths) -> bool:
    """True where a driver of the search is alive."""
    lock = FileLock(paths.driver_lock, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False
