"""Commands that take configurations out of a search: as files of other trainers, and trained at full length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorafront.search.cli_shared import Name, Root, app, searches_under


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    trial: Annotated[list[int] | None, typer.Option(help="A trial's number; without it the whole front.")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="peft (always written), transformers, trl, axolotl, llamafactory, unsloth, merged; several with commas.",
        ),
    ] = None,
    root: Root = None,
) -> None:
    """Write front members as folders that PEFT and transformers load, and as files of other trainers."""
    from lorafront.search.environment import heavy_imports
    from lorafront.search.recipes import PEFT, RECIPES, chosen_formats

    wanted = [chosen for chosen in chosen_formats(formats or []) if chosen != PEFT]
    if wanted:
        with heavy_imports("transformers"):
            import transformers  # noqa: F401  # rows and merged models need it
    from lorafront.search.export import export_front

    folders = export_front(searches_under(root).existing(name), out, trial or (), wanted)
    for folder in folders:
        typer.echo(str(folder))
    for recipe in (recipe for recipe in wanted if recipe in RECIPES):
        typer.echo(f"{recipe + ':':14}cd {folders[0]} && {RECIPES[recipe].command}")
