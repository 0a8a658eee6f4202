"""The command line: parses, calls, prints, and sets the exit code (spaces/errors.py). Nothing else prints.

With `--json` standard output has nothing but the JSON; what a run says meanwhile goes to standard error.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafront.search import cli_export, cli_init, cli_register, cli_remote  # noqa: F401  # more commands
from lorafront.search.cli_choosing import show_confirmation  # and with it more commands
from lorafront.search.cli_cluster import show_checked  # and with it more commands
from lorafront.search.cli_end import end
from lorafront.search.cli_remote import Address, Submitted, hold, options, resume_as_jobs, there
from lorafront.search.cli_shared import (
    Devices,
    Engine,
    File,
    Json,
    Name,
    Root,
    app,
    displays,
    observer,
    searches,
    searches_under,
    study_of,
    terminal,
)
from lorafront.search.waiting import waiting
from lorafront.spaces.errors import InvalidInput, LorafrontError, NoFront
from lorafront.trainables.shipped_architectures import SHIPPED

if TYPE_CHECKING:
    from lorafront.search.study_table import StudyTable


@app.command()
def check(file: File, root: Root = None, as_json: Json = False) -> None:
    """Validate a search file against its model, its data and this machine, without running it."""
    from lorafront.search.environment import heavy_imports  # before transformers

    with waiting("checking model, data and machine"):
        with heavy_imports("transformers"):
            from lorafront.search.preflight import check as check_search
        from lorafront.search import resolved
        from lorafront.search.database import check_database
        from lorafront.search.mlflow_tracker import open_tracking
        from lorafront.search.object_store import check_storage
        from lorafront.search.run import refuse_existing
        from lorafront.search.search_file import read_search_file

        search = read_search_file(file)
        check_database()
        check_storage()
        paths = searches_under(root)
        prepared = _placed(file, lambda: check_search(search, paths, file.absolute().parent))
        tracking = open_tracking(prepared.search, paths)
    try:
        refuse_existing(paths.search(search.name))
        taken = []
    except LorafrontError as error:  # the file is good all the same
        taken = [str(error)]
    if as_json:
        typer.echo(json.dumps(resolved.as_json(prepared, tracking, taken), indent=2))
    else:
        typer.echo(resolved.resolved_text(prepared, tracking, taken))


@app.command()
def plan(
    file: Annotated[Path | None, typer.Argument(help="Search file (YAML); or give --model.")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Folder with a config.json, hub name, or {', '.join(SHIPPED)}.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="Sizes of GPU memory.")] = "8GB,12GB,16GB,24GB,48GB,80GB",
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a batch [8]; a file says its own.")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens of a row [512]; a file says its own.")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Gradient checkpointing.")] = False,
    tflops: Annotated[float, typer.Option(min=0.1, help="TFLOP/s that a GPU sustains, for a file's hours.")] = 100.0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG).")] = None,
    root: Root = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Predict memory before anything runs: what fits on which GPU, how large a batch, how long a search."""
    from lorafront.search.environment import heavy_imports  # before transformers

    paths = searches_under(root)
    with waiting(f"predicting memory; what is traced is kept in {paths.traced}"):
        with heavy_imports("transformers"):
            from lorafront.search import plan_report
            from lorafront.search.plan_question import Question, answer

        question = Question(file, model, gpu, batch, length, checkpointing, tflops)
        gpus = question.checked()
        found = answer(question, gpus, paths) if file is None else _placed(file, lambda: answer(question, gpus, paths))
    if plot is not None:
        from lorafront.search.plan_plot import plot_plan

        plot_plan(found.plan, plot)
        typer.echo(f"plot: {plot}", err=as_json or as_csv)
    if as_json:
        typer.echo(json.dumps(plan_report.as_json(found), indent=2))
    elif as_csv:
        typer.echo(plan_report.as_csv(found.plan), nl=False)
    else:
        console = terminal()
        typer.echo(plan_report.headline(found.plan) + "\n")
        for table in plan_report.tables(found.plan):
            console.print(table)
    for line in plan_report.lines(found):
        typer.echo(line, err=as_json or as_csv)


@app.command()
def run(
    file: File, root: Root = None, as_json: Json = False, engine: Engine = "process", devices: Devices = ""
) -> None:
    """Run a search, from the first trial to the front."""
    from lorafront.search.placement import rehearsed
    from lorafront.search.run import refuse_existing, run_search
    from lorafront.search.search_file import read_search_file

    start = time.monotonic()
    search = read_search_file(file)
    paths = searches_under(root)
    refuse_existing(paths.search(search.name))
    text = file.read_text(encoding="utf-8-sig")
    near = file.absolute().parent
    pretended = rehearsed(devices)

    def work() -> StudyTable:
        seen = observer(as_json=as_json)
        return run_search(search, paths, seen, text=text, near=near, engine=engine, devices=pretended)

    end(_placed(file, work), paths, start, engine, devices, as_json=as_json)


@app.command()
def resume(
    name: Name = "",
    root: Root = None,
    as_json: Json = False,
    engine: Engine = "process",
    devices: Devices = "",
    submitted: Submitted = False,
    address: Address = "",
) -> None:
    """Go on with a search that was interrupted."""
    there(address, root, "" if submitted else "--submitted")
    if submitted:
        resume_as_jobs(name, root, options(engine, devices), as_json=as_json)
        return
    if not name:
        raise InvalidInput("name the search to go on with; --submitted goes on with all that were submitted")
    from lorafront.search.placement import rehearsed
    from lorafront.search.run import resume_search

    start = time.monotonic()
    paths, pretended = searches_under(root), rehearsed(devices)
    table = resume_search(name, paths, observer(as_json=as_json), engine=engine, devices=pretended)
    end(table, paths, start, engine, devices, as_json=as_json)


@app.command()
def stop(
    name: Name,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for rungs: save at the next optimizer step.")] = False,
    trial: Annotated[int | None, typer.Option(min=0, help="End this trial alone, for good, at its next rung.")] = None,
    root: Root = None,
    address: Address = "",
) -> None:
    """Stop a search that runs: no new trials, those that run leave at their next rung; `resume` goes on."""
    from lorafront.search.read_only import refuse_imported
    from lorafront.search.requests import Request, send

    there(address, root)
    held = trial is None and hold(name, root)
    if held and not searches_under(root).search(name).has_study():
        typer.echo(f"{name} has no trial yet; it stops before its first one, and does not come back by itself")
        return
    table, paths = study_of(name, root)
    refuse_imported(table.search, "stop")
    if trial is not None and now:
        raise InvalidInput("a single trial ends at its next rung; give --trial or --now")
    if trial is not None and trial not in {running.number for running in table.running}:
        ended = {t.number: t.outcome.value for t in table.trials if t.outcome is not None}
        raise InvalidInput(f"trial {trial} does not run: {ended.get(trial, 'there is no trial of that number')}")
    request = Request(kind="stop", now=now) if trial is None else Request(kind="cancel", trial=trial)
    if not send(paths, request):
        stays = "; it does not come back by itself any more" if held else ", so there is nothing to stop"
        typer.echo(f"no process runs {name}{stays}")
    elif trial is not None:
        typer.echo(f"trial {trial} of {name} ends at its next rung; the search goes on")
    else:
        how = "at the next optimizer step" if now else "at their next rung"
        typer.echo(f"{name} stops: no new trials, those that run leave {how}; go on with: lorafront resume {name}")


@app.command()
def extend(
    name: Name,
    trials: Annotated[int | None, typer.Option(min=1, help="So many more trials.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="So many more hours of GPUs.")] = None,
    hours: Annotated[float | None, typer.Option(help="So many more hours.")] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Give a search more budget and go on with it; one that runs just goes on."""
    from lorafront.search.budget import extended, shown
    from lorafront.search.read_only import refuse_imported
    from lorafront.search.requests import Request, send
    from lorafront.search.run import resume_search

    start = time.monotonic()
    table, paths = study_of(name, root)
    refuse_imported(table.search, "extend")
    asked = {"trials": trials, "gpu_hours": gpu_hours, "hours": hours}
    more = {limit: value for limit, value in asked.items() if value is not None}
    budget = extended(table.search.budget, more, table.spent)
    if send(paths, Request(kind="extend", budget=budget)):
        goes_on = f"{name} goes on: {shown(budget, table.spent)}"
        said = json.dumps({"search": name, "budget": budget.model_dump(), "note": goes_on}, indent=2)
        typer.echo(said if as_json else goes_on)
    else:
        table = resume_search(name, searches_under(root), observer(as_json=as_json), budget=budget)
        end(table, searches_under(root), start, as_json=as_json)


@app.command(name="list")
def list_searches(root: Root = None, as_json: Json = False, address: Address = "") -> None:
    """List the searches."""
    from lorafront.search.tables import plain_table, search_rows

    there(address, root)
    paths = searches_under(root)
    rows = search_rows(paths)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif not rows:
        typer.echo(f"no search under {paths.root.resolve()}")
    else:
        terminal().print(plain_table(rows))


@app.command()
def status(name: Name, root: Root = None, as_json: Json = False, address: Address = "") -> None:
    """Show every trial of a search and where it stands."""
    from lorafront.search.ownership import is_driven
    from lorafront.search.tables import failure_lines, summary, trial_rows, trials_table

    there(address, root)
    table, paths = study_of(name, root)
    driven = is_driven(paths)
    if as_json:
        typer.echo(json.dumps(trial_rows(table), indent=2))
        return
    terminal().print(trials_table(table, driven=driven))
    typer.echo(summary(table))
    for line in failure_lines(table):
        typer.echo(line)
    if table.search.imported is not None:
        typer.echo(f"read-only: its results were imported from {table.search.imported}")
    elif driven:
        typer.echo("a process runs this search now")
    elif table.over:
        typer.echo(f"the budget is spent: {table.over}; more of it with: lorafront extend {name}")
    elif table.end is not None:
        typer.echo(table.end.value)
    else:
        typer.echo(f"no process runs this search; go on with: lorafront resume {name}")


@app.command()
def pareto(
    name: Name,
    root: Root = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG).")] = None,
    under: Annotated[str | None, typer.Option(help="The best within so much VRAM, such as 8GB.")] = None,
    confirmed: Annotated[bool, typer.Option("--confirmed", help="What `confirm` has found so far.")] = False,
    address: Address = "",
) -> None:
    """Show the Pareto front of a search."""
    from lorafront.search import front as fronts
    from lorafront.search.baseline import with_differences
    from lorafront.search.confirm import confirmation_of
    from lorafront.search.tables import baseline_lines, front_csv, front_table

    if address and plot is not None:
        raise InvalidInput("--plot writes a file where the command runs; leave it out with --address")
    there(address, root)
    table, _ = study_of(name, root)
    if confirmed:
        found = confirmation_of(table, searches_under(root))
        if found is None:
            raise NoFront(f"{name} has no replicates with other seeds; train them with: lorafront confirm {name}")
        show_confirmation(found, as_json=as_json)
        return
    members = fronts.front_of(table)
    if under is not None:
        members = fronts.best_under(table, under)
    if not members:
        raise NoFront(
            f"search {name!r} has no feasible trial at full fidelity" + (f" under {under}" if under else " yet")
        )
    if plot is not None:
        from lorafront.search.plot import plot_front

        plot_front(table, plot)
        typer.echo(f"plot: {plot}", err=as_json or as_csv)
    if as_json:
        typer.echo(json.dumps(with_differences(table, fronts.as_json(members, table.search.objective_list)), indent=2))
    elif as_csv:
        typer.echo(front_csv(table, members), nl=False)
    else:
        terminal().print(front_table(table, members))
        for line in baseline_lines(table):
            typer.echo(line)


@app.command(name="mlflow-sync")
def mlflow_sync(name: Name, root: Root = None) -> None:
    """Write the MLflow runs of a search from its study, or bring them up to date."""
    from lorafront.search.mlflow_tracker import open_tracking, shown, sync
    from lorafront.search.ownership import owned
    from lorafront.search.read_only import refuse_imported

    paths = searches_under(root)
    table, search_paths = study_of(name, root)
    refuse_imported(table.search, "write to MLflow")
    tracking = open_tracking(table.search, paths)
    if tracking.problem:
        raise InvalidInput(tracking.problem)
    with owned(search_paths), waiting("writing MLflow runs") as step:  # a living driver does the same
        count = sync(tracking, search_paths, step)
    typer.echo(f"{count} trials of {name} stand in {shown(tracking.uri)}")


@app.command()
def doctor(
    name: Annotated[
        str | None, typer.Argument(help="Name of a search; none is this machine.", autocompletion=searches)
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Check that study, trials' files and MLflow of a search fit together; exits 0, or 5 (mendable), or 6 (damage).

    Without a name: what this machine has for searches, and what would keep them from starting (exits 2).
    """
    if name is None:
        with waiting("looking at this machine"):
            from lorafront.search.machine_check import machine_checked

            checked = machine_checked(searches_under(root))
        show_checked(checked, as_json=as_json)
        return
    from lorafront.search.doctor_report import as_json as in_json
    from lorafront.search.doctor_report import examined, lines

    with waiting("checking study, files and MLflow"):
        found, notes = examined(searches_under(root), name)
    if as_json:
        typer.echo(json.dumps(in_json(name, found, notes), indent=2))
    else:
        for line in lines(name, found, notes):
            typer.echo(line)
    if found:
        sys.exit(6 if any(finding.damage for finding in found) else 5)


@app.command()
def ui(
    root: Root = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open the MLflow UI on the searches under the root."""
    from lorafront.search import environment  # noqa: F401  # before MLflow
    from lorafront.search.mlflow_ui import serve

    serve(searches_under(root), port, typer.echo)


def main() -> None:
    """Run the command line; the only place where an error becomes an exit code."""
    atexit.register(gc.freeze)  # the last collection of a process looks at nothing then: 3 s less after heavy imports
    try:
        with displays:
            app()  # unknown options and missing arguments exit with 2 by themselves
    except LorafrontError as error:
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except PermissionError as error:
        typer.echo(f"not permitted: {error}", err=True)
        sys.exit(2)


def _placed(file: Path, work: Any) -> Any:
    """Run `work`; problems that it finds get the line of their key in the file."""
    from lorafront.search.yaml_file import locate, read_yaml

    try:
        return work()
    except InvalidInput as error:
        raise InvalidInput(locate(error.problems, file, read_yaml(file)[1])) from error


if __name__ == "__main__":
    main()
