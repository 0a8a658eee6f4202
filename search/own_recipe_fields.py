"""A recipe's keys as its reader takes them: each is read once, checked, and put where a search file says it.

What nobody takes is left over, so that nothing of a recipe is dropped without a word.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lorafront.search.search_file import holds_secret
from lorafront.spaces.errors import Problem, dotted
from lorafront.spaces.parameters import real

T = TypeVar("T")
Place = tuple[str | int, ...]
Values = dict[str, Any]  # by place in a search file, such as `training.batch_size`
SHOWN = 90  # characters of a value
_PRIVATE = re.compile(r"(hub|auth|api|access|hf|wandb)\w*token|password|secret|api_?key|credential", re.IGNORECASE)
_YES, _NO = frozenset({"yes", "on", "true"}), frozenset({"no", "off", "false"})  # YAML 1.1 reads them so


class Fields:
    """The keys of one recipe, or of a mapping inside of it."""

    def __init__(self, raw: Mapping[str, Any], where: Place = (), inside: Fields | None = None) -> None:
        """Nothing is taken yet.

        Args:
            raw: keys and values.
            where: the keys that lead to it.
            inside: the fields that this mapping is a value of; what is found goes there.
        """
        self._raw = raw
        self._where = where
        self.values: Values = inside.values if inside else {}
        self.problems: list[Problem] = inside.problems if inside else []
        self.taken: set[str] = set()
        self._told: dict[str, str] = inside._told if inside else {}  # noqa: SLF001  # of its own class

    def says(self, key: str) -> bool:
        """Whether the recipe has something under a key; null and what is empty say nothing."""
        found = self._raw.get(key)
        return found is not None and found not in ("", [], {})

    def take(self, key: str, read: Callable[[Any], T]) -> T | None:
        """The value of a key as `read` has it; None where the recipe does not say it, or it is a problem."""
        self.taken.add(key)
        if not self.says(key):
            return None
        try:
            return read(self._raw[key])
        except ValueError as error:
            self.refuse(key, str(error))
            return None

    def put(self, place: str, key: str, read: Callable[[Any], Any]) -> None:
        """Read a key straight into its place."""
        self.set(place, self.take(key, read))

    def set(self, place: str, value: Any) -> None:
        """Keep a value; None is nothing."""
        if value is not None:
            self.values[place] = value

    def leave(self, key: str, why: str) -> None:
        """Tell of a key that has no counterpart, or a coarser one; nothing where it is not said, or there is no why."""
        self.taken.add(key)
        if self.says(key) and why:
            self._told[self._name(key)] = f"{shown(key, self._raw[key])} ({why})"

    def refuse(self, key: str, why: str) -> None:
        """A key that makes the recipe one that nothing can be compared with."""
        self.taken.add(key)
        problem = Problem((*self._where, key), f"{why} (got {shown(key, self._raw.get(key))})")
        if problem.path not in [known.path for known in self.problems]:
            self.problems.append(problem)

    def finish(self) -> None:
        """Leave what nobody took."""
        for key, value in self._raw.items():
            if key not in self.taken and self.says(key):
                self._told.setdefault(self._name(key), shown(key, value))

    def note(self, key: str, value: str) -> None:
        """Something to be said beside the keys that are left."""
        self._told[key] = value

    def _name(self, key: str) -> str:
        return dotted((*self._where, key))

    @property
    def left(self) -> tuple[str, ...]:
        """`key: value (why)` of everything that has no counterpart, each one line of ASCII."""
        return tuple(f"{plain(key)}: {said}" for key, said in self._told.items())


def plain(text: str) -> str:
    """One line of ASCII: what stands in a comment must not end it."""
    return json.dumps(text)[1:-1]


def shown(key: str, value: Any) -> str:
    """A value on one line of ASCII, shortened; one that looks like a secret is not shown."""
    if holds_secret(value) or _private(key, value):
        return "not shown"
    return textwrap.shorten(json.dumps(value, default=str), SHOWN, placeholder=" ...")[: SHOWN + 4]


def _private(key: str, value: Any) -> bool:
    if isinstance(value, dict):
        return any(_private(str(name), inner) for name, inner in value.items())
    if isinstance(value, list):
        return any(_private(key, inner) for inner in value)
    return bool(_PRIVATE.search(key)) and not isinstance(value, bool)


def demand(holds: object, rule: str) -> None:
    """Raise ValueError, which `Fields.take` tells with the key and the value, where a rule does not hold."""
    if not holds:
        raise ValueError(rule)


def mapping(value: Any) -> dict[str, Any]:
    """Keys and values."""
    demand(isinstance(value, dict), "must be a mapping")
    return dict(value)


def text(value: Any) -> str:
    """Text without what no file can hold."""
    demand(isinstance(value, str), "must be text")
    demand(value.isprintable(), "must be printable text of one line")
    return str(value)


def flag(value: Any) -> bool:
    """True or false, in the words of YAML 1.1 as well."""
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    demand(word in _YES | _NO, "must be true or false")
    return word in _YES


def number(value: Any) -> float:
    """A finite number, also as text: YAML 1.1 reads `1e-4` as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("must be a number") from None
    try:
        return real(value)
    except ValueError as error:
        raise ValueError("must be a finite number") from error


def above_zero(value: Any) -> float:
    """A number above 0."""
    found = number(value)
    demand(found > 0, "must be above 0")
    return found


def at_least_zero(value: Any) -> float:
    """A number of 0 or more."""
    found = number(value)
    demand(found >= 0, "must be 0 or more")
    return found


def share(value: Any) -> float:
    """From 0 to below 1."""
    found = number(value)
    demand(0 <= found < 1, "must be 0 or more and below 1")
    return found


def whole(least: int) -> Callable[[Any], int]:
    """A whole number; `8.0` and `"8"` are."""

    def read(value: Any) -> int:
        found = number(value)
        demand(found == int(found) and found >= least, f"must be a whole number of {least} or more")
        return int(found)

    return read
