"""The commands about a Ray cluster."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import typer

from lorafront.search.cli_shared import Json, Root, app, searches_under, terminal
from lorafront.search.waiting import waiting

if TYPE_CHECKING:
    from lorafront.search.machine_check import Checked

cluster = typer.Typer(help="A Ray cluster: that of LORAFRONT_RAY, else of this node.", no_args_is_help=True)
app.add_typer(cluster, name="cluster")


@cluster.command(name="check")
def check_cluster(root: Root = None, as_json: Json = False) -> None:
    """Ask each node for its cores, GPUs, versions, clock, disk and root, and whether database and MLflow let us in.

    Exits with 2 where a search would not start.
    """
    with waiting("asking the nodes"):
        from lorafront.search.machine_check import cluster_checked

        checked = cluster_checked(searches_under(root))
    show_checked(checked, as_json=as_json)


def show_checked(checked: Checked, *, as_json: bool) -> None:
    """Print what was found, and exit with 2 where a search would not start."""
    from lorafront.search import machine_check
    from lorafront.search.tables import plain_table

    if as_json:
        typer.echo(json.dumps(machine_check.as_json(checked), indent=2))
    else:
        terminal().print(plain_table(machine_check.rows(checked)))
        for line in machine_check.lines(checked):
            typer.echo(line)
    if any(finding.damage for finding in checked.findings):
        sys.exit(2)
