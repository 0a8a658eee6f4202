"""The command line's application, and what its commands share: options, and how a search is found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lorafront.search.paths import RootPaths, SearchPaths
    from lorafront.search.progress import Observer
    from lorafront.search.study_table import StudyTable

app = typer.Typer(
    help="Find the LoRA and QLoRA configurations that nobody can beat.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Root = Annotated[Path | None, typer.Option("--root", help="Folder of the searches [LORAFRONT_ROOT, else runs].")]
Name = Annotated[str, typer.Argument(help="Name of a search.")]
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


def observer() -> Observer:
    """Who shows a run: a live table on a terminal, plain lines elsewhere."""
    from lorafront.search.progress import LiveTable, PlainLines

    console = terminal()
    return LiveTable(console) if console.is_terminal else PlainLines(typer.echo)
