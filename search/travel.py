"""What of a search goes with it to a cluster: its file, and what that names by a path relative to it or to here.

Such names mean the same where the files are put: the places keep their relation to each other. Absolute paths, `~` and
names on the hub are the cluster's own matter, and nothing is sent for them.
"""

from __future__ import annotations

import ast
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorafront.search.paths import located
from lorafront.search.search_file import SearchFile
from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.spaces.sizes import size_text
from lorafront.trainables.hub import local_folder_or_file
from lorafront.trainables.user_code import is_reference

LIMIT = 100 * 2**20  # bytes; Ray keeps what travels in the memory of the head, and takes 500 MB at most
SEARCH_FILE = "search.yaml"
DEEPER = "in"  # a folder for each `..` that a path begins with
_LEFT = frozenset({"__pycache__"})


@dataclass(frozen=True)
class Luggage:
    """Files, and where each goes.

    Attributes:
        base: where the search file goes, and what its relative paths start from.
        files: place to file.
    """

    base: PurePosixPath
    files: Mapping[PurePosixPath, Path]

    def zipped(self, target: Path) -> None:
        """Write them into an archive."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for place, file in self.files.items():
                archive.write(file, str(place))

    def copied(self, folder: Path) -> None:
        """Copy them into a folder, for their owner alone."""
        for place, file in self.files.items():
            (folder / place).parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            shutil.copyfile(file, folder / place)


def pack(search: SearchFile, file: Path, limit: int = LIMIT) -> Luggage:
    """Find what goes with a search.

    Args:
        search: as its file has it.
        file: that file; its relative paths are looked for from the current folder, else from its own.
        limit: bytes of all files together.

    Raises:
        InvalidInput: a file that is named is not there, or they are too large.
    """
    near = file.absolute().parent
    named: dict[str, list[tuple[str, Path]]] = {}  # name: (place below it, file)
    problems = []
    for key, name in _names(search):
        if not _is_relative(name):
            continue
        place = Path(located(name, near))
        if place.is_absolute():  # it is there
            named[name] = list(_below(place))
            continue
        try:
            local_folder_or_file(name)
        except InvalidInput:
            message = (
                f"{name} is neither in {Path.cwd()} nor in {near}; of what the cluster has, give the absolute path"
            )
            problems.append(Problem(key, message))
    code = search.code or "."
    if _is_relative(code):
        modules = (name.split(":")[0] for name in _own_code(search))
        named.setdefault(code, []).extend(_modules(modules, Path(located(code, near)) if search.code else near))
    if problems:
        raise InvalidInput(problems)
    _check_size({name: [file for _, file in found] for name, found in named.items()}, limit)
    base = layout(named)
    files = {_joined(base, name, below): source for name, found in named.items() for below, source in found}
    return Luggage(base, {**files, base / SEARCH_FILE: file})


def layout(names: Iterable[str]) -> PurePosixPath:
    """The folder that relative names start from, so deep that none of them leads out."""
    depth = 0
    for name in names:
        depth = max(depth, Path(os.path.normpath(name)).parts.count(".."))
    return PurePosixPath(*[DEEPER] * depth)


def imported(source: str) -> set[str]:
    """The modules that the text of a module imports, by their full names; those of its own package are left out."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # whoever imports it will say so
        return set()
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def _names(search: SearchFile) -> Iterator[tuple[tuple[str, ...], str]]:
    """(Key, name) of what may be a path."""
    yield ("model",), search.model.name
    for key in ("path", "eval_path", "test_path"):
        if (name := getattr(search.data, key)) is not None:
            yield ("data", key), name
    for name, second in search.data.also_evaluate.items():
        yield ("data", "also_evaluate", name), second.path


def _own_code(search: SearchFile) -> list[str]:
    """Every `module:name`."""
    formats = [search.data.format, *(found.format for found in search.data.also_evaluate.values())]
    return [str(name) for name in (search.task, *formats, *search.functions.values()) if is_reference(name)]


def _modules(names: Iterable[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of modules that lie in a folder, with those there that they import; of a package all of it."""
    todo, seen = [name.split(".")[0] for name in names], set[str]()
    while todo:
        top = todo.pop()
        if top in seen:
            continue
        seen.add(top)
        module, package = folder / f"{top}.py", folder / top
        found = [module] if module.is_file() else [file for _, file in _below(package)] if package.is_dir() else []
        for file in found:
            yield file.relative_to(folder).as_posix(), file
            if file.suffix == ".py":
                text = file.read_text(encoding="utf-8", errors="replace")
                todo += [name.split(".")[0] for name in imported(text)]


def _below(place: Path) -> Iterator[tuple[str, Path]]:
    """(Name below it, file) of all files of a folder; of a file itself."""
    if place.is_file():
        yield "", place
    for folder, folders, files in os.walk(place, followlinks=True):
        folders[:] = sorted(set(folders) - _LEFT)
        for name in sorted(files):
            file = Path(folder, name)
            if file.is_file():  # no pipe, and no link to nowhere
                yield file.relative_to(place).as_posix(), file


def _is_relative(name: str) -> bool:
    return not Path(name).is_absolute() and not name.startswith("~")


def _joined(base: PurePosixPath, name: str, below: str) -> PurePosixPath:
    return PurePosixPath(os.path.normpath(base / name / below))


def _check_size(named: Mapping[str, list[Path]], limit: int, size: Callable[[Path], int] = os.path.getsize) -> None:
    sizes = {name: sum(map(size, files)) for name, files in named.items()}
    if sum(sizes.values()) > limit:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InvalidInput(
            f"what the file names by relative paths has {size_text(sum(sizes.values()))}, most of it in {largest} "
            f"({size_text(sizes[largest])}); at most {size_text(limit)} travel: put it on storage of the cluster, and "
            "name it by its absolute path there"
        )
