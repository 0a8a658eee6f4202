"""The command line's way to a Ray cluster: `submit`, `logs`, and every command that has `--address`.

The same command line runs there as a short job; what it prints and its exit code are this command's.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafront.search.cli_shared import Devices, Engine, File, Json, Name, Root, app, searches_under
from lorafront.search.waiting import waiting
from lorafront.spaces.errors import InvalidInput

if TYPE_CHECKING:
    from lorafront.search.ray_jobs import RayJobs
    from lorafront.search.travel import Luggage

OPTION = "--address"
Address = Annotated[
    str, typer.Option(OPTION, help="Run it on the Ray cluster whose job server has this URL, as http://HOST:8265.")
]
Submitted = Annotated[
    bool, typer.Option("--submitted", help="As a job of the Ray cluster; without NAME all submitted ones not done.")
]


@app.command()
def submit(
    file: File,
    address: Address = "",
    follow: Annotated[bool, typer.Option("--follow", help="Show its log until its end; the exit code is its.")] = False,
    root: Root = None,
    as_json: Json = False,
    engine: Engine = "process",
    devices: Devices = "",
) -> None:
    """Run a search as a job of a Ray cluster, which goes on without this machine; files that it names travel along."""
    from lorafront.search.search_file import read_search_file
    from lorafront.search.travel import SEARCH_FILE, pack
    from lorafront.search.yaml_file import locate, read_yaml

    search = read_search_file(file)
    try:
        luggage = pack(search, file)
    except InvalidInput as error:
        raise InvalidInput(locate(error.problems, file, read_yaml(file)[1])) from error
    _refuse_root(address, root)
    jobs = _cluster(address)
    given = options(engine, devices)
    if address:
        command = ["submit", SEARCH_FILE, "--json", *given]
        job = json.loads(_asked(jobs, command, "submitting", luggage))["job"]
    else:
        job = _submit_here(search.name, root, luggage, given, jobs)
    if as_json:
        typer.echo(json.dumps({"search": search.name, "job": job}, indent=2))
    else:
        there_too = f" {OPTION} {address}" if address else ""
        typer.echo(f"{search.name} runs as job {job}; this machine is not needed any more")
        for what, line in (("log", "logs --follow"), ("trials", "status"), ("front", "pareto"), ("stop", "stop")):
            typer.echo(f"{what + ':':8} lorafront {line} {search.name}{there_too}")
    if follow:
        _follow(jobs, search.name, job, as_json=as_json)


@app.command()
def logs(
    name: Name,
    address: Address = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until its end; the exit code is its.")] = False,
) -> None:
    """Show what the newest job that drives a submitted search has said."""
    jobs = _cluster(address)
    job = jobs.newest(name)
    if follow:
        _follow(jobs, name, job, as_json=False)
    typer.echo(jobs.log(job), nl=False)


def there(address: str, root: Path | None, *more: str) -> None:
    """Where an address is given, run this process's command line there, and leave with what it says.

    Args:
        address: of a cluster; with none nothing happens.
        root: as it was given.
        more: arguments that are added; empty ones are not.
    """
    if not address:
        return
    _refuse_root(address, root)
    command = [*without_address(sys.argv[1:]), *filter(None, more)]
    typer.echo(_asked(_cluster(address), command, f"asking {address}"), nl=False)
    raise typer.Exit


def without_address(arguments: list[str]) -> list[str]:
    """A command line without the option that says where it runs."""
    kept, skip = [], False
    for argument in arguments:
        if not (skip or argument == OPTION or argument.startswith(f"{OPTION}=")):
            kept.append(argument)
        skip = argument == OPTION and not skip
    return kept


def options(engine: str, devices: str) -> list[str]:
    """Of `run` and `resume`, as they are given to the driver."""
    return [*(["--engine", engine] if engine != "process" else []), *(["--devices", devices] if devices else [])]


def resume_as_jobs(name: str, root: Path | None, given: list[str], *, as_json: bool) -> None:
    """Go on with one search, or with all that were submitted, through the job server of this machine's cluster."""
    from lorafront.search import submitted

    paths, jobs = submitted.shared_root(root), _cluster("")
    said: list[dict[str, str]] = []
    if name:
        job = submitted.go_on(submitted.Submitted(paths, name), given, jobs)
        found = [submitted.Started(name, job, f"goes on as job {job}")]
    for one in found if name else submitted.come_back(paths, jobs):
        said.append(one._asdict())
        if not as_json:
            typer.echo(f"{one.name} {one.said}")
    if as_json:
        typer.echo(json.dumps(said, indent=2))


def hold(name: str, root: Path | None) -> bool:
    """Let a submitted search not come back by itself; False where it would not have."""
    from lorafront.search.submitted import hold as held

    return held(searches_under(root), name)


def _submit_here(name: str, root: Path | None, luggage: Luggage, given: list[str], jobs: RayJobs) -> str:
    from lorafront.search import submitted
    from lorafront.search.run import refuse_existing

    one = submitted.Submitted(submitted.shared_root(root), name)
    one.refuse_driven(jobs)  # first: it knows the job
    refuse_existing(one.paths)
    return submitted.submit(one, luggage, given, jobs)


def _asked(jobs: RayJobs, command: list[str], doing: str, luggage: Luggage | None = None) -> str:
    """What a command printed there; where it failed, this one fails likewise."""
    with waiting(doing):
        answer = jobs.ask(command, shutil.get_terminal_size().columns, luggage)
    typer.echo(answer.err, err=True, nl=False)
    if answer.code:
        typer.echo(answer.out, nl=False)
        raise typer.Exit(answer.code)
    return answer.out


def _cluster(address: str) -> RayJobs:
    from lorafront.search.ray_jobs import RayJobs, in_the_clear

    if in_the_clear(address):
        typer.echo(
            f"{address} is not encrypted: whoever is on the way can read the token and use the cluster; take https:// "
            "or a tunnel (ssh -L 8265:127.0.0.1:8265 HEAD)",
            err=True,
        )
    with waiting("looking for the cluster"):
        return RayJobs(address)


def _follow(jobs: RayJobs, name: str, job: str, *, as_json: bool) -> None:
    """Show a job's log until its end, and leave with its exit code."""

    def say(text: Any) -> None:
        typer.echo(text, nl=False, err=as_json)

    try:
        code = jobs.follow(job, say)
    except KeyboardInterrupt:
        typer.echo(f"\n{name} goes on as job {job}", err=True)
        raise typer.Exit from None
    raise typer.Exit(code)


def _refuse_root(address: str, root: Path | None) -> None:
    if address and root is not None:
        raise InvalidInput("--root is of this machine; a cluster's root is what LORAFRONT_ROOT says there")
