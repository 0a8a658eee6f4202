"""Where a study is stored: a SQLite file in the folder of its search, or a PostgreSQL database that the folder names.

`LORAFRONT_DATABASE` says where new searches go; what has begun is found by its folder. Passwords are libpq's matter
(`PGPASSWORD`, `PGPASSFILE`, `~/.pgpass`): none is read, stored or shown here.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from lorafront.spaces.errors import InvalidInput, StateUnreadable
from lorafront.trainables.checkpoint import write_json

VARIABLE = "LORAFRONT_DATABASE"
STUDY = "search"  # the one study of a SQLite file
SCHEMES = ("postgresql", "postgres")
READ_PATIENCE = 15.0  # seconds: as long as a restart of the server takes
POLL = 0.25  # seconds between two tries
CONNECTION: dict[str, Any] = {  # a network that is gone is noticed within half a minute, on both sides
    "application_name": "lorafront",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "options": "-c statement_timeout=60s -c idle_in_transaction_session_timeout=60s -c timezone=UTC "
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=25000",
}
_away: dict[str, float] = {}  # when patience with a database ended, so that twenty searches in it are not waited for

Read = Callable[[str], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class StudyPlace:
    """Where one study is.

    Attributes:
        file: the SQLite file, which is there unless `url` says otherwise.
        url: of a PostgreSQL database, without a password.
        study: its name there.
    """

    file: Path
    url: str = ""
    study: str = STUDY

    def __str__(self) -> str:
        """As messages name it."""
        return f"study {self.study} in {self.url}" if self.url else str(self.file)


def _named_by(study_db: Path) -> Path:
    """The file that says that a study is elsewhere."""
    return study_db.with_suffix(".json")


def place_of(study_db: Path) -> StudyPlace:
    """Where the study of a search is that has begun.

    Raises:
        StateUnreadable: the file that says so is damaged.
    """
    file = _named_by(study_db)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return StudyPlace(study_db, said["database"], said["study"])
    except FileNotFoundError:
        return StudyPlace(study_db)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateUnreadable(f"{file} cannot be read ({error}); it names the database that has the search") from error


def has_study(study_db: Path) -> bool:
    """Whether there is a study, in the file or where the folder says."""
    return study_db.is_file() or _named_by(study_db).is_file()


def new_place(study_db: Path, beside: Path | None = None) -> StudyPlace:
    """Where a new study goes.

    Args:
        study_db: of the search.
        beside: that of the search that it belongs to, in whose database it goes.
    """
    url = place_of(beside).url if beside else database_url()
    if not url:
        return StudyPlace(study_db)
    name = f"{study_db.parent.name}-{uuid.uuid4().hex[:12]}"  # searches under other roots may be called the same
    return StudyPlace(study_db, url, name)


def keep_place(place: StudyPlace) -> None:
    """Let the folder say where its study is. Once that is set up, so that it never names one that is not."""
    if place.url:
        write_json(_named_by(place.file), {"database": place.url, "study": place.study})


def database_url() -> str:
    """Of the PostgreSQL database that new searches go to; empty where they go into files.

    Raises:
        InvalidInput: it is no such URL, or has a password in it.
    """
    url = os.environ.get(VARIABLE, "").strip()
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        secret = parts.password or {name for name, _ in parse_qsl(parts.query)} & {"password", "sslpassword"}
    except ValueError as error:
        raise InvalidInput(f"{VARIABLE} is no URL: {error}") from None
    if secret:
        raise InvalidInput(
            f"{VARIABLE} has a password in it; give that as PGPASSWORD or in a file that PGPASSFILE names"
        )
    if parts.scheme not in SCHEMES or not parts.path.strip("/") or not parts.hostname:  # other machines read it too
        raise InvalidInput(f"{VARIABLE} must be postgresql://USER@HOST/DATABASE")
    return url


def check_database() -> None:
    """Whether new studies can be written where they go.

    Raises:
        InvalidInput: they cannot.
    """
    url = database_url()
    if not url:
        return
    query = "SELECT current_user, current_schema(), has_schema_privilege(current_schema(), 'CREATE')"
    try:
        with closing(connected(url, 0)) as database:
            user, schema, may = database.execute(query).fetchone() or ("", "", False)
    except postgres_error() as error:
        raise InvalidInput(f"database {url} cannot be reached: {one_line(error)}") from error
    if not may:
        raise InvalidInput(
            f"role {user} may not create tables in schema {schema} of {url}; "
            f"as its owner: GRANT CREATE ON SCHEMA {schema} TO {user}"
        )


@contextmanager
def reading(study_db: Path) -> Iterator[Read]:
    """Ask in SQL what is stored, in PostgreSQL as it was at one moment; in a query, `{study}` is the id of the study.

    Raises:
        StateUnreadable: there is no such study, or it cannot be read.
    """
    place = place_of(study_db)
    errors: tuple[type[Exception], ...] = (sqlite3.Error, *((postgres_error(),) if place.url else ()))
    try:
        with closing(_opened(place)) as database:
            query = "SELECT study_id FROM studies WHERE study_name = ?"
            found = database.execute(query.replace("?", "%s") if place.url else query, (place.study,)).fetchone()
            if found is None:
                raise StateUnreadable(f"there is no {place}: is it another server, or one that was restored?")
            yield lambda query: database.execute(query.format(study=int(found[0]))).fetchall()
    except errors as error:
        raise StateUnreadable(f"{place} cannot be read: {one_line(error)}") from error


def _opened(place: StudyPlace) -> Any:
    """A connection that cannot write."""
    if not place.url:
        return sqlite3.connect(f"{place.file.absolute().as_uri()}?mode=ro", uri=True, timeout=60)
    import psycopg

    database = connected(place.url, READ_PATIENCE)
    database.read_only = True
    database.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    return database


def postgres_error() -> type[Exception]:
    """What psycopg raises.

    Raises:
        InvalidInput: it is not installed.
    """
    try:
        import psycopg
    except ImportError as error:
        raise InvalidInput("PostgreSQL needs psycopg: pip install 'lorafront[postgresql]'") from error
    return psycopg.Error


def connected(url: str, patience: float) -> Any:
    """A connection to PostgreSQL; while the server is away or full, it is tried for so many seconds."""
    postgres_error()
    import psycopg

    start = time.monotonic()
    end = start + (0 if start - _away.get(url, -math.inf) < patience else patience)
    while True:
        try:
            return psycopg.connect(url, **CONNECTION)
        except psycopg.OperationalError:
            if time.monotonic() >= end:
                if patience:
                    _away[url] = time.monotonic()
                raise
            time.sleep(POLL)


def is_lost(error: BaseException | None) -> bool:
    """Whether a connection to PostgreSQL was refused or broke, which another one may mend."""
    psycopg = sys.modules.get("psycopg")
    return psycopg is not None and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))


def one_line(error: BaseException) -> str:
    """What a server said."""
    return " ".join(str(error).split())
