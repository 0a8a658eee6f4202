"""The report of a search as files: when somebody asks for it, when a search ends, and when its front is confirmed.

At the end of a search nothing hangs on it: what keeps it from being written is said, and the search has ended well.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lorafront.search.confirm import confirmation_of
from lorafront.search.mlflow_tracker import catch_up
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.study_table import StudyTable, read_study
from lorafront.trainables.checkpoint import write_text


def write_report(table: StudyTable, root: RootPaths, file: Path) -> tuple[Path, Path]:
    """Write a search's report, with what replicates say of its front where there are any.

    Args:
        table: its study.
        root: where searches stand.
        file: the HTML; Markdown stands beside it.

    Returns:
        Both files.
    """
    from lorafront.search.report import as_html, as_markdown, shown_findings

    beside = file.with_suffix(".md")
    known, found = confirmation_of(table, root), shown_findings(table)
    write_text(file, as_html(table, known, found))
    write_text(beside, as_markdown(table, known, found))
    return file, beside


def keep_report(table: StudyTable, paths: SearchPaths, say: Callable[[str], None]) -> None:
    """Write the report of a search that has ended; of one that confirms another that other's report tells."""
    if table.search.confirms is not None:
        return
    try:
        write_report(table, RootPaths(paths.folder.parent), paths.report_html)
    except Exception as error:  # noqa: BLE001  # the search is over and its front is written, whatever happens here
        say(f"no report ({type(error).__name__}: {error}); write it with: lorafront report {paths.name}")


def tell_original(
    name: str,
    paths: SearchPaths,
    say: Callable[[str], None],
    patience: Callable[[float], float] = lambda seconds: seconds,
) -> None:
    """Bring the report and the MLflow runs of a search up to date with its replicates.

    Args:
        name: of the search.
        paths: of its replicates.
        say: hears what could not be written.
        patience: as for `mlflow_tracker.following`.
    """
    original = RootPaths(paths.folder.parent).search(name)
    try:
        if original.has_study():
            keep_report(read_study(original.study_db), original, say)
            catch_up(original, say, patience)
    except Exception as error:  # noqa: BLE001  # the replicates are there, whatever happens to the original's views
        say(f"{name} does not show its replicates yet ({type(error).__name__}: {error}): lorafront mlflow-sync {name}")
