"""Searches that were submitted to a Ray cluster, as their root has them: what to run, and how often it may come back.

All of it is on the storage that the cluster's nodes share, so it outlives the head. A search comes back by itself until
it is done, its user stopped it, or `TRIES` drivers in a row brought nothing new.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

from annotated_types import Ge
from filelock import FileLock
from pydantic import Field

from lorafront.search.confirm import COMPARE, CONFIRM
from lorafront.search.ownership import is_driven
from lorafront.search.paths import RootPaths, check_name
from lorafront.search.study_table import read_study
from lorafront.search.travel import SEARCH_FILE, Luggage
from lorafront.spaces.errors import InvalidInput, LorafrontError, SearchOwned
from lorafront.trainables.checkpoint import write_text
from lorafront.trainables.config import Section

TRIES = 3
PATIENCE = 300.0  # seconds for nodes to join a head that was started again, and for a lost driver's lock to be free
LOOK_SECONDS = 1.0
_USED_UP = f"{TRIES} drivers in a row recorded nothing new, so it does not come back by itself"


class Record(Section):
    """How to go on with a search.

    Attributes:
        base: of its files, from where they are kept; none is a search that did not travel.
        options: of `run` and `resume`.
        tries: drivers that may still be started in a row without anything new.
        stored: what its studies had recorded when the last one was started.
        had: cores and GPUs that the cluster had then.
        stopped: its user stopped it.
        done: it came to its end.
    """

    base: str | None = None
    options: tuple[str, ...] = ()
    tries: Annotated[int, Ge(0)] = TRIES
    stored: Annotated[int, Ge(0)] = 0
    had: dict[str, float] = Field(default_factory=dict)
    stopped: bool = False
    done: bool = False

    def next_try(self, stored: int) -> Record | None:
        """As it stands once one more driver is started by itself; None where none may be.

        Args:
            stored: what its studies have recorded by now.
        """
        tries = TRIES if stored > self.stored else self.tries
        if self.stopped or self.done or not tries:
            return None
        return self.model_copy(update={"tries": tries - 1, "stored": stored})

    def lacks(self, has: Mapping[str, float], *, late: bool) -> str:
        """What keeps it from going on; empty where nothing does. A search that had GPUs is not continued without.

        Args:
            has: cores and GPUs of the cluster.
            late: nobody waits any longer for all that it had: something of each kind does.
        """
        less = [kind for kind, count in self.had.items() if has.get(kind, 0) < (min(count, 1) if late else count)]
        return ", ".join(f"{has.get(kind, 0):g} of {self.had[kind]:g} {kind}s" for kind in less)

    def ended(self, code: int) -> Record:
        """After a driver left with that exit code; what refused one may have been a server that was away."""
        return self.model_copy(update={"done": code in {0, 4}})


class Jobs(Protocol):
    """Where drivers run."""

    def driver_of(self, name: str) -> str:
        """The job that drives a search now; empty where none does."""

    def drive(self, name: str, root: Path) -> str:
        """Start a job that drives a search; its id."""

    def resources(self) -> dict[str, float]:
        """`CPU` and `GPU` that the nodes have which live."""


class Started(NamedTuple):
    """What became of one search: the job that was started for it, or why none was."""

    name: str
    job: str
    said: str


class Submitted:
    """One search that was submitted, or is to be."""

    def __init__(self, root: RootPaths, name: str) -> None:
        """Name its files.

        Args:
            root: on storage that the cluster's nodes share.
            name: of the search.

        Raises:
            InvalidInput: it cannot be the name of one.
        """
        try:
            self.paths = root.search(check_name(name))
        except ValueError as error:
            raise InvalidInput(f"name {error}") from error
        self.root = root
        self._folder = root.submitted(name)
        self._record = self._folder / "record.json"
        self._files = self._folder / "files"

    @property
    def is_there(self) -> bool:
        """Whether it was submitted."""
        return self._record.is_file()

    def read(self) -> Record:
        """Its record; of a search that was not submitted a new one."""
        try:
            return Record.model_validate_json(self._record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Record()

    def write(self, record: Record) -> None:
        """Replace its record."""
        write_text(self._record, record.model_dump_json(indent=2))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes it or starts its driver meanwhile."""
        self._folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        with FileLock(self._folder / "lock"):
            yield

    def keep(self, luggage: Luggage) -> None:
        """Keep its files, in the place of those of an earlier one that never began."""
        aside = self._folder / f"files-{uuid.uuid4().hex[:8]}"
        try:
            luggage.copied(aside)
            shutil.rmtree(self._files, ignore_errors=True)
            aside.rename(self._files)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    @property
    def file(self) -> Path:
        """Its search file."""
        return self._files / (self.read().base or "") / SEARCH_FILE

    def stored(self) -> int:
        """How many rungs and trials its studies have, also those of its replicates."""
        count = 0
        for name in (self.paths.name, self.paths.name + CONFIRM, self.paths.name + COMPARE):
            if (paths := self.root.search(name)).has_study():
                count += sum(
                    len(trial.rungs) + (trial.result is not None) for trial in read_study(paths.study_db).trials
                )
        return count

    def has_driver(self) -> bool:
        """Whether some process drives it; to look makes no folder."""
        return self.paths.driver_lock.exists() and is_driven(self.paths)

    def refuse_driven(self, jobs: Jobs) -> None:
        """Raise where its driver is alive.

        Raises:
            SearchOwned: it is.
        """
        name = self.paths.name
        if job := jobs.driver_of(name):
            raise SearchOwned(f"search {name!r} is being run by job {job}; see `lorafront logs {name}`")
        if self.has_driver():
            raise SearchOwned(f"search {name!r} is being run by another process; see `lorafront status {name}`")


def shared_root(root: Path | None) -> RootPaths:
    """The root of a cluster.

    Raises:
        InvalidInput: none is named, or one that is elsewhere for each process.
    """
    found = root or Path(os.environ.get("LORAFRONT_ROOT", ""))
    if not found.is_absolute():
        raise InvalidInput(
            "a cluster's root has to be an absolute path on storage that its nodes share: set LORAFRONT_ROOT in the "
            f"environment of `ray start` (got {str(found) if found != Path() else 'none'})"
        )
    return RootPaths(found)


def submit(submitted: Submitted, luggage: Luggage, options: list[str], jobs: Jobs) -> str:
    """Keep a new search and start its driver; the job's id.

    Raises:
        SearchOwned: its driver is alive.
    """
    submitted.root.check_writable()
    submitted.root.make()
    with submitted.alone():
        submitted.refuse_driven(jobs)
        submitted.keep(luggage)
        submitted.write(Record(base=str(luggage.base), options=tuple(options), had=jobs.resources()))
        return jobs.drive(submitted.paths.name, submitted.root.root)


def go_on(submitted: Submitted, options: list[str], jobs: Jobs) -> str:
    """Start a driver because the user asked for it, whatever was before; the job's id.

    Args:
        submitted: a search, which may have begun in another way.
        options: of `resume`; none leaves those that it was submitted with.
        jobs: where.

    Raises:
        SearchNotFound: it has not begun, and was not submitted.
        SearchOwned: its driver is alive.
    """
    if not submitted.is_there:
        submitted.root.existing(submitted.paths.name)
    with submitted.alone():
        submitted.refuse_driven(jobs)
        record = submitted.read()
        fresh = Record(base=record.base, options=tuple(options) or record.options, stored=submitted.stored())
        submitted.write(fresh.model_copy(update={"had": jobs.resources()}))
        return jobs.drive(submitted.paths.name, submitted.root.root)


def come_back(
    root: RootPaths, jobs: Jobs, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic
) -> Iterator[Started]:
    """Start a driver for each search that was submitted, is not done and has none; also what it says of the others.

    Args:
        root: of the searches.
        jobs: where drivers run.
        patience: seconds for nodes to join, and for a driver that is no job to turn out to be gone.
        clock: seconds.
    """
    end = clock() + patience
    names = sorted(file.parent.name for file in root.submitted().glob("*/record.json"))
    while names:
        late = clock() > end
        for name in list(names):
            try:
                found = _come_back(Submitted(root, name), jobs, late=late)
            except (LorafrontError, OSError, ValueError) as error:  # the others come back all the same
                found = Started(name, "", f"does not come back: {error}") if late else None
            if found is not None:
                names.remove(name)
                yield found
        if names:
            time.sleep(LOOK_SECONDS)


def _come_back(submitted: Submitted, jobs: Jobs, *, late: bool) -> Started | None:
    """What becomes of one search; None where that is to be seen."""
    name = submitted.paths.name
    with submitted.alone():
        record = submitted.read()
        if record.done:
            return Started(name, "", "is done")
        if record.stopped:
            return Started(name, "", f"was stopped; go on with: lorafront resume {name} --submitted")
        if job := jobs.driver_of(name):
            return Started(name, "", f"is being run by job {job}")
        if submitted.has_driver():
            return Started(name, "", "is being run by another process") if late else None
        tried = record.next_try(submitted.stored())
        if tried is None:
            return Started(name, "", f"{_USED_UP}; go on with: lorafront resume {name} --submitted")
        has = jobs.resources()
        if lacks := record.lacks(has, late=late):
            again = "run this again once its nodes have joined"
            return Started(name, "", f"waits: the cluster has {lacks}; {again}") if late else None
        submitted.write(tried.model_copy(update={"had": has}))  # first: a driver that brings the head down is counted
        job = jobs.drive(name, submitted.root.root)
        return Started(name, job, f"goes on as job {job}; {tried.tries} more tries without anything new")


def hold(root: RootPaths, name: str) -> bool:
    """Let a search not come back by itself, as its user stops it; False where it would not have."""
    with contextlib.suppress(InvalidInput):
        submitted = Submitted(root, name)
        if submitted.is_there:
            with submitted.alone():
                record = submitted.read()
                submitted.write(record.model_copy(update={"stopped": True}))
                return not (record.stopped or record.done)
    return False
