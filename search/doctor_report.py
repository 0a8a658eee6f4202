"""`lorafront doctor`: reads all that a search has written, and says each thing that does not fit together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lorafront.search.database import place_of
from lorafront.search.doctor import Finding, examine, examine_runs
from lorafront.search.mlflow_tracker import open_tracking, shown
from lorafront.search.ownership import owned
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.read_only import refuse_imported
from lorafront.search.study_table import StudyTable, read_study
from lorafront.spaces.errors import SearchOwned


def examined(root: RootPaths, name: str) -> tuple[list[Finding], list[str]]:
    """What does not fit together, and what was looked at.

    Raises:
        SearchNotFound: there is none of that name.
        StateUnreadable: its study cannot be read.
    """
    paths = root.existing(name)
    refuse_imported(read_study(paths.study_db).search, "check")
    try:
        with owned(paths):  # nobody writes meanwhile
            return _examined(root, paths, driven=False)
    except SearchOwned:
        found, notes = _examined(root, paths, driven=True)
        return found, [
            *notes, "a process runs this search now: only what has ended was checked, and MLflow not at all"
        ]  # fmt: skip


def lines(name: str, found: list[Finding], notes: list[str]) -> list[str]:
    """For people."""
    said = [str(line) for line in (*found, *notes)]
    return [*said, f"{name}: {len(found)} findings" if found else f"{name}: nothing is wrong"]


def as_json(name: str, found: list[Finding], notes: list[str]) -> dict[str, Any]:
    """For programs."""
    return {"search": name, "findings": [asdict(finding) for finding in found], "notes": notes}


def _examined(root: RootPaths, paths: SearchPaths, *, driven: bool) -> tuple[list[Finding], list[str]]:
    table = read_study(paths.study_db)
    found = examine(paths, table, driven=driven)
    notes = [f"{len(table.trials)} trials in {place_of(paths.study_db)}, their files checked"]
    if not driven:
        more, note = _runs(root, paths.name, table)
        found, notes = found + more, [*notes, note]
    return found, notes


def _runs(root: RootPaths, name: str, table: StudyTable) -> tuple[list[Finding], str]:
    tracking = open_tracking(table.search, root)
    if tracking.problem:
        return [], f"{tracking.problem}; its runs were not checked"
    if tracking.uri == f"sqlite:///{root.mlflow_db.absolute()}" and not root.mlflow_db.is_file():
        return [Finding(f"{root.mlflow_db} is not there", f"lorafront mlflow-sync {name}")], "MLflow: no store"
    from lorafront.search.mlflow_reader import read_runs

    return examine_runs(name, table, read_runs(tracking, table)), f"MLflow at {shown(tracking.uri)} checked"
