"""Copies of a search in LORAFRONT_STORAGE: its study, its checkpoints and its results, for when its folder is lost.

The driver makes them in a thread, so a store that is slow or away delays no trial. Names are those of the folder; they
hold the epoch, so what a driver that was thought dead still copies is not taken for that of its successor. A SQLite
study is copied whole, from before the files that are copied with it; one in PostgreSQL is only named.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import sys
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorafront.search.object_store import ObjectStore, line, storage
from lorafront.search.repeating import repeating
from lorafront.spaces.errors import CheckpointInvalid, InvalidInput, SearchExists
from lorafront.trainables.checkpoint import MANIFEST, read_manifest, write_folder
from lorafront.trainables.trial import TrialFolder

if TYPE_CHECKING:
    from lorafront.search.paths import SearchPaths

SECONDS = 20.0  # between two looks at what is new
SEARCH, NAMED, STUDY, STUDIES = "search.yaml", "study.json", "study.db", "study"
TRIALS, CHECKPOINTS, RESULTS = "trials", "ckpt-*", ("result.json", "attempt-*.json")


class Copies:
    """Of one search, by one driver."""

    def __init__(self, store: ObjectStore, paths: SearchPaths, epoch: int) -> None:
        """Look at nothing yet."""
        self.problem = ""
        self._store = store
        self._paths = paths
        self._epoch = epoch
        self._there: dict[str, set[str]] | None = None  # names, by folder of a trial
        self._seen: dict[Path, int] = {}
        self._study: tuple[int, ...] = ()
        self._count = 0

    def look(self, *, again: bool = False) -> None:
        """Copy what is new, and remove copies of checkpoints that the search itself removed.

        Args:
            again: look into every folder, also where its time has not changed.
        """
        try:
            there = self._known()
            with tempfile.TemporaryDirectory() as scratch:
                stamp = self._stamp()
                # Before the rest: it then names nothing that is not copied.
                study = self._snapshot(Path(scratch)) if stamp not in {(), self._study} else None
                for name in (SEARCH, NAMED):
                    if name not in there[name] and (file := self._paths.folder / name).is_file():
                        there[name] = self._put(file, name)
                for folder in sorted(self._paths.trials.glob("*/epoch-*")):
                    changed = folder.stat().st_mtime_ns
                    if again or self._seen.get(folder) != changed:
                        self._mirror(TrialFolder(folder), there)
                        self._seen[folder] = changed
                if study is not None:
                    self._put_study(study, there)
                    self._study = stamp
            self.problem = ""
        except Exception as error:  # noqa: BLE001  # of any library, network or permission; the next look may do
            self.problem = line(error)

    def _known(self) -> dict[str, set[str]]:
        if self._there is None:
            self._there = defaultdict(set)
            for name in self._store.find(self._paths.name):
                self._there[_folder(name)].add(name)
        return self._there

    def _mirror(self, trial: TrialFolder, there: dict[str, set[str]]) -> None:
        name = trial.path.relative_to(self._paths.folder).as_posix()
        results = [file for pattern in RESULTS for file in trial.path.glob(pattern)]
        for path in [*(checkpoint for _, checkpoint in reversed(trial.checkpoints())), *results]:
            copy = f"{name}/{path.name}"
            if not {copy, f"{copy}/{MANIFEST}"} & there[name]:
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile, for a newer one
                    there[name] |= self._put(path, copy)
        self._remove({one for one in there[name] if not (self._paths.folder / one).exists()}, there[name])

    def _stamp(self) -> tuple[int, ...]:
        """Another one whenever something was written to a SQLite study; empty where there is none."""
        file = self._paths.study_db
        stats = [part.stat() for part in (file, file.with_name(f"{file.name}-wal")) if part.is_file()]
        return tuple(value for one in stats for value in (one.st_mtime_ns, one.st_size))

    def _snapshot(self, scratch: Path) -> Path:
        file = self._paths.study_db
        self._count += 1
        copy = scratch / f"{self._epoch:06d}-{self._count:06d}"
        write_folder(copy, lambda folder: _back_up(file, folder / file.name), {})
        return copy

    def _put_study(self, copy: Path, there: dict[str, set[str]]) -> None:
        older = {name for name in there[STUDIES] if name.split("/")[1] < copy.name}
        there[STUDIES] |= self._put(copy, f"{STUDIES}/{copy.name}")
        self._remove(older, there[STUDIES])

    def _put(self, path: Path, name: str) -> set[str]:
        above = f"{self._paths.name}/"
        return {one.removeprefix(above) for one in self._store.put(path, above + name)}

    def _remove(self, names: set[str], there: set[str]) -> None:
        self._store.remove(f"{self._paths.name}/{name}" for name in names)
        there -= names


@contextlib.contextmanager
def copied(paths: SearchPaths, epoch: int, say: Callable[[str], None]) -> Iterator[None]:
    """Copy while the block runs, and what lacks at its end; nothing where the environment names no place.

    Args:
        paths: of the search.
        epoch: the driver's.
        say: hears where that does not work, and that it works again.
    """
    store = storage()
    if store is None:
        yield
        return
    copies = Copies(store, paths, epoch)

    def look() -> None:
        before = copies.problem
        copies.look()
        if copies.problem and not before:
            say(f"no copies in {store.url} for now ({copies.problem}); the search goes on")
        if before and not copies.problem:
            say(f"copies are in {store.url} again")

    try:
        with repeating("copies", SECONDS, look):
            yield
    finally:
        copies.look(again=True)
        if copies.problem:
            say(f"not all is copied to {store.url} ({copies.problem}); to copy it: lorafront resume {paths.name}")


def refuse_copied(name: str) -> None:
    """Raise where a new search of that name could not be copied.

    Raises:
        InvalidInput: the place for copies does not work.
        SearchExists: it has copies of another search of that name.
    """
    store = storage()
    if store is None:
        return
    store.check()
    if SEARCH in store.find(name):
        raise SearchExists(
            f"{store.url} has copies of a search {name!r}; `lorafront resume {name}` goes on with it, or choose "
            "another name"
        )


def fetch(folder: Path) -> None:
    """Make the folder of a search from its copies, if there are any and it is not there.

    Raises:
        InvalidInput: there are copies, and they cannot be fetched.
    """
    store = storage()
    if store is None or folder.exists():
        return
    try:
        names = store.find(folder.name)
        if not any(name == NAMED or name.startswith(f"{STUDIES}/") for name in names):
            return
        print(f"fetching {folder.name} from {store.url}: {len(names)} files", file=sys.stderr)
        aside = folder.parent / f".fetching-{uuid.uuid4().hex[:8]}"
        aside.mkdir(parents=True, mode=0o700)
        try:
            new = aside / folder.name
            new.mkdir(mode=0o700)
            store.get(folder.name, names, new)
            _keep_what_is_whole(new)
            new.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"{folder.name} cannot be fetched from {store.url} ({line(error)})") from error


def _keep_what_is_whole(folder: Path) -> None:
    """Remove checkpoints that were being copied when their driver died; the newest whole study is the study."""
    for path in folder.glob(f"{TRIALS}/*/*/{CHECKPOINTS}"):
        if not _is_whole(path):
            shutil.rmtree(path)
    for copy in sorted((folder / STUDIES).glob("*"), reverse=True):
        if _is_whole(copy):
            (copy / STUDY).rename(folder / STUDY)
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


def _folder(name: str) -> str:
    """By which names are looked up: a trial's folder of one epoch, else the first part."""
    parts = name.split("/")
    return "/".join(parts[:3]) if parts[0] == TRIALS else parts[0]
