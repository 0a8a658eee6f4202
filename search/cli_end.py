"""What the command line says when a run has ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lorafront.search.cli_choosing import show_confirmation
from lorafront.search.cli_shared import observer, terminal
from lorafront.spaces.errors import LorafrontError, NoFront

if TYPE_CHECKING:
    from lorafront.search.confirmation import Confirmation
    from lorafront.search.paths import RootPaths
    from lorafront.search.study_table import StudyTable, TrialRecord


def end(
    table: StudyTable,
    root: RootPaths,
    start: float,
    engine: str = "process",
    devices: str = "",
    *,
    as_json: bool = False,
) -> None:
    """The end of a run: what came out, and, where the search's file asks for it, what it is worth with other seeds."""
    from lorafront.search import front as fronts
    from lorafront.search.baseline import with_differences
    from lorafront.search.confirmation_report import as_json as confirmation_as_json

    members, seconds = fronts.front_of(table), time.monotonic() - start
    if not as_json:
        _conclude(table, members, root, seconds)
    confirmed, failed = None, None
    try:
        confirmed = _confirm(table, root, engine, devices, as_json=as_json) if members else None
    except LorafrontError as error:  # what the search itself found is told all the same
        failed = error
    if as_json:
        front = with_differences(table, fronts.as_json(members, table.search.objective_list))
        found = None if confirmed is None else confirmation_as_json(confirmed)
        said = {"search": table.search.name, "trials": len(table.counted), "seconds": seconds, "front": front}
        typer.echo(json.dumps({**said, "confirmed": found}, indent=2))
    elif confirmed is not None:
        show_confirmation(confirmed)
    if failed is not None:
        raise failed
    if not members:
        raise NoFront(f"search {table.search.name!r} ended without a feasible trial at full fidelity")


def _conclude(table: StudyTable, members: Sequence[TrialRecord], root: RootPaths, seconds: float) -> None:
    """What came out of a run, where it lies, and what to do with it."""
    from lorafront.search.tables import baseline_lines, failure_lines, front_table, reference_lines

    paths = root.search(table.search.name)
    if members:
        terminal().print(front_table(table, members))
    for line in (*baseline_lines(table), *reference_lines(table)):
        typer.echo(line)
    typer.echo(f"{len(table.counted)} trials recorded; this run took {seconds // 60:.0f} min {seconds % 60:.0f} s")
    for line in failure_lines(table):
        typer.echo(line, err=True)
    option = "" if root.root == Path("runs") else f" --root {root.root}"
    if table.complete:
        typer.echo(f"plot:    {paths.front_png}")
    if paths.report_html.is_file():
        typer.echo(f"report:  {paths.report_html}")
    if members:
        typer.echo(f"choose:  lorafront recommend {paths.name}{option}")
        typer.echo(f"export:  lorafront export {paths.name} --out exports/{paths.name}{option}")
    own_store = not table.search.tracking.uri and not os.environ.get("MLFLOW_TRACKING_URI")
    typer.echo(f"MLflow:  lorafront ui{option}" if own_store else "MLflow:  on the server that tracking names")


def _confirm(table: StudyTable, root: RootPaths, engine: str, devices: str, *, as_json: bool) -> Confirmation | None:
    """Where the search's file asks for it, train its front again with other seeds."""
    if table.search.confirm is None or table.search.confirms is not None:
        return None
    from lorafront.search.compare import compare_search
    from lorafront.search.confirm import confirm_search
    from lorafront.search.placement import rehearsed

    name, pretended = table.search.name, rehearsed(devices)
    typer.echo("the front is trained again with other seeds", err=as_json)
    found = confirm_search(name, root, observer(as_json=as_json), engine=engine, devices=pretended)
    baselines = table.search.confirm.baselines
    if not baselines:
        return found
    typer.echo(f"and so is what it is compared with: {', '.join(baselines)}", err=as_json)
    return compare_search(name, root, baselines, observer(as_json=as_json), engine=engine, devices=pretended)
