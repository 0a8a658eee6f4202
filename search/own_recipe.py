"""The user's own recipe: whose it is, what it says in the words of a search file, and what has no such words.

Nothing of it is run: YAML without tags, JSON, no pickle, files of limited size. All of it is told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafront.search import (
    own_recipe_axolotl,
    own_recipe_folders,
    own_recipe_llama_factory,
    own_recipe_trl,
)
from lorafront.search.own_recipe_fields import Fields, Values, plain, shown
from lorafront.search.own_recipe_llama_factory import INDEX
from lorafront.search.own_recipe_trainer import RSLORA, Lookup
from lorafront.search.yaml_file import TOO_MANY, KeyPath, Position, locate, parse_yaml
from lorafront.spaces.errors import InvalidInput, Problem

MAX_JSON = 20_000_000  # bytes; a trainer's state has a line for each step that was logged
MOST_KEYS = 12  # of a file that nobody knows
LENGTHS = ("training.steps", "training.epochs", "training.rows")
PICKLE = "training_args.bin"
MERGE = "<<"  # YAML 1.1 takes other keys over by it, 1.2 does not


@dataclass(frozen=True)
class Kind:
    """One trainer's recipes.

    Attributes:
        name: for people.
        keys: that tell it from the others, the most telling first.
        read: takes the keys of a recipe; returns the trainer's own defaults.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Fields, Lookup], Values]


AXOLOTL = Kind("axolotl", own_recipe_axolotl.KEYS, own_recipe_axolotl.read)
LLAMA_FACTORY = Kind("LLaMA-Factory", own_recipe_llama_factory.KEYS, own_recipe_llama_factory.read)
TRL = Kind("TRL", own_recipe_trl.KEYS, own_recipe_trl.read)
PEFT = Kind("PEFT", own_recipe_folders.PEFT_KEYS, own_recipe_folders.adapter)
EXPORT = Kind("lorafront", own_recipe_folders.EXPORT_KEYS, own_recipe_folders.export)
KINDS = (AXOLOTL, LLAMA_FACTORY, TRL, PEFT, EXPORT)
FOLDERS = {"lorafront.json": (own_recipe_folders.EXPORTED_ARGUMENTS,),
           "adapter_config.json": (own_recipe_folders.STATE, own_recipe_folders.ARGUMENTS)}  # fmt: skip


@dataclass(frozen=True)
class OwnRecipe:
    """What a recipe says.

    Attributes:
        kind: who trains by it.
        file: its name.
        said: by place in a search file, such as `training.batch_size`; alpha and the rest of LoRA under `baseline`.
        theirs: what the trainer does where the recipe is silent, by place.
        left: what has no counterpart, a line each.
    """

    kind: str
    file: str
    said: Values
    theirs: Values
    left: tuple[str, ...]


def read_own_recipe(path: Path) -> OwnRecipe:
    """Read a recipe of axolotl, LLaMA-Factory or TRL, the folder of a PEFT adapter, or of an export of ours.

    Raises:
        InvalidInput: it cannot be read, is of none of these kinds, or trains something else; with all problems found.
    """
    file = _file(path)
    raw, positions, wrong = _mapping(file)
    kind = kind_of(raw, file)
    fields = Fields({**raw, **_beside(file)})
    theirs = kind.read(fields, lambda folder, name: _indexed(folder, name, file.parent))
    fields.finish()
    if file.name in FOLDERS and (file.parent / PICKLE).exists():
        fields.note(PICKLE, "not read: a pickle can run code")
    told = {problem.path for problem in fields.problems}
    problems = [
        *fields.problems,
        *(problem for problem in wrong if problem.path not in told and _counts(problem, fields)),
    ]
    if problems:
        raise InvalidInput(locate(problems, file, positions))
    for problem in wrong:
        fields.note(f"{problem.path[0]}", f"not read: {problem.message}")
    said, theirs = _settled(_near(fields.values, file.parent), theirs)
    return OwnRecipe(kind.name, plain(file.name), said, theirs, fields.left)


def kind_of(raw: Mapping[str, Any], file: Path) -> Kind:
    """Whose keys these are: the kind of which most are there.

    Raises:
        InvalidInput: nobody's, or those of several equally.
    """
    if {"model", "data"} <= set(raw):
        raise InvalidInput(f"{file} is a search file already; run it with: lorafront run {file}")
    found = {kind.name: [key for key in kind.keys if key in raw] for kind in KINDS}
    most = max(map(len, found.values()))
    best = [kind for kind in KINDS if len(found[kind.name]) == most]
    if most and len(best) == 1:
        return best[0]
    known = "; ".join(f"{kind.name} ({', '.join(kind.keys[:4])})" for kind in KINDS)
    keys = [plain(str(key)) for key in raw]
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    why = f"could be of {' or '.join(kind.name for kind in best)}" if most else "is no recipe that is known here"
    raise InvalidInput(
        f"{file} {why}; it has {', '.join(keys[:MOST_KEYS]) or 'no keys'}{more}. Known, by keys: {known}"
    )


def _counts(problem: Problem, fields: Fields) -> bool:
    """Whether a problem of YAML is one of what was read: a strange key that means nothing here is only told."""
    return problem.path[0] in fields.taken or MERGE in problem.path or problem.message == TOO_MANY


def _settled(said: Values, theirs: Values) -> tuple[Values, Values]:
    """One length of the training, and alpha as it is where the update is divided by the rank and not by its root."""
    theirs = {place: value for place, value in theirs.items() if place not in said}
    if any(place in said for place in LENGTHS):
        theirs = {place: value for place, value in theirs.items() if place not in LENGTHS}
    both = {**theirs, **said}
    rank, alpha = both.get("baseline.rank"), both.get("baseline.alpha")
    kept = {place: value for place, value in said.items() if place != RSLORA}
    if RSLORA in said and rank and alpha:
        kept["baseline.alpha"] = alpha * math.sqrt(rank)
        theirs.pop("baseline.alpha", None)
    return kept, theirs


# ---------------------------------------------------------------- files


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FOLDERS:
        if (path / name).is_file():
            return path / name
    raise InvalidInput(
        f"{path} has neither adapter_config.json (a PEFT adapter) nor lorafront.json (an export of lorafront); of "
        "axolotl, LLaMA-Factory and TRL give the file"
    )


def _mapping(file: Path) -> tuple[dict[str, Any], dict[KeyPath, Position], list[Problem]]:
    if file.suffix.lower() == ".json":
        return _json(file), {}, []
    return parse_yaml(file)


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON:
            raise InvalidInput(f"{file} has {file.stat().st_size:,} bytes; at most {MAX_JSON:,} are read")
        found = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} is no JSON that can be read: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{file}: expected an object with keys (got {shown('', found)})")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return found


def _near(said: Values, folder: Path) -> Values:
    """Paths as seen from here: of the current folder, as the trainer reads them, else of the recipe's own."""
    found = dict(said)
    for place in ("model.name", "data.path", "data.eval_path"):
        path = said.get(place)
        if path and not Path(path).exists() and (folder / path).exists():
            found[place] = str(folder / path)
    return found


def _beside(file: Path) -> dict[str, Any]:
    """What else a folder says, under the names of its files."""
    names = [name for name in FOLDERS.get(file.name, ()) if (file.parent / name).is_file()]
    return {name: _json(file.parent / name) for name in names}


def _indexed(folder: str, name: str, near: Path) -> tuple[dict[str, Any] | None, str]:
    """A data set of LLaMA-Factory: its folder is that of the current one, or of the recipe's own."""
    for place in (Path(folder), near / folder):
        if (place / INDEX).is_file():
            entry = _json(place / INDEX).get(name)
            return entry if isinstance(entry, dict) else None, str(place)
    return None, folder
