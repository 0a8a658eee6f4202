"""YAML as plain Python, with the line and column of every key; strict where YAML surprises.

YAML 1.2: `1e-4` is a number, `on` is text. Refused: duplicate keys, tags, keys that are not text, numbers with leading
zeros, aliases to themselves, many aliases, tabs, files over a megabyte. All but syntax errors are reported together.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lorafront.spaces.errors import InvalidInput, Problem

KeyPath = tuple[str | int, ...]
Position = tuple[int, int]
MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 20_000  # after aliases are followed; a few lines of nested aliases make billions
TOO_MANY = "too many values or aliases"
_PREFIX = "tag:yaml.org,2002:"


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, Position]]:
    """Read a mapping.

    Returns:
        The data, and (line, column), both from 1, of every key and list entry.

    Raises:
        InvalidInput: with every problem found, each with its line.
    """
    data, positions, problems = parse_yaml(path)
    if problems:
        raise InvalidInput(locate(problems, path, positions))
    return data, positions


def parse_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, Position], list[Problem]]:
    """Read a mapping, and keep apart what is wrong with single values, so that others can be checked all the same.

    Raises:
        InvalidInput: the file cannot be read, is not YAML, or is no mapping.
    """
    text = _read_text(path)
    try:
        tagged = _check_events(path, text)
        with warnings.catch_warnings(action="ignore", category=ReusedAnchorWarning):
            node = YAML(typ="rt", pure=True).compose(text)
    except MarkedYAMLError as error:
        raise InvalidInput(_syntax(path, text, error)) from error
    except (YAMLError, AssertionError) as error:  # ruamel asserts on some comments inside folded text
        raise InvalidInput(f"{path}: malformed YAML: {error or 'a comment where none can stand'}") from error
    reader = _Reader(tagged)
    data = reader.value(node, ()) if node is not None else None
    if not isinstance(data, dict):
        kind = "nothing" if data is None else "a list" if isinstance(data, list) else "a single value"
        raise InvalidInput(f"{path}: expected a mapping of keys such as name, model, data (got {kind})")
    return data, reader.positions, reader.problems


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise InvalidInput(f"{path} has {len(raw):,} bytes; a search file has at most {MAX_BYTES:,}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}") from error


def _check_events(path: Path, text: str) -> dict[Position, str]:
    """Refuse nesting so deep that reading it would recurse without end; return where tags stand, and which."""
    depth = 0
    tagged: dict[Position, str] = {}
    for event in YAML(typ="rt", pure=True).parse(text):
        mark = event.start_mark
        if getattr(event, "tag", None) is not None:
            tagged[mark.line, mark.column] = str(event.tag)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InvalidInput(f"{path}:{mark.line + 1}:{mark.column + 1}  nested more than {MAX_DEPTH} deep")
    return tagged


def locate(problems: list[Problem], path: Path, positions: dict[KeyPath, Position]) -> list[Problem]:
    """Put `file:line:column  key: ` in front of each message; the nearest enclosing key where one has no line."""
    located = []
    for problem in problems:
        known = next((problem.path[:n] for n in range(len(problem.path), 0, -1) if problem.path[:n] in positions), ())
        position = positions.get(known, (0, 0))
        where = f"{path}:{position[0]}:{position[1]}" if known else f"{path}"
        located.append((position, Problem((), f"{where}  {problem}")))
    return [problem for _, problem in sorted(located, key=lambda pair: pair[0])]


def _syntax(path: Path, text: str, error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"{path}: malformed YAML: {error.problem}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    reason = (
        "tabs are not allowed for indentation in YAML; use spaces" if "\\t" in str(error.problem) else error.problem
    )
    return f"{path}:{mark.line + 1}:{mark.column + 1}  malformed YAML: {reason}\n    {line}\n    {' ' * mark.column}^"


class _Reader:
    """Turns a node graph into data and collects what is wrong with it."""

    def __init__(self, tagged: dict[Position, str]) -> None:
        self._tagged = tagged
        self.problems: list[Problem] = []
        self.positions: dict[KeyPath, Position] = {}
        self._open: list[int] = []
        self._nodes = 0

    def value(self, node: Node, path: KeyPath) -> Any:
        """The data of one node."""
        self._nodes += 1
        if id(node) in self._open:
            return self._wrong(path, "an alias must not contain itself")
        if self._nodes > MAX_NODES:
            if self._nodes == MAX_NODES + 1:
                self._wrong(path, TOO_MANY)
            return None
        tag = self._tagged.get((node.start_mark.line, node.start_mark.column))
        if tag is not None:
            return self._wrong(path, f"YAML tags are not allowed (got {tag})")
        self._open.append(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode):
                return self._sequence(node, path)
            return self._scalar(str(node.tag), str(node.value), path)
        finally:
            self._open.pop()

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            plain = isinstance(key_node, ScalarNode)
            key = key_node.value if plain else "a list or a mapping"
            if not plain or str(key_node.tag) != f"{_PREFIX}str":
                self.positions.setdefault((*path, str(key)), (line, column))
                self._wrong((*path, str(key)), f"keys must be text (got {repr(key) if plain else key}); quote it")
                continue
            if key in data:
                self._wrong((*path, key), f"duplicate key {key!r} (lines {lines[key]} and {line})")
                continue
            self.positions[(*path, key)] = (line, column)
            lines[key] = line
            data[key] = self.value(value_node, (*path, key))
        return data

    def _sequence(self, node: SequenceNode, path: KeyPath) -> list[Any]:
        data = []
        for index, child in enumerate(node.value):
            self.positions[(*path, index)] = (child.start_mark.line + 1, child.start_mark.column + 1)
            data.append(self.value(child, (*path, index)))
        return data

    def _scalar(self, tag: str, text: str, path: KeyPath) -> Any:
        kind = tag.removeprefix(_PREFIX)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in {"int", "float"}:
            return self._number(kind, text, path)
        if kind == "timestamp":
            return self._wrong(path, f"a date is not expected here (got {text}); quote it if it is text")
        return text

    def _number(self, kind: str, text: str, path: KeyPath) -> Any:
        digits = text.lstrip("+-").replace("_", "")
        if kind == "int" and len(digits) > 1 and digits[0] == "0" and digits.isdigit():
            sign = "-" if text.startswith("-") else ""
            return self._wrong(path, f"a number must not start with 0 (got {text}); is it {sign}{int(digits)}?")
        try:
            plain = text.lower().replace("_", "")
            return int(plain, 0) if kind == "int" else float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return self._wrong(path, f"not a number that can be read (got {text[:40]}); quote it if it is text")

    def _wrong(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(path, message))
