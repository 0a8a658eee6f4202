"""Every file name of a search, and the names that a search may have.

ROOT/mlflow.db, ROOT/mlflow-artifacts/    MLflow's default store, one for all searches under the root
ROOT/tokens/                              token rows, shared by searches
ROOT/traced/                              what memory is predicted from, shared by searches
ROOT/submitted/NAME/record.json           how to go on with a search that was submitted (search/submitted.py)
ROOT/submitted/NAME/files/, lock          what travelled with it, and the lock of whoever changes the record
ROOT/NAME/search.yaml                     the file as the user wrote it
ROOT/NAME/study.db                        Optuna storage: the only source of truth
ROOT/NAME/study.json                      in its place where the study is in PostgreSQL: which one (search/database.py)
ROOT/NAME/driver.lock                     held by the living driver
ROOT/NAME/copies.json                     which copy in object storage is of this folder (search/copies.py)
ROOT/NAME/control/request-….json          what `stop` and `extend` ask of the living driver (search/requests.py)
ROOT/NAME/control/epoch-E/, cancel-NNNNN  what that driver asks of its trials (trainables/orders.py)
ROOT/NAME/trials/NNNNN/epoch-E/           one trial's checkpoints and result (trainables/trial.py)
ROOT/NAME/front.png, front.json           written when the search ends
ROOT/NAME/report.html, report.md          likewise, and by `lorafront report`
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lorafront.search import database
from lorafront.search.object_store import VARIABLE as COPIES
from lorafront.spaces.errors import InvalidInput, Problem, SearchNotFound, did_you_mean
from lorafront.trainables.orders import OrderFolder
from lorafront.trainables.trial import TrialFolder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RESERVED = frozenset({"tokens", "traced", "submitted", "mlflow-artifacts", "mlflow.db"})


def check_name(name: str) -> str:
    """Return the name, or raise ValueError: it becomes a folder, so nothing in it may lead elsewhere."""
    if not _NAME.fullmatch(name) or name.lower() in RESERVED:
        raise ValueError(
            f"must be 1 to 64 letters, digits, dots, hyphens or underscores, a letter or digit first (got {name!r})"
        )
    return name


def located(name: str, near: Path) -> str:
    """A local path made absolute, from the current folder, else from `near`; other names as they are."""
    for place in (Path(name).expanduser(), near / name):
        if place.exists():
            return str(place.resolve())
    return name


def default_root() -> Path:
    """`LORAFRONT_ROOT`, or `runs` under the current folder."""
    return Path(os.environ.get("LORAFRONT_ROOT") or "runs")


@dataclass(frozen=True)
class RootPaths:
    """Names that searches under one root share."""

    root: Path

    @property
    def mlflow_db(self) -> Path:
        """SQLite store of MLflow."""
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow keeps artifacts."""
        return self.root / "mlflow-artifacts"

    @property
    def tokens(self) -> Path:
        """Token caches."""
        return self.root / "tokens"

    @property
    def traced(self) -> Path:
        """Traced training steps."""
        return self.root / "traced"

    def submitted(self, name: str = "") -> Path:
        """Folder of what is kept of a search that was submitted; without a name that of all."""
        return self.root / "submitted" / name

    def search(self, name: str) -> SearchPaths:
        """Names of one search."""
        return SearchPaths(self.root / name)

    def names(self) -> list[str]:
        """Searches under the root, oldest first."""
        found = [file.parent for kind in ("db", "json") for file in self.root.glob(f"*/study.{kind}")]
        return [path.name for path in sorted(found, key=lambda path: (path.stat().st_ctime, path.name))]

    def make(self) -> None:
        """Make the folder where it is missing, for this user alone: there will be data of theirs in it."""
        self.root.mkdir(parents=True, mode=0o700, exist_ok=True)

    def existing(self, name: str) -> SearchPaths:
        """A search that is there.

        Raises:
            SearchNotFound: it is not; names what is near.
        """
        try:
            paths = self.search(check_name(name))
        except ValueError as error:
            raise SearchNotFound(f"name {error}") from error
        if not paths.has_study():
            names = self.names()
            there = f" There is: {', '.join(names)}." if names else " There is none yet."
            copied = f" One that was copied comes back by: lorafront resume {name}" if os.environ.get(COPIES) else ""
            where = f"{self.root.resolve()}.{did_you_mean(name, names)}"
            raise SearchNotFound(f"no search {name!r} under {where}{there}{copied}")
        return paths

    def check_writable(self) -> None:
        """Write, sync and rename a file where the root is or will be, and leave nothing.

        Raises:
            InvalidInput: that does not work, or anybody may put files in the place of those of a search.
        """
        place = self.root.absolute()
        if self.root.is_dir() and self.root.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            message = (
                f"{place} can be written by every user of this machine: chmod o-w {place}, or choose another folder"
            )
            raise InvalidInput([Problem((), f"{message} folder with --root")])
        while not os.path.lexists(place) and place != place.parent:  # a link to nowhere is there, and is no folder
            place = place.parent
        try:
            with tempfile.TemporaryDirectory(dir=place, prefix=".lorafront-") as probe:
                file = Path(probe) / "probe"
                with file.open("wb") as stream:
                    stream.write(b"x" * 4096)
                    os.fsync(stream.fileno())
                file.rename(Path(probe) / "renamed")
        except OSError as error:
            raise InvalidInput(
                [
                    Problem(
                        (), f"cannot write below {place} ({error.strerror or error}); choose another folder with --root"
                    )
                ]
            ) from error


@dataclass(frozen=True)
class SearchPaths:
    """Names of one search."""

    folder: Path

    @property
    def name(self) -> str:
        """The search's name."""
        return self.folder.name

    @property
    def search_yaml(self) -> Path:
        """The file as the user wrote it."""
        return self.folder / "search.yaml"

    @property
    def study_db(self) -> Path:
        """Optuna storage."""
        return self.folder / "study.db"

    def has_study(self) -> bool:
        """Whether the search has begun."""
        return database.has_study(self.study_db)

    @property
    def driver_lock(self) -> Path:
        """Held by the living driver."""
        return self.folder / "driver.lock"

    @property
    def control(self) -> Path:
        """Requests to the driver, and its orders."""
        return self.folder / "control"

    def orders(self, epoch: int) -> OrderFolder:
        """What the driver of that epoch asks of its trials."""
        return OrderFolder(self.control / f"epoch-{epoch}")

    @property
    def front_png(self) -> Path:
        """Picture of the front."""
        return self.folder / "front.png"

    @property
    def front_json(self) -> Path:
        """The front, as `pareto --json` prints it."""
        return self.folder / "front.json"

    @property
    def report_html(self) -> Path:
        """The report; `report.md` stands beside it."""
        return self.folder / "report.html"

    @property
    def copies_json(self) -> Path:
        """Which copy in object storage is of this folder."""
        return self.folder / "copies.json"

    @property
    def trials(self) -> Path:
        """Folder of the trials' folders."""
        return self.folder / "trials"

    def is_unused(self) -> bool:
        """True where nothing stands under the name, or only what a driver that died in its checks left."""
        return not self.folder.exists() or {path.name for path in self.folder.iterdir()} <= {
            self.driver_lock.name,
            self.search_yaml.name,
        }

    def epochs(self, number: int) -> list[TrialFolder]:
        """Folders of one trial, by every driver that began it."""
        return [TrialFolder(folder) for folder in sorted((self.trials / f"{number:05d}").glob("epoch-*"))]

    def newest_epoch(self) -> int:
        """Of all trials; also those that an older copy of the study knows nothing of. 0 without any."""
        found = (folder.name.partition("-")[2] for folder in self.trials.glob("*/epoch-*"))
        return max((int(epoch) for epoch in found if epoch.isdigit()), default=0)

    def trial(self, number: int, epoch: int) -> TrialFolder:
        """Folder of one trial, as written by the driver of that epoch."""
        return TrialFolder(self.trials / f"{number:05d}" / f"epoch-{epoch}")
