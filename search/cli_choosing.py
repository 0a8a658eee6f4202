"""Commands that choose from a front."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from lorafront.search.cli_shared import (
    Devices,
    Engine,
    Json,
    Name,
    Root,
    app,
    observer,
    searches_under,
    study_of,
    terminal,
)
from lorafront.search.waiting import waiting
from lorafront.spaces.errors import InvalidInput

if TYPE_CHECKING:
    from lorafront.search.answers import Generations
    from lorafront.search.confirmation import Confirmation
    from lorafront.search.other_batch import OtherBatch
    from lorafront.search.paths import SearchPaths
    from lorafront.search.recommendation import Recommendation
    from lorafront.search.study_table import StudyTable


@app.command()
def recommend(
    name: Name,
    vram: Annotated[str | None, typer.Option(help="Memory of the GPU, such as 8GB [the knee of the front].")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Rows of a pass that you will train with [each trial's own].")
    ] = None,
    prompts: Annotated[
        str,
        typer.Option(help="Let the candidates answer: a file, a line each or JSON lines; eval: rows of the search."),
    ] = "",
    prompt: Annotated[list[str] | None, typer.Option(help="A single prompt; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens of an answer at most.")] = 60,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Say which configuration to take, why, and what the next better costs and the next cheaper loses."""
    from lorafront.search import recommendation
    from lorafront.search.confirm import confirmation_of
    from lorafront.search.confirmation import as_confirmed
    from lorafront.spaces.sizes import parse_size

    table, paths = study_of(name, root)
    known = confirmation_of(table, searches_under(root))
    try:
        size = None if vram is None else parse_size(vram)
    except ValueError as error:
        raise InvalidInput(f"--vram {error}") from error
    chosen_from = as_confirmed(known) if known else table
    other = None if batch is None else _other_batch(table, chosen_from, paths, batch)
    found = recommendation.recommend(other.table if other else chosen_from, size)
    said = _generations(found, table, paths, prompts, prompt or (), tokens) if prompts or prompt else None
    if as_json:
        also: dict[str, Any] = {"batch": other.as_json(found.trial, found.quality.label)} if other else {}
        also |= {"generations": said.as_json()} if said else {}
        typer.echo(json.dumps({**recommendation.as_json(found), **also}, indent=2))
        return
    for line in [
        *recommendation.lines(found, known),
        *(other.lines(found.trial, found.quality.label) if other else []),
    ]:
        typer.echo(textwrap.fill(line, 80, subsequent_indent="  "))
    terminal().print(recommendation.tiers_table(found))
    for block in (*said.blocks(), "") if said else ():
        terminal().print(block)
    if table.search.imported is None:
        typer.echo(
            f"export:  lorafront export {name} --trial {found.trial.number} --out DIR"
            + (f" --root {root}" if root else "")
        )


def _other_batch(table: StudyTable, chosen_from: StudyTable, paths: SearchPaths, rows: int) -> OtherBatch:
    """Predict; tracing what was not traced before takes seconds."""
    from lorafront.search.environment import heavy_imports  # before transformers

    with waiting(f"tracing training steps with {rows} rows a pass"):
        with heavy_imports("transformers"):
            from lorafront.search.other_batch import other_batch

        return other_batch(table, chosen_from, paths, rows)


def _generations(
    found: Recommendation, table: StudyTable, paths: SearchPaths, source: str, texts: Sequence[str], tokens: int
) -> Generations:
    """Answers of the candidates."""
    from lorafront.search.environment import heavy_imports  # before peft

    with waiting("writing answers") as step:
        with heavy_imports("peft"):
            from lorafront.search.generations import Asked, generations

        return generations(found, table, paths, Asked(source, texts, tokens), step)


@app.command()
def confirm(
    name: Name,
    seeds: Annotated[
        int | None, typer.Option(min=2, max=99, help="Replicates of a configuration at most [the file's, else 3].")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0.001, help="Hours that it may take, all calls together.")] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Rows that the search never saw [those that its data leaves].")
    ] = None,
    longer: Annotated[
        bool, typer.Option("--longer", help="With twice the rows, to see whether those that win hold.")
    ] = False,
    root: Root = None,
    as_json: Json = False,
    engine: Engine = "process",
    devices: Devices = "",
) -> None:
    """Train the front again with other seeds, on rows that the search never saw: intervals, and who stays on it."""
    from lorafront.search.confirm import confirm_search
    from lorafront.search.placement import rehearsed

    found = confirm_search(
        name,
        searches_under(root),
        observer(as_json=as_json),
        seeds=seeds,
        hours=hours,
        held_out=held_out,
        longer=longer,
        engine=engine,
        devices=rehearsed(devices),
    )
    show_confirmation(found, as_json=as_json)


@app.command()
def compare(
    name: Name,
    baseline: Annotated[str, typer.Option(help="With commas: default (what guides recommend), full.")] = "default",
    seeds: Annotated[
        int | None, typer.Option(min=2, max=99, help="Replicates of a baseline [as many as `confirm` may use].")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0.001, help="Hours that it may take, all calls together.")] = None,
    root: Root = None,
    as_json: Json = False,
    engine: Engine = "process",
    devices: Devices = "",
) -> None:
    """Train the recommended default, or the whole model, beside the front: the same seeds, and rows it never saw."""
    from lorafront.search.compare import compare_search
    from lorafront.search.placement import rehearsed
    from lorafront.search.search_file import Baseline

    asked = [one.strip() for one in baseline.split(",")]
    known = get_args(Baseline)
    if unknown := [one for one in asked if one not in known]:
        raise InvalidInput(f"--baseline takes {', '.join(known)} (got {unknown[0]!r})")
    found = compare_search(
        name,
        searches_under(root),
        [one for one in known if one in asked],
        observer(as_json=as_json),
        seeds=seeds,
        hours=hours,
        engine=engine,
        devices=rehearsed(devices),
    )
    show_confirmation(found, as_json=as_json)


def show_confirmation(found: Confirmation, *, as_json: bool = False) -> None:
    """Print what replicates say."""
    from lorafront.search import confirmation_report

    if as_json:
        typer.echo(json.dumps(confirmation_report.as_json(found), indent=2))
        return
    terminal().print(confirmation_report.confirmation_table(found))
    for line in confirmation_report.lines(found):
        typer.echo(textwrap.fill(line, 80, subsequent_indent="  "))


@app.command()
def findings(name: Name, root: Root = None, as_json: Json = False) -> None:
    """Say what the trials have shown: what rank, modules and quantization gain and cost, and where defaults fail."""
    with waiting("comparing trials"):
        from lorafront.search import findings as shown

        table, _ = study_of(name, root)
        found = shown.findings(table)
    if as_json:
        typer.echo(json.dumps(shown.as_json(found), indent=2))
        return
    for title, group in found.titled:
        typer.echo(title)
        for one in group:
            typer.echo(textwrap.fill(one.says, 80, initial_indent="  ", subsequent_indent="    "))
    if not found.found:
        typer.echo(f"the trials of {name} support no finding yet")
    typer.echo(textwrap.fill(found.about, 80))


@app.command()
def report(
    name: Name,
    out: Annotated[Path | None, typer.Option(help="File to write [report.html in the folder of the search].")] = None,
    root: Root = None,
) -> None:
    """Write one HTML file with the front, its figures and how to repeat it, and a Markdown version beside it."""
    table, paths = study_of(name, root)
    file = out or paths.report_html
    if file.suffix == ".md" or file.is_dir() or any(parent.is_file() for parent in file.parents):
        raise InvalidInput(f"--out {file} is no place for a web page; give a name such as report.html")
    file.parent.mkdir(parents=True, exist_ok=True)
    with waiting("comparing trials and drawing figures"):
        from lorafront.search.report_files import write_report

        written = write_report(table, searches_under(root), file)
    typer.echo("\n".join(map(str, written)))
    if file == paths.report_html and table.search.imported is None:
        typer.echo(
            f"MLflow's parent run gets both with: lorafront mlflow-sync {name}" + (f" --root {root}" if root else "")
        )


@app.command(name="import-results")
def import_results(
    file: Annotated[Path, typer.Argument(help="Table of results: CSV, TSV, JSON lines.")],
    name: Annotated[str, typer.Option(help="Name of the new search.")],
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", help="OURS=THEIRS, as in rank=lora_r,perplexity=val_ppl [the usual names]."),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Column whose exponential is the perplexity.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the rows [the table's].")] = None,
    vram_unit: Annotated[
        str | None, typer.Option(help="Of peak memory: GB, MB, bytes, or a number of bytes [as its column is called].")
    ] = None,
    objectives: Annotated[str | None, typer.Option(help="Axes of the front, with commas [all, four at most].")] = None,
    replicates: Annotated[
        bool, typer.Option("--replicates", help="Rows that repeat a configuration are replicates of it.")
    ] = False,
    root: Root = None,
) -> None:
    """Make a read-only search from a table of anybody's results, to choose from it and report on it."""
    pairs = [pair.strip() for given in columns or () for pair in given.split(",")]
    for pair in pairs:
        if not all(part.strip() for part in pair.partition("=")):
            raise InvalidInput(f"--map takes OURS=THEIRS (got {pair!r})")
    chosen = {ours.strip(): theirs.strip() for ours, _, theirs in (pair.partition("=") for pair in pairs)}
    axes = [axis.strip() for axis in objectives.split(",")] if objectives else []
    with waiting("reading the table"):
        from lorafront.search.import_results import Reading
        from lorafront.search.import_results import import_results as imported

        reading = Reading(chosen, loss, model, vram_unit, axes, replicates)
        table = imported(file, name, searches_under(root), reading)
    for note in table.notes:
        typer.echo(textwrap.fill(note, 80, subsequent_indent="  "))
    option = f" --root {root}" if root else ""
    typer.echo(f"choose:  lorafront recommend {name}{option}; lorafront report {name}{option}")
