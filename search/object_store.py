"""A place for copies in an object store, or wherever fsspec can write: `s3://bucket/path`, `file:///path`.

A folder's manifest is written last, and what is fetched is verified by it: a copy is whole or it is not there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.checkpoint import ASIDE, MANIFEST

VARIABLE = "LORAFRONT_STORAGE"
LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
TRIAL = "trial-"  # begins the name of a folder of an export
AT_ONCE = 8  # files, since each costs a round trip
OPTIONS: dict[str, dict[str, Any]] = {  # without them botocore is patient for minutes with a store that is away
    "s3": {
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 2}},
        "max_concurrency": 2,  # parts of each file, which are all in memory
    },
    "file": {"auto_mkdir": True},
    "local": {"auto_mkdir": True},
}


@dataclass(frozen=True)
class ObjectStore:
    """One place; names in it are paths with slashes. Errors are those of the library behind it.

    Attributes:
        url: of the place. It holds no secret: keys come from the environment, or from files that the library reads.
    """

    url: str

    def put(self, path: Path, name: str) -> set[str]:
        """Copy a file or a folder, its manifest last; returns the names of the files."""
        above = f"{name}/" if name else ""
        files = {above + file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        if path.is_file():
            files = {name: path}
        last = above + MANIFEST
        self._each(lambda one: self._put_file(files[one], one), files.keys() - {last})
        if last in files:
            self._put_file(files[last], last)
        return set(files)

    def _put_file(self, file: Path, name: str) -> None:
        if "file" not in self._files.protocol:
            self._files.put_file(str(file), self._at(name))
            return
        aside = f"{self._at(name)}{ASIDE}{uuid.uuid4().hex[:8]}"  # others have a file whole or not at all
        self._files.put_file(str(file), aside)
        Path(aside).replace(self._at(name))

    def get(self, below: str, names: Iterable[str], folder: Path) -> None:
        """Fetch files, named from there, into a folder.

        Raises:
            InvalidInput: one of the names leads out of the folder.
        """
        top = folder.resolve()
        files = {name: (top / name).resolve() for name in names}
        for name, file in files.items():
            if not file.is_relative_to(top) or file == top:
                raise InvalidInput(f"{self.url}/{below} has a name that leads out of it: {name!r}")
            file.parent.mkdir(parents=True, exist_ok=True)
        above = f"{below}/" if below else ""
        self._each(lambda name: self._files.get_file(self._at(above + name), str(files[name])), files)

    def find(self, below: str) -> set[str]:
        """Names of all files below a name, from there."""
        self._files.invalidate_cache()
        above = f"{self._at(below)}/"
        found = (path.removeprefix(above) for path in self._files.find(above) if path.startswith(above))
        return {name for name in found if name and not name.endswith("/")}  # marks of folders, as consoles make them

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; manifests first, since a folder without one counts as none."""
        for name in sorted(names, key=lambda name: (not name.endswith(MANIFEST), name)):
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._at(name))

    def check(self) -> None:
        """Write a file, read it and remove it.

        Raises:
            InvalidInput: one of that does not work.
        """
        below, said = f".lorafront-{uuid.uuid4().hex}", os.urandom(16)
        try:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "sent").write_bytes(said)
                self.put(Path(folder) / "sent", f"{below}/probe")
                names = self.find(below)
                self.get(below, names, Path(folder))
                self.remove(f"{below}/{name}" for name in names)
                read = {name: (Path(folder) / name).read_bytes() for name in names}
                problem = "" if read == {"probe": said} else "what was written reads otherwise"
        except InvalidInput:
            raise
        except Exception as error:  # noqa: BLE001  # of any library, network or permission
            problem = line(error)
        if problem:
            raise InvalidInput(
                f"{VARIABLE}: {self.url} cannot be written and read ({problem}); keys and address come from the "
                "environment of this process, such as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
            )

    def _at(self, name: str) -> str:
        return f"{self._base}/{name}".rstrip("/")

    def _each(self, do: Any, items: Iterable[Any]) -> None:
        with ThreadPoolExecutor(AT_ONCE, "store") as threads:
            for _ in threads.map(do, items):
                pass

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @property
    def _base(self) -> str:
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        scheme = self.url.partition("://")[0]
        try:
            files, base = url_to_fs(self.url, **OPTIONS.get(scheme, {}))
        except ImportError as error:
            fix = f"pip install {LIBRARIES[scheme]}" if scheme in LIBRARIES else line(error)
            raise InvalidInput(f"{self.url} needs a library: {fix}") from error
        except Exception as error:
            raise InvalidInput(f"{self.url} cannot be opened: {line(error)}") from error
        return files, str(base).rstrip("/")


def storage() -> ObjectStore | None:
    """The place that the environment names; none where it names none.

    Raises:
        InvalidInput: it is no URL, or has a secret in it.
    """
    url = os.environ.get(VARIABLE, "").strip().rstrip("/")
    return place(url, VARIABLE) if url else None


def check_storage() -> None:
    """Raise where the place that the environment names does not work.

    Raises:
        InvalidInput: so it is.
    """
    if (store := storage()) is not None:
        store.check()


def place(url: str, what: str) -> ObjectStore:
    """The place of a URL.

    Args:
        url: of it.
        what: names it.

    Raises:
        InvalidInput: it is no URL, or has a secret in it.
    """
    scheme, there, rest = url.partition("://")
    if not (scheme and there and rest):
        raise InvalidInput(f"{what} is a URL such as s3://bucket/searches")
    if "@" in rest or "?" in rest:  # not shown: it may be a password
        raise InvalidInput(f"{what} has a user, a password or a query in it; give them in the environment instead")
    return ObjectStore(url.rstrip("/"))


@contextlib.contextmanager
def written_to(out: str, index: str) -> Iterator[Path]:
    """A folder to write an export into; at a URL the trials of an earlier one that it has not are removed.

    Args:
        out: a path, or a URL.
        index: a file that every export has.

    Raises:
        InvalidInput: there are other files, or it cannot be written.
    """
    if "://" not in out:
        yield Path(out)
        return
    store = place(out, "--out")
    try:
        before = store.find("")
    except Exception as error:
        raise InvalidInput(f"--out: {out} cannot be read ({line(error)})") from error
    if before and index not in before:
        raise InvalidInput(f"{out} holds other files; give a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        try:
            stale = before - store.put(Path(scratch), "")
            store.remove(name for name in stale if name.startswith(TRIAL))
        except Exception as error:
            raise InvalidInput(f"--out: {out} cannot be written ({line(error)})") from error


def line(error: BaseException) -> str:
    """An error of whichever library, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
