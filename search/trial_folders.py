"""Where the trials of one driver write: each in its folder of the epoch in which it was last begun.

What an older driver left, or a worker on a node that is gone, may be written to still: its trial goes on in another
folder, with a copy of its checkpoints.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lorafront.trainables.checkpoint import ASIDE

if TYPE_CHECKING:
    from lorafront.search.paths import SearchPaths
    from lorafront.search.study import StudyLedger
    from lorafront.search.study_table import StudyTable
    from lorafront.trainables.trial import TrialFolder


class TrialFolders:
    """Of one driver."""

    def __init__(self, paths: SearchPaths, ledger: StudyLedger, table: StudyTable) -> None:
        """Args: paths: of the search. ledger: knows the epoch. table: the study as the driver found it."""
        self._paths = paths
        self._ledger = ledger
        self._epochs = {trial.number: trial.epoch for trial in table.running if trial.epoch}

    def begin(self, number: int) -> Path:
        """The folder in which a trial begins, or goes on, now."""
        epoch = self._ledger.epoch
        before = self._epochs.get(number, epoch)
        folder = self._paths.trial(number, epoch).path
        if before != epoch:
            adopt(self._paths.trial(number, before).path, folder)
        self._epochs[number] = epoch
        return folder

    def of(self, number: int) -> TrialFolder:
        """That of a trial that has begun."""
        return self._paths.trial(number, self._epochs[number])

    def leave(self, number: int) -> None:
        """Begun again, a trial goes on elsewhere: its worker may only be cut off, and write on."""
        if self._epochs[number] == self._ledger.epoch:
            self._ledger.begin_epoch()


def sweep_finished(paths: SearchPaths, table: StudyTable) -> None:
    """Remove what workers that died had half written of trials that have ended, in whichever epoch."""
    for trial in table.trials:
        if trial.result is not None:
            for folder in paths.epochs(trial.number):
                folder.sweep()


def adopt(old: Path, new: Path) -> None:
    """Copy an earlier epoch's checkpoints: what an old worker still writes goes where nobody looks."""
    if not old.is_dir() or new.exists():
        return
    try:
        shutil.copytree(old, new, ignore=shutil.ignore_patterns(f"*{ASIDE}*"))
    except shutil.Error as error:
        if any(Path(source).exists() for source, _, _ in error.args[0]):
            raise  # else that worker renamed or deleted it meanwhile; manifests say what is whole
