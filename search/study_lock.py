"""One driver of a study in PostgreSQL, on whatever machine: a lock of the server, which frees it when its holder dies.

Whoever loses the connection gets the lock again, or hears that somebody else has had it: then nothing more is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lorafront.search.database import POLL, READ_PATIENCE, StudyPlace, connected, one_line, place_of, postgres_error
from lorafront.spaces.errors import SearchOwned, StateUnreadable

TAKEOVER_SECONDS = 5.0  # until a server has ended a connection that was lost
DRIVER = "driver"  # attribute of a study: the one that began last
_HELD = """FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    AND ((classid::bigint << 32) | objid::bigint) = hashtextextended(%s, 0)
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
TAKE = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
HELD = f"SELECT count(*) {_HELD}"
END_BACKEND = f"SELECT pg_terminate_backend(pid) {_HELD} AND pid = %s"
DRIVEN_BY = f"""SELECT value_json FROM study_user_attributes JOIN studies USING (study_id)
    WHERE study_name = %s AND key = '{DRIVER}'"""  # noqa: S608
SET_UP = "SELECT pg_advisory_{}lock(hashtextextended('lorafront: tables', 0))"

_held: dict[str, StudyLock] = {}  # by name of the study: what this process has taken before it opens the study


class StudyLock:
    """The lock of one study, held by this process.

    Attributes:
        driver: what the study says while no other driver has begun; empty until this one has said so.
    """

    def __init__(self, place: StudyPlace) -> None:
        """Take it.

        Raises:
            SearchOwned: another driver is alive.
            psycopg.OperationalError: the server is away.
        """
        self._place = place
        self._backend = 0  # process on the server that holds it
        self.driver = ""
        self._database: Any = None
        self._take(READ_PATIENCE)

    def hold(self) -> None:
        """Make sure that it is held.

        Raises:
            SearchOwned: another driver has taken over.
            psycopg.OperationalError: the server is away.
        """
        error = postgres_error()
        try:
            self._database.execute("SELECT 1")
        except error:
            self.release()
            self._take(0)

    def release(self) -> None:
        """Give it back."""
        self._database.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else makes tables in the database meanwhile: two who do collide."""
        self._database.execute(SET_UP.format(""))
        try:
            yield
        finally:
            self._database.execute(SET_UP.format("un"))

    def _take(self, patience: float) -> None:
        database = connected(self._place.url, patience)
        try:
            database.autocommit = True
            self._backend = self._taken(database)
        except BaseException:
            database.close()
            raise
        self._database = database

    def _taken(self, database: Any) -> int:
        """The process on the server that holds it from now on."""

        def ask(query: str, *values: Any) -> Any:
            row = database.execute(query, values).fetchone()
            return row[0] if row else None

        study = self._place.study
        if self._backend:  # a server that has not noticed that the connection is lost would hold it on
            ask(END_BACKEND, study, self._backend)
        end = time.monotonic() + (TAKEOVER_SECONDS if self._backend else 0)
        while not ask(TAKE, study):
            if time.monotonic() > end:
                raise SearchOwned(f"{self._place} is being written by another driver")
            time.sleep(POLL)
        if self.driver and ask(DRIVEN_BY, study) != self.driver:
            raise SearchOwned(f"{self._place} was taken over by another driver")
        return int(ask("SELECT pg_backend_pid()"))


@contextmanager
def locked(study_db: Path) -> Iterator[None]:
    """Hold the lock of a study while the block runs, also for the storage that the block opens; nothing for a file.

    Raises:
        SearchOwned: another driver is alive.
        StateUnreadable: the server cannot be reached.
    """
    place = place_of(study_db)
    if not place.url:
        yield
        return
    try:
        lock = _held[place.study] = StudyLock(place)
    except postgres_error() as error:
        raise StateUnreadable(f"{place} cannot be reached: {one_line(error)}") from error
    try:
        yield
    finally:
        del _held[place.study]
        lock.release()


def lock_of(place: StudyPlace) -> tuple[StudyLock, bool]:
    """(The lock of a study, whether it was taken for the caller, who then gives it back)."""
    there = _held.get(place.study)
    return (there, False) if there else (StudyLock(place), True)


def is_written(study_db: Path) -> bool:
    """Whether a driver somewhere holds the lock; False for a file, and while nobody knows."""
    place = place_of(study_db)
    if not place.url:
        return False
    try:
        with closing(connected(place.url, 0)) as database:
            return bool(database.execute(HELD, (place.study,)).fetchone()[0])
    except postgres_error():
        return False
