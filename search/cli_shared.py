"""The command line's application, and what its commands share: options, and how a search is found."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafront.spaces.errors import EXIT_CODES

if TYPE_CHECKING:
    from rich.console import Console

    from lorafront.search.paths import RootPaths, SearchPaths
    from lorafront.search.progress import Observer
    from lorafront.search.study_table import StudyTable

app = typer.Typer(
    help="Find the LoRA and QLoRA configurations that nobody can beat.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
displays = contextlib.ExitStack()  # what is drawn on the terminal; taken down before an error is said


def searches(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names that complete a NAME in the shell; none where they cannot be read."""
    try:
        return [name for name in searches_under(ctx.params.get("root")).names() if name.startswith(incomplete)]
    except OSError:  # a shell shows whatever is printed here in the middle of the user's line
        return []


Root = Annotated[Path | None, typer.Option("--root", help="Folder of the searches [LORAFRONT_ROOT, else runs].")]
Name = Annotated[str, typer.Argument(help="Name of a search.", autocompletion=searches)]
File = Annotated[Path, typer.Argument(help="Search file (YAML).")]
Engine = Annotated[str, typer.Option(hidden=True, help="`toy` rehearses a search without training anything.")]
Devices = Annotated[str, typer.Option(help="Pretend such GPUs, as in 2x24GB: how trials would be placed there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def searches_under(root: Path | None) -> RootPaths:
    """The folder that was named, else the usual one."""
    from lorafront.search.paths import RootPaths, default_root

    return RootPaths(root or default_root())


def study_of(name: str, root: Path | None) -> tuple[StudyTable, SearchPaths]:
    """A search as its study has it, and where it lies.

    Raises:
        SearchNotFound: there is none of that name.
        StateUnreadable: its study cannot be read.
    """
    from lorafront.search.study_table import read_study

    paths = searches_under(root).existing(name)
    return read_study(paths.study_db), paths


def terminal() -> Console:
    """Where tables are drawn."""
    from rich.console import Console

    return Console()


def observer(*, as_json: bool = False) -> Observer:
    """Who shows a run: a live table on a terminal, plain lines elsewhere; on standard error where JSON is wanted."""
    from rich.console import Console

    from lorafront.search.progress import LiveTable, PlainLines

    console = Console(stderr=as_json)
    if not console.is_terminal:
        return PlainLines(lambda line: typer.echo(line, err=as_json))
    table = LiveTable(console)
    displays.callback(table.ended)
    return table.open()
