"""One driver per search: a lock file that the kernel releases when the driver dies, however it dies.

Where machines share a search through PostgreSQL, its driver holds a lock there too (search/study_lock.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from lorafront.search.paths import SearchPaths
from lorafront.search.study_lock import is_written, locked
from lorafront.spaces.errors import SearchOwned

PROBE_SECONDS = 0.5  # `is_driven` holds the lock for a moment; a driver that starts just then waits so long


@contextmanager
def owned(paths: SearchPaths) -> Iterator[None]:
    """Own the search while the block runs.

    Raises:
        SearchOwned: another driver is alive.
        StateUnreadable: its study is in a database that cannot be reached.
    """
    lock = FileLock(paths.driver_lock, timeout=PROBE_SECONDS)
    taken = SearchOwned(f"search {paths.name!r} is being run by another process; see `lorafront status {paths.name}`")
    try:
        lock.acquire()
    except Timeout as error:
        raise taken from error
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(paths.study_db))
            except SearchOwned as error:
                raise taken from error
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
    return is_written(paths.study_db)
