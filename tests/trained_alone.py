"""Small searches that really trained, in this process: no Ray, no MLflow, one trial after the other."""

from __future__ import annotations

from pathlib import Path

from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.preflight import check
from lorafront.search.prepared import Prepared
from lorafront.search.search_file import SearchFile
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import StudyTable, read_study
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.peft_session import open_session
from lorafront.trainables.trial import Trial

Trained = tuple[StudyTable, SearchPaths, Prepared]


def trained_alone(search: SearchFile, folder: Path, bases: BaseCache) -> Trained:
    """Every configuration that its sampler proposes, up to its budget; data and code lie in the folder."""
    root = RootPaths(folder / "runs")
    prepared, paths = check(search, root, folder), root.search(search.name)
    paths.folder.mkdir(parents=True)
    prepared.store()
    ledger = StudyLedger(paths.study_db, prepared.search, create=True, canonical=prepared.canonical)
    ledger.keep_data(prepared.token_file.name, prepared.rungs, {})
    epoch = ledger.begin_epoch()
    for _ in range(search.budget.trials or 0):
        number, lora = ledger.ask() or (-1, None)
        assert lora is not None
        ledger.started(number)
        config = prepared.trial(lora)
        trial = Trial(lambda config=config: open_session(config, bases), prepared.rungs, paths.trial(number, epoch))
        while (report := trial.next_rung()).outcome is None:
            ledger.record_rung(number, report)
        trial.close()
        assert not report.error, report.error
        ledger.tell(number, report)
    return read_study(paths.study_db), paths, prepared
