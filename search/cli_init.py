"""The command that writes a search file: from defaults, or from the user's own recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorafront.search.cli_shared import app
from lorafront.spaces.errors import InvalidInput


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("search.yaml"),
    name: Annotated[str | None, typer.Option(help="Name of the search [the file's].")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub name [Qwen/Qwen3-0.6B].")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder or hub name [tatsu-lab/alpaca].")] = None,
    task: Annotated[str | None, typer.Option(help="causal_lm, seq_cls or seq_2_seq_lm [causal_lm].")] = None,
    row_format: Annotated[
        str | None, typer.Option("--format", help="Format of the rows [alpaca; text_label for seq_cls].")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Your own recipe: of axolotl, LLaMA-Factory, TRL, or a folder of PEFT or lorafront."
        ),
    ] = None,
) -> None:
    """Write a commented search file."""
    from lorafront.search.init_file import commented, told_of
    from lorafront.search.own_recipe import read_own_recipe
    from lorafront.search.search_file import parse_search
    from lorafront.search.yaml_file import read_yaml

    if file.exists():
        raise InvalidInput(f"{file} exists already; give another name")
    options = {"model.name": model, "data.path": data, "task": task, "data.format": row_format}
    asked = {place: value for place, value in options.items() if value is not None}
    own = read_own_recipe(recipe) if recipe is not None else None
    text = commented(name or file.stem, asked, own)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    try:
        parse_search(read_yaml(file)[0])
    except InvalidInput:
        file.unlink()
        raise
    for line in told_of(own, asked) if own is not None else ():
        typer.echo(line)
    typer.echo(f"wrote {file}; next: lorafront check {file}")
