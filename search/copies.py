"""Copies of a search in LORAFRONT_STORAGE: its study, its checkpoints and its results, for when its folder is lost.

The driver makes them in a thread, so a store that is slow or away delays no trial. Names are those of the folder. A
SQLite study is copied whole, from before the files that are copied with it; one in PostgreSQL is only named. Each copy
of the study is a new one: its name begins with the number of the driver, so that one that was thought dead sees that
another has gone on and stops, and the folder of the search keeps which of them is its own, so that none goes on from an
old state.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import sys
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lorafront.search.object_store import VARIABLE, ObjectStore, check_storage, line, storage
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.repeating import repeating
from lorafront.spaces.errors import CheckpointInvalid, InvalidInput, SearchExists
from lorafront.trainables.checkpoint import MANIFEST, read_manifest, write_folder, write_json
from lorafront.trainables.trial import TrialFolder

SECONDS = 20.0  # between two looks at what is new
SEARCH, NAMED, STUDY, STUDIES = "search.yaml", "study.json", "study.db", "study"
TRIALS, CHECKPOINTS, RESULTS = "trials", "ckpt-*", ("result.json", "attempt-*.json")
FETCHING = ".fetching-"


class CopiesOfAnother(InvalidInput):
    """The copies were not made from this folder, or another driver has gone on from them."""


class Copies:
    """Of one search, by one driver."""

    def __init__(self, store: ObjectStore, paths: SearchPaths) -> None:
        """Look at nothing yet."""
        self.problem = ""
        self.replaced = False  # by those of another driver; nothing is copied any more
        self._store = store
        self._paths = paths
        self._there: dict[str, set[str]] | None = None  # names, by folder of a trial
        self._driver = 0  # one more than that of whoever copied before
        self._token = uuid.uuid4().hex[:8]
        self._last = ""  # copy of the study
        self._count = 0
        self._study: tuple[int, ...] = ()
        self._seen: dict[Path, int] = {}
        self._results: dict[str, tuple[int, int]] = {}

    def look(self, *, claim: bool = False, again: bool = False) -> None:
        """Copy what is new, and remove copies of checkpoints that the search itself removed.

        Args:
            claim: copy the study alone, by which other drivers know that this one is at it.
            again: look into every folder, also where its time has not changed.
        """
        if self.replaced:
            return
        try:
            there = self._known()
            self._check_alone()
            with tempfile.TemporaryDirectory() as scratch:
                if not self._last:
                    self._put_study(self._snapshot(Path(scratch)), there)
                if not claim:
                    self._copy(Path(scratch), there, again=again)
            self.problem = ""
        except CopiesOfAnother as error:
            self.problem, self.replaced = str(error), True
        except Exception as error:  # noqa: BLE001  # of any library, network or permission; the next look may do
            self.problem = line(error)

    def _copy(self, scratch: Path, there: dict[str, set[str]], *, again: bool) -> None:
        stamp = self._stamp()
        # Before the rest: it then names nothing that is not copied.
        study = self._snapshot(scratch) if stamp != self._study else None
        if SEARCH not in there[SEARCH] and (file := self._paths.folder / SEARCH).is_file():
            there[SEARCH] = self._put(file, SEARCH)
        for folder in sorted(self._paths.trials.glob("*/epoch-*")):
            changed = folder.stat().st_mtime_ns
            if again or self._seen.get(folder) != changed:
                self._mirror(TrialFolder(folder), there)
                self._seen[folder] = changed
        if study is not None:
            self._put_study(study, there)
            self._study = stamp

    def _known(self) -> dict[str, set[str]]:
        """What is there, once it is known that it was copied from this folder."""
        if self._there is None:
            there: dict[str, set[str]] = defaultdict(set)
            for name in self._store.find(self._paths.name):
                there[_folder(name)].add(name)
            newest = max(_studies(there[STUDIES]), default="")
            if newest and newest not in _read_record(self._paths):
                raise CopiesOfAnother(
                    f"{self._store.url} has copies of {self._paths.name} that were not made from {self._paths.folder}: "
                    f"another machine went on with it, or it is another search. Move {self._paths.folder} away, and "
                    f"`lorafront resume {self._paths.name}` fetches them; or name another place in {VARIABLE}"
                )
            self._driver = int(newest.partition("-")[0] or 0) + 1
            self._there = there
        return self._there

    def _check_alone(self) -> None:
        names = _studies(f"{STUDIES}/{name}" for name in self._store.find(f"{self._paths.name}/{STUDIES}"))
        if any(int(name.partition("-")[0]) > self._driver for name in names):
            raise CopiesOfAnother(
                f"another driver has gone on from the copies of {self._paths.name}; nothing is copied"
            )

    def _mirror(self, trial: TrialFolder, there: dict[str, set[str]]) -> None:
        name = trial.path.relative_to(self._paths.folder).as_posix()
        for _, checkpoint in reversed(trial.checkpoints()):
            if f"{name}/{checkpoint.name}/{MANIFEST}" not in there[name]:
                with _unless_gone(checkpoint):  # for a newer one
                    there[name] |= self._put(checkpoint, f"{name}/{checkpoint.name}")
        for file in (file for pattern in RESULTS for file in trial.path.glob(pattern)):
            with _unless_gone(file):
                now = (file.stat().st_mtime_ns, file.stat().st_size)
                if self._results.get(copy := f"{name}/{file.name}") != now:
                    there[name] |= self._put(file, copy)
                    self._results[copy] = now
        self._remove({one for one in there[name] if not (self._paths.folder / one).exists()}, there[name])

    def _stamp(self) -> tuple[int, ...]:
        """Another one whenever something was written to a SQLite study."""
        file = self._paths.study_db
        stats = [part.stat() for part in (file, file.with_name(f"{file.name}-wal")) if part.is_file()]
        return tuple(value for one in stats for value in (one.st_mtime_ns, one.st_size))

    def _snapshot(self, scratch: Path) -> Path:
        """The study as it is now, or the file that names it in PostgreSQL."""
        self._count += 1
        copy, file, named = scratch / str(self._count), self._paths.study_db, self._paths.folder / NAMED
        is_named = named.is_file()
        write_folder(copy, lambda to: shutil.copy(named, to) if is_named else _back_up(file, to / STUDY), {})
        return copy

    def _put_study(self, copy: Path, there: dict[str, set[str]]) -> None:
        name = f"{self._driver:06d}-{self._count:06d}-{self._token}"
        _write_record(self._paths, [self._last, name])  # before: whatever happens, one of them is the newest
        there[STUDIES] |= self._put(copy, f"{STUDIES}/{name}")
        self._last = name
        self._remove({one for one in there[STUDIES] if one.split("/")[1] < name}, there[STUDIES])

    def _put(self, path: Path, name: str) -> set[str]:
        above = f"{self._paths.name}/"
        return {one.removeprefix(above) for one in self._store.put(path, above + name)}

    def _remove(self, names: set[str], there: set[str]) -> None:
        self._store.remove(f"{self._paths.name}/{name}" for name in names)
        there -= names


@contextlib.contextmanager
def copied(paths: SearchPaths, say: Callable[[str], None]) -> Iterator[None]:
    """Copy while the block runs, and what lacks at its end; nothing where the environment names no place.

    Args:
        paths: of the search.
        say: hears where that does not work, and that it works again.

    Raises:
        CopiesOfAnother: those that are there were not made from this folder.
    """
    store = storage()
    if store is None:
        yield
        return
    copies = Copies(store, paths)
    copies.look(claim=True)
    if copies.replaced:
        raise CopiesOfAnother(copies.problem)

    def tell(before: str) -> None:
        if copies.problem and not before:
            say(f"no copies in {store.url} for now ({copies.problem}); the search goes on")
        if before and not copies.problem:
            say(f"copies are in {store.url} again")

    def look() -> None:
        before = copies.problem
        copies.look()
        tell(before)

    tell("")
    try:
        with repeating("copies", SECONDS, look):
            yield
    finally:
        copies.look(again=True)
        if copies.problem:
            way = "" if copies.replaced else f"; to copy it: lorafront resume {paths.name}"
            say(f"not all is copied to {store.url} ({copies.problem}){way}")


def refuse_copied(name: str) -> None:
    """Raise where a new search of that name could not be copied.

    Raises:
        InvalidInput: the place for copies does not work.
        SearchExists: it has copies of another search of that name.
    """
    check_storage()
    if (store := storage()) is not None and _studies(store.find(name)):
        raise SearchExists(
            f"{store.url} has copies of a search {name!r}; `lorafront resume {name}` goes on with it, or choose "
            "another name"
        )


def fetch(root: RootPaths, name: str) -> None:
    """Make the folder of a search from its copies, if there are any and there is no such folder.

    Args:
        root: where it is to stand.
        name: of the search.

    Raises:
        InvalidInput: there are copies, and they cannot be fetched.
    """
    store, folder = storage(), root.search(name).folder
    if store is None or folder.exists():
        return
    try:
        names = store.find(name)
        if not (studies := _studies(names)):
            return
        print(f"fetching {name} from {store.url}: {len(names)} files", file=sys.stderr)
        root.check_writable()
        root.make()
        for left in root.root.glob(f"{FETCHING}*"):
            shutil.rmtree(left, ignore_errors=True)
        aside = root.root / f"{FETCHING}{uuid.uuid4().hex[:8]}" / name
        aside.mkdir(parents=True, mode=0o700)
        try:
            store.get(name, names, aside)
            _keep_what_is_whole(aside)
            _write_record(RootPaths(aside.parent).search(name), sorted(studies))
            aside.rename(folder)
        finally:
            shutil.rmtree(aside.parent, ignore_errors=True)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"{name} cannot be fetched from {store.url} ({line(error)})") from error


def _keep_what_is_whole(folder: Path) -> None:
    """Remove checkpoints that were being copied when their driver died; the newest whole study is the study."""
    for path in folder.glob(f"{TRIALS}/*/*/{CHECKPOINTS}"):
        if not _is_whole(path):
            shutil.rmtree(path)
    for copy in sorted((folder / STUDIES).glob("*"), reverse=True):
        if _is_whole(copy):
            for name in (STUDY, NAMED):
                if (copy / name).is_file():
                    (copy / name).rename(folder / name)
            break
    shutil.rmtree(folder / STUDIES, ignore_errors=True)
    if not (folder / STUDY).exists() and not (folder / NAMED).exists():
        raise InvalidInput(f"no copy of the study of {folder.name} is whole")


def _is_whole(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointInvalid:
        return False
    return True


def _back_up(file: Path, copy: Path) -> None:
    source = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=60)
    with contextlib.closing(source), contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _studies(names: Iterable[str]) -> set[str]:
    """Copies of the study, of which the newest is the last by name."""
    return {name.split("/")[1] for name in names if name.startswith(f"{STUDIES}/") and name.endswith(f"/{MANIFEST}")}


def _read_record(paths: SearchPaths) -> list[str]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return list(json.loads(paths.copies_json.read_text(encoding="utf-8"))["studies"])
    return []


def _write_record(paths: SearchPaths, studies: list[str]) -> None:
    write_json(paths.copies_json, {"studies": studies})


@contextlib.contextmanager
def _unless_gone(path: Path) -> Iterator[None]:
    """A file that is gone when it is to be copied is no error; one of a store, a bucket that is gone, is."""
    try:
        yield
    except FileNotFoundError:
        if path.exists():
            raise


def _folder(name: str) -> str:
    """By which names are looked up: a trial's folder of one epoch, else the first part."""
    parts = name.split("/")
    return "/".join(parts[:3]) if parts[0] == TRIALS else parts[0]
