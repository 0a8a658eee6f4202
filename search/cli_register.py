"""The command that hands a trial on to MLflow's model registry."""

from __future__ import annotations

from typing import Annotated

import typer

from lorafront.search.cli_shared import Name, Root, app, searches_under


@app.command()
def register(
    name: Name,
    trial: Annotated[int, typer.Argument(min=0, help="A trial's number.")],
    model: Annotated[str, typer.Option("--as", help="Name of the model in MLflow's registry.")],
    root: Root = None,
) -> None:
    """Register a trial's adapter as a version of an MLflow model; MLflow's own loader gives it back."""
    from lorafront.search.register import register as registered

    found = registered(searches_under(root).existing(name), trial, model)
    typer.echo(f"version {found.version} of {found.model} in {found.store}; base: {found.base}")
    typer.echo(f'load it: mlflow.transformers.load_model("{found.uri}")')
