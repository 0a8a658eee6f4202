"""README and docs: links lead somewhere, commands parse, search files validate, Python compiles. Nothing is run."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from ruamel.yaml import YAML
from support import PROJECT

from lorafront.search.cli import app
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.spaces.errors import InvalidInput

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(```+)(\w*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|[;&|]|\bdo\b)\s*(?:\w+=\S+\s+)*(lorafront\b[^;&|]*)")
LEAST = {"name": "least", "model": "m", "data": {"path": "d"}}


class Block(NamedTuple):
    """A fenced block, and where it stands."""

    page: Path
    language: str
    text: str


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    found = [Block(page, lang, text) for page in PAGES for _, lang, text in FENCE.findall(read(page))]
    return [block for block in found if block.language in languages]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    text = FENCE.sub("", read(page))
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """Of the headings, where GitHub and MkDocs make the same of them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", title.strip().lower())
        if (slug := plain.replace(" ", "-")) == re.sub(r"[-\s]+", "-", plain):
            found.add(slug)
    return found


def commands(page: Path) -> Iterator[tuple[str, bool]]:
    """(command line of ours, whether it stands in running text)."""
    code = [text for _, lang, text in FENCE.findall(read(page)) if lang in {"", "bash"}]
    lines = [line for text in code for line in text.splitlines()]
    lines += [line[4:] for line in FENCE.sub("", read(page)).splitlines() if line.startswith("    ")]
    for line in lines:
        told, _, comment = line.removeprefix("$ ").partition(" #")
        yield from ((found.strip(), False) for found in COMMAND.findall(told.split(" 2>")[0].split(" >")[0]))
        yield from ((span, True) for span in INLINE.findall(comment) if span.startswith("lorafront "))
    for span in INLINE.findall(prose(page)):
        if re.match(r"lorafront\s", span):
            yield " ".join(span.split()), True


@cache
def application() -> Any:
    return typer.main.get_command(app)


def refused(line: str, *, in_text: bool) -> str:
    """What the command line has against it; in running text a command may stand for itself."""
    group = application()
    name, *rest = shlex.split(line)[1:]
    if name.startswith("-"):
        known = {option for one in group.params for option in one.opts} | {"--help"}
        return "" if name in known else "no such option"
    if name not in group.commands:
        return "no such command"
    if (in_text and not rest) or rest == ["--help"]:
        return ""
    try:
        group.commands[name].make_context(name, list(rest))
    except Exception as error:  # noqa: BLE001  # typer's own, which it exports under no stable name
        if in_text and "Missing" in getattr(error, "message", str(error)):
            return ""
        return getattr(error, "message", "") or str(error)
    return ""


def test_links_lead_somewhere() -> None:
    """Every relative link of README and docs names a file that is there, and a heading that it has."""
    wrong = []
    for page in PAGES:
        for target in LINK.findall(INLINE.sub("", prose(page))):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or not file.is_relative_to(PROJECT):
                wrong.append(f"{page.name}: {target}")
            elif anchor and anchor not in anchors(file):
                wrong.append(f"{page.name}: {target} (no such heading)")
    assert wrong == []


def test_pages_of_the_site_link_to_its_own_files() -> None:
    """A page of the site leads to nothing that the site does not have."""
    docs = PROJECT / "docs"
    targets = [(p, t.partition("#")[0]) for p in PAGES[1:] for t in LINK.findall(INLINE.sub("", prose(p)))]
    local = [(page, target) for page, target in targets if target and not re.match(r"[a-z]+:", target)]
    assert [t for page, t in local if not (page.parent / t).resolve().is_relative_to(docs)] == []


def test_every_page_is_in_the_navigation() -> None:
    """And the navigation names no other."""
    tree = YAML(typ="safe").load(read(PROJECT / "mkdocs.yml"))["nav"]

    def leaves(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        else:
            for inner in part.values() if isinstance(part, dict) else part:
                yield from leaves(inner)

    assert sorted(leaves(tree)) == sorted(page.relative_to(PROJECT / "docs").as_posix() for page in PAGES[1:])


def test_commands_parse() -> None:
    """Every `lorafront …` of README and docs has a command and options that are there."""
    found = [(page, *one) for page in PAGES if page.parent.name != "reference" for one in commands(page)]
    assert len(found) > 60
    wrong = [f"{page.name}: {line}: {why}" for page, line, text in found if (why := refused(line, in_text=text))]
    assert wrong == []


@pytest.mark.parametrize(
    "line", ["lorafront nonsense", "lorafront run", "lorafront pareto x --nonsense", "lorafront --nonsense",
             "lorafront extend x --trials many"]
)  # fmt: skip
def test_a_wrong_command_is_found(line: str) -> None:
    """An unknown command or option, a missing argument, and a value that is none."""
    assert refused(line, in_text=False)


def test_search_files_validate() -> None:
    """Every YAML block is a search file, or a part of one, and holds, also with what stands in comments."""
    wrong = []
    for block in blocks("yaml"):
        text = re.sub(r"^( *)# (\w+: )", r"\1\2", block.text, flags=re.MULTILINE)  # keys that a user may uncomment
        data = YAML(typ="safe", pure=True).load(text)
        data = data if "model" in data else {**LEAST, **data}
        if unknown := set(data) - set(SearchFile.model_fields):
            wrong.append(f"{block.page.name}: {unknown}")
            continue
        try:
            parse_search(data)
        except InvalidInput as error:
            wrong.append(f"{block.page.name}: {error}")
    assert len(blocks("yaml")) > 10
    assert wrong == []


def test_python_compiles_and_imports_what_is_there() -> None:
    """Every Python block compiles, and each name that it imports from us exists."""
    found = blocks("python")
    assert len(found) > 3
    for block in found:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lorafront"):
                module = importlib.import_module(str(node.module))
                assert [one.name for one in node.names if not hasattr(module, one.name)] == [], block.page


@pytest.mark.skipif(find_spec("mkdocs") is None or find_spec("material") is None, reason="needs `pip install .[docs]`")
def test_the_site_builds(tmp_path: Path) -> None:
    """MkDocs finds nothing wrong."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "reference" / "search-file.html").is_file()
