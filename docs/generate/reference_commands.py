"""The page of the commands: every command and option, from the functions that the application registered."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from reference_markdown import page, table
from typer import Typer
from typer.models import ArgumentInfo

from lorafront.search.cli import app

WORDS = {str: "text", int: "integer", float: "number"}
INTRO = """Every command answers `--help`. With `--json` standard output has nothing but JSON; what a run says meanwhile
goes to standard error. [Exit codes](exit-codes.md) say how a command ended. NAME is that of a search under the root:
`--root`, else `LORAFRONT_ROOT`, else the folder `runs`."""


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    called: str
    value: str
    default: str
    help: str
    argument: bool
    required: bool
    hidden: bool


def commands_page() -> str:
    """A heading, a usage line and a table for each command."""
    found = sorted(commands(app))
    blocks = [INTRO]
    blocks.append(
        table(
            ["command", ""], [[f"[`{name}`](#lorafront-{name.replace(' ', '-')})", said(work)] for name, work in found]
        )
    )
    for name, work in found:
        shown = [one for one in parameters(work) if not one.hidden]
        rows = [[f"`{one.called}`", one.value, one.default, one.help] for one in shown]
        blocks += [f"## lorafront {name}", said(work), usage(name, shown)]
        blocks.append(table(["", "value", "default", "meaning"], rows))
    return page("Commands", *blocks)


def commands(of: Typer, before: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Name and function of each, also of those that have a first word in common."""
    for info in of.registered_commands:
        yield before + (info.name or info.callback.__name__), info.callback
    for group in of.registered_groups:
        yield from commands(group.typer_instance, f"{before}{group.name} ")


def said(work: Callable[..., Any]) -> str:
    """A docstring on one line."""
    return " ".join((inspect.getdoc(work) or "").split())


def usage(name: str, shown: Iterable[Parameter]) -> str:
    """`lorafront status NAME [OPTIONS]`."""
    arguments = [one.called if one.required else f"[{one.called}]" for one in shown if one.argument]
    needed = [f"{one.called} …" for one in shown if one.required and not one.argument]
    return "\n".join(["```text", " ".join(["lorafront", name, *arguments, *needed, "[OPTIONS]"]), "```"])


def parameters(work: Callable[..., Any]) -> list[Parameter]:
    """Of a command, in the order of its signature."""
    hints = get_type_hints(work, include_extras=True)
    return [parameter(name, hints[name], one.default) for name, one in inspect.signature(work).parameters.items()]


def parameter(name: str, hint: Any, given: Any) -> Parameter:
    """From `Annotated[type, typer.Option(…)]` and the default."""
    kind, info = get_args(hint)[:2]
    argument, required = isinstance(info, ArgumentInfo), given is inspect.Parameter.empty
    dashed = f"--{name.replace('_', '-')}"
    named = (info.default, *(info.param_decls or ()))  # the first one stands where a default would without Annotated
    called = name.upper() if argument else next((one for one in named if isinstance(one, str)), dashed)
    told, text = bracketed(info.help or "")
    default = "required" if required else f"`{given}`" if given not in (None, False, "") else told
    if default != told:
        text = info.help or ""
    return Parameter(called, value(kind, info), default, text, argument, required, info.hidden)


def value(kind: Any, info: Any) -> str:
    """What it takes, in words."""
    if get_origin(kind) in {Union, types.UnionType}:
        kind = next(part for part in get_args(kind) if part is not types.NoneType)
    if get_origin(kind) is list:
        return f"{value(get_args(kind)[0], info)}, repeatable"
    if kind is bool:
        return ""
    low, high = (f" {word} {end}" if end is not None else "" for word, end in (("from", info.min), ("to", info.max)))
    return WORDS.get(kind, "path") + low + high


def bracketed(words: str) -> tuple[str, str]:
    """What a help text says in brackets at its end is what holds without the option."""
    text, opening, rest = words.rpartition(" [")
    if opening and rest.rstrip(".").endswith("]"):
        return rest.rstrip(".").removesuffix("]"), f"{text.rstrip('.')}."
    return "", words
