"""Commands that take configurations out of a search: as files of other trainers, and trained at full length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafront.search.cli_shared import Name, Root, app, searches_under
from lorafront.search.waiting import waiting

if TYPE_CHECKING:
    from lorafront.trainables.trial import Report


@app.command()
def export(
    name: Name,
    out: Annotated[str, typer.Option(help="Folder to write, or a URL such as s3://bucket/folder.")],
    trial: Annotated[list[int] | None, typer.Option(help="A trial's number; without it the whole front.")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="peft (always), transformers, trl, axolotl, llamafactory, unsloth, merged; several with commas.",
        ),
    ] = None,
    root: Root = None,
) -> None:
    """Write front members as folders that PEFT and transformers load, and as files of other trainers."""
    from lorafront.search.environment import heavy_imports
    from lorafront.search.object_store import written_to
    from lorafront.search.recipes import INDEX, PEFT, RECIPES, chosen_formats

    wanted = [chosen for chosen in chosen_formats(formats or []) if chosen != PEFT]
    with written_to(out, INDEX) as folder, waiting("writing trials") as step:
        if wanted:
            with heavy_imports("transformers"):
                import transformers  # noqa: F401  # rows and merged models need it
        from lorafront.search.export import export_front

        folders = export_front(searches_under(root).existing(name), folder, trial or (), wanted, step)
    is_here = folder == Path(out)
    for written in folders:
        typer.echo(str(written) if is_here else f"{out.rstrip('/')}/{written.name}")
    for recipe in (recipe for recipe in wanted if recipe in RECIPES and is_here):
        typer.echo(f"{recipe + ':':14}cd {folders[0]} && {RECIPES[recipe].command}")


@app.command()
def train(
    export: Annotated[Path, typer.Argument(help="Folder of one exported trial.")],
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the rows.")],
    data: Annotated[
        str | None, typer.Option(help="File, folder or hub name, of the search's format [the data of the search].")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="The same to evaluate on [what the data has, else a part of it].")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Training rows at most [all].")] = None,
    model: Annotated[str | None, typer.Option(help="The base, where it has moved.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write [EXPORT-trained].")] = None,
) -> None:
    """Train an exported configuration at full length; what was interrupted goes on by the same command."""
    from lorafront.search.train_export import Length, train_export

    folder = out or export.with_name(f"{export.name}-trained")
    with waiting("training rows") as step:
        train_export(export, folder, Length(epochs, data, eval_data, rows, model), step, _say)
    typer.echo(str(folder))


def _say(report: Report, total: int) -> None:
    """What an evaluation found."""
    names = ("perplexity", "accuracy", "f1", "eval_loss")
    found = [f"{name} {report.measurements[name]:.5g}" for name in names if name in report.measurements]
    print(f"{report.rows} of {total} rows: {', '.join(found)}")  # typer's echo would go into the line that is drawn
