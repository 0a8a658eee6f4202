"""The page of the Python API: the exported names, from their signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from reference_markdown import page

PACKAGES = ("lorafront.search", "lorafront.spaces")
BUILT = {"Search"}
HEADING = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
ENTRY = re.compile(r"^ {4}(\S.*?): (.*)$")
INTRO = """Names are imported from the package: `from lorafront.search import Search, load`. Importing it loads neither
Ray nor torch; each name is loaded when it is asked for. How they are used stands in
[From Python and notebooks](../how-to/python.md)."""


def python_page() -> str:
    """A heading for each package and each of its names."""
    blocks = [INTRO]
    for package in PACKAGES:
        module = importlib.import_module(package)
        blocks += [f"## {package}", docstring(module)]
        for name in sorted(module.__all__):
            blocks += described(name, getattr(module, name))
    return page("Python API", *blocks)


def described(name: str, thing: Any) -> list[str]:
    """A function, or a class with its public members."""
    if not callable(thing):
        return [f"### {name}", f"`{type(thing).__name__}` of {len(thing)}: " + ", ".join(f"`{key}`" for key in thing)]
    blocks = [f"### {name}", signature(name, thing), docstring(thing)]
    if not inspect.isclass(thing):
        return blocks
    blocks += [docstring(thing.__init__)] if name in BUILT else []
    for member, value in vars(thing).items():
        if member.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
            continue
        shown = value.fget if isinstance(value, property) else value
        if not inspect.getdoc(shown) or "validator" in str(getattr(value, "decorator_info", "")):
            continue
        text = f"`{name}.{member}`" if isinstance(value, property) else signature(f"{name}.{member}", value)
        blocks += [text, docstring(shown)]
    return blocks


def signature(name: str, thing: Any) -> str:
    """As code; of classes that nobody builds by hand nothing."""
    if inspect.isclass(thing) and name not in BUILT:
        return ""
    parts, keywords = [], False
    for one in inspect.signature(thing).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not keywords:
            parts, keywords = [*parts, "*"], True
        default = "" if one.default is one.empty else f" = {'…' if callable(one.default) else repr(one.default)}"
        parts += [f"{one.name}: {one.annotation}{default}"] if one.name != "self" else []
    given = "" if inspect.isclass(thing) else f" -> {inspect.signature(thing).return_annotation}"
    return f"```text\n{name}({', '.join(parts)}){given}\n```"


def docstring(thing: Any) -> str:
    """Paragraphs as they are, sections as lists."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    out: list[str] = []
    within = False
    for line in lines:
        heading, entry = HEADING.match(line), ENTRY.match(line) if within else None
        if heading:
            within = True
            out += [f"{heading[1]}:", ""]
        elif entry:
            out.append(f"- `{entry[1]}`: {entry[2]}")
        elif within and line.startswith("    "):
            out.append(f"  {line.strip()}")
        else:
            within = within and not line
            out.append(line)
    return "\n".join(out)
