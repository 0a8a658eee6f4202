"""`lorafront import-results`: a read-only search from anybody's table of results.

The table is read strictly: a row that says less than the others is refused with its line, and what the table does not
say is said in the notes of the search. The study is written aside and moved to its place, so it is there whole or not.
"""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorafront.search.paths import RootPaths
from lorafront.search.result_columns import (
    HYPERPARAMETER_NAMES,
    MEASUREMENTS,
    Column,
    cell,
    match,
    quantization_of,
    there,
)
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study_table import VRAM, StudyTable, read_study
from lorafront.spaces.errors import InvalidInput, Problem, SearchExists
from lorafront.spaces.lora import LoraConfiguration, resolve
from lorafront.spaces.objectives import OBJECTIVES
from lorafront.spaces.presets import PRESETS
from lorafront.spaces.sizes import GIB, MIB
from lorafront.trainables.checkpoint import write_text
from lorafront.trainables.config import TrainingConfig
from lorafront.trainables.formats import Row
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.read_rows import TABLE_SUFFIXES, numbered_rows
from lorafront.trainables.session import IMPORTED
from lorafront.trainables.trial import Report

MOST_CHOICES = 32  # more numbers than these are a range
MOST_OBJECTIVES = 4
MOST_SHOWN = 50  # problems of rows
LOG_FROM = 10  # a range that spans more than this ratio is logarithmic
_FLAGS = ("load_in_4bit", "load_in_8bit")
_UNITS = {"gb": GIB, "gib": GIB, "mb": MIB, "mib": MIB, "bytes": 1, "b": 1}


@dataclass(frozen=True)
class Reading:
    """How a table is read.

    Attributes:
        columns: our name to the table's, where they are not the usual ones.
        loss: the column whose exponential is the perplexity.
        model: of which the rows are; where the table has several, the one to take.
        vram_unit: of peak memory: GB, MB (2**30, 2**20 bytes), bytes, or a number of bytes; none is the column's own.
        objectives: axes of the front; none is all that the table has, four at most.
        replicates: rows that repeat a configuration are replicates of it.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    loss: str | None = None
    model: str | None = None
    vram_unit: str | None = None
    objectives: Sequence[str] = ()
    replicates: bool = False


@dataclass(frozen=True)
class Result:
    """One row: where it stands, its values under the names of a space, and what it measured."""

    place: str
    params: dict[str, Any]
    measured: dict[str, Any]
    lora: LoraConfiguration


@dataclass(frozen=True)
class Table:
    """A table that was understood: the search that it comes to, its rows, and what has to be said about it."""

    search: SearchFile
    results: tuple[Result, ...]
    notes: tuple[str, ...]


def import_results(file: Path, name: str, root: RootPaths, reading: Reading) -> StudyTable:
    """Make a search of a table's rows.

    Raises:
        InvalidInput: the table cannot be read; all that is wrong with it.
        SearchExists: the name is taken.
    """
    table = understand(file, name, reading)
    paths = root.search(table.search.name)
    if paths.folder.exists():
        raise SearchExists(f"{paths.folder} exists already; choose another name with --name")
    from lorafront.search.study import StudyLedger

    root.check_writable()
    root.make()
    with tempfile.TemporaryDirectory(dir=root.root, prefix=".importing-") as aside:
        unfinished = RootPaths(Path(aside)).search(name)
        unfinished.folder.mkdir(mode=0o700)
        write_text(unfinished.search_yaml, table.search.model_dump_json(indent=2, exclude_none=True))
        ledger = StudyLedger(unfinished.study_db, table.search, create=True)
        for result in table.results:
            ledger.add_complete(result.params, Report(0, result.measured, Outcome.COMPLETE))
        ledger.note(table.notes)
        ledger.close()
        unfinished.folder.rename(paths.folder)
    return read_study(paths.study_db)


def understand(file: Path, name: str, reading: Reading) -> Table:
    """Read a table, and make of it what a study needs.

    Raises:
        InvalidInput: all that is wrong with its columns, or else with its rows.
    """
    rows = _rows(file)
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    columns = _columns(names, reading)
    of_model = columns.pop("model", None)
    rows, model = _of_one_model(rows, of_model, reading.model)
    objectives = _objectives(columns, names, reading.objectives)
    defaults = _defaults(columns)
    results = _numbered(_results(rows, columns, defaults), reading, columns, dict(rows))
    search = _search(file, name, model, objectives, results, defaults)
    unread = [
        name for name in names if name not in {column.theirs for column in (*columns.values(), of_model) if column}
    ]
    return Table(search, tuple(results), tuple(_notes(file, unread, columns, results, defaults)))


def _rows(file: Path) -> list[tuple[str, Row]]:
    if not file.is_file() or file.suffix.lower() not in TABLE_SUFFIXES:
        endings = ", ".join(sorted(TABLE_SUFFIXES))
        raise InvalidInput(f"{file} is no table: give a file ending in {endings}")
    rows = numbered_rows(file, delimiter=_delimiter(file))
    if not rows:
        raise InvalidInput(f"{file} has 0 rows")
    return rows


def _delimiter(file: Path) -> str | None:
    """A semicolon, where spreadsheets wrote that; and a name that stands twice in the header is refused."""
    if file.suffix.lower() not in {".csv", ".tsv"}:
        return None
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        first = stream.readline()
    tabs = file.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else ";" if first.count(";") > first.count(",") else ","
    header = next(csv.reader([first], delimiter=delimiter), [])
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InvalidInput(f"{file}, line 1: the header names {', '.join(map(repr, repeated))} more than once")
    return None if tabs else delimiter


def _columns(names: Sequence[str], reading: Reading) -> dict[str, Column]:
    """What is where; perplexity is the table's own, else the exponential of its loss."""
    chosen = dict(reading.columns) | ({"eval_loss": reading.loss} if reading.loss is not None else {})
    found, problems = match(names, chosen)
    if reading.vram_unit is not None:
        if VRAM not in found:
            problems.append(Problem(("--vram-unit",), f"there is no column of peak memory. {there(names)}"))
        else:
            found[VRAM] = Column(found[VRAM].theirs, _bytes(reading.vram_unit) / GIB)
    if problems:
        raise InvalidInput(problems)
    if reading.loss is not None:
        found.pop("perplexity", None)
    for better, needless in (("quantization", _FLAGS), ("alpha", ("alpha_ratio",))):
        for name in needless if better in found else ():
            found.pop(name, None)
    return found


def _bytes(unit: str) -> float:
    try:
        size = float(_UNITS.get(unit.lower()) or float(unit))
    except ValueError:
        size = 0.0
    if not (math.isfinite(size) and size > 0):
        raise InvalidInput(f"--vram-unit must be GB, MB, bytes, or a number of bytes such as 1e9 (got {unit!r})")
    return size


def _of_one_model(
    rows: list[tuple[str, Row]], column: Column | None, model: str | None
) -> tuple[list[tuple[str, Row]], str]:
    """The rows of one model, and its name: trials of different models do not compare."""
    named = {str(row.get(column.theirs) or "").strip() for _, row in rows} if column else set()
    if column is None or (model is not None and model not in named):
        several = f"of {column.theirs}: {', '.join(sorted(named))}" if column and len(named) > 1 else ""
        if several:
            raise InvalidInput(f"--model {model!r} is none {several}")
        return rows, model or "unknown"
    if model is None and len(named) > 1:
        raise InvalidInput(f"the table is of several models; take one with --model: {', '.join(sorted(named))}")
    taken = named.pop() if model is None else model
    return [found for found in rows if str(found[1].get(column.theirs) or "").strip() == taken], taken or "unknown"


def _objectives(columns: Mapping[str, Column], names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Axes of the front, in our order: at least one of quality, two in all; and something was varied."""
    known = set(columns) | ({"perplexity"} if "eval_loss" in columns else set())
    there_are = [name for name in OBJECTIVES if name in known]
    missing = [name for name in wanted if name not in there_are]
    lacking = []
    if missing:
        lacking.append(f"--objectives: no column for {', '.join(missing)}")
    chosen = [name for name in wanted if name in there_are] if wanted else there_are[:MOST_OBJECTIVES]
    if not any(OBJECTIVES[name].quality for name in there_are):
        lacking.append("a quality is missing: perplexity, eval_loss, accuracy or f1")
    if len(there_are) - len(missing) <= 1 or len(set(chosen)) <= 1:
        others = [name for name in OBJECTIVES if name not in there_are and not OBJECTIVES[name].quality]
        lacking.append(f"a front needs two objectives; not there: {', '.join(others)}")
    if not any(name in columns for name in HYPERPARAMETER_NAMES if name != "seed"):
        lacking.append(f"no hyperparameter is there: {', '.join(HYPERPARAMETER_NAMES)}")
    if lacking:
        lacking[-1] += f". {there(names)} Say which is what with --map OURS=THEIRS"
        raise InvalidInput([Problem((), line) for line in lacking])
    return chosen


def _defaults(columns: Mapping[str, Column]) -> dict[str, Any]:
    """The recommended values of the hyperparameters that the table does not have."""
    given = set(columns) | ({"quantization"} if set(_FLAGS) & set(columns) else set())
    recommended = {**PRESETS[0].point, **TrainingConfig().defaults()}
    recommended["alpha_ratio"] = recommended.pop("alpha")["ratio"]
    if given & {"alpha", "alpha_ratio"}:
        del recommended["alpha_ratio"]
    return {name: value for name, value in recommended.items() if name not in given}


def _results(
    rows: Sequence[tuple[str, Row]], columns: Mapping[str, Column], defaults: Mapping[str, Any]
) -> list[Result]:
    results, problems = list[Result](), list[Problem]()
    for place, row in rows:
        said, wrong = _cells(row, columns)
        if not wrong:
            params = {name: value for name, value in said.items() if name not in MEASUREMENTS}
            measured = {name: value for name, value in said.items() if name in MEASUREMENTS}
            measured |= {"peak_vram_source": IMPORTED} if VRAM in measured else {}
            try:
                results.append(Result(place, params, measured, resolve(params, defaults)))
            except ValidationError as error:
                found = error.errors(include_url=False)
                wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in found]
        problems += [Problem((), f"{place}: {message}") for message in wrong]
    if problems:
        left = len(problems) - MOST_SHOWN
        raise InvalidInput(problems[:MOST_SHOWN] + ([Problem((), f"and {left} more problems")] if left > 0 else []))
    return results


def _cells(row: Row, columns: Mapping[str, Column]) -> tuple[dict[str, Any], list[str]]:
    """What a row says under our names, and what is wrong with it."""
    said: dict[str, Any] = {}
    wrong = []
    for ours, column in columns.items():
        try:
            said[ours] = cell(ours, column, row.get(column.theirs))
        except ValueError as error:
            wrong.append(f"{column.theirs} {error}")
    flags = {name: said.pop(name) for name in _FLAGS if name in said}
    if flags:
        said["quantization"] = quantization_of(flags)
    if "eval_loss" in said and "perplexity" not in columns:
        try:
            said["perplexity"] = math.exp(said["eval_loss"])
        except OverflowError:
            wrong.append(f"{columns['eval_loss'].theirs} is too large for a perplexity (got {said['eval_loss']:g})")
    return said, wrong


def _numbered(
    results: list[Result], reading: Reading, columns: Mapping[str, Column], rows: Mapping[str, Row]
) -> list[Result]:
    """Each configuration once; replicates by their seed, which is no seed of a replicate where all have the same."""
    if "seed" in columns and len({result.params["seed"] for result in results}) == 1:
        results = [_reseeded(result, None) for result in results]
    same: dict[str, list[Result]] = {}
    for result in results:
        same.setdefault(result.lora.fingerprint, []).append(result)
    repeated = [group for group in same.values() if len(group) > 1]
    if not repeated:
        return results
    if reading.replicates and "seed" not in columns:
        seeds = {result.place: seed for group in same.values() for seed, result in enumerate(group)}
        return [_reseeded(result, seeds[result.place]) for result in results]
    read = {column.theirs for column in columns.values()}
    problems = []
    for group in repeated[:MOST_SHOWN]:
        cells = [rows[result.place] for result in group]
        differ = [name for name in cells[0] if name not in read and len({str(row.get(name)) for row in cells}) > 1]
        but = f"; they differ in {', '.join(differ)}, which is not read" if differ else ""
        places = ", ".join(result.place for result in group)
        problems.append(Problem((), f"{places}: the same configuration ({group[0].lora.label}){but}"))
    advice = "name the column that tells them apart with --map (seed=COLUMN for replicates)"
    replicates = "" if "seed" in columns else ", or say --replicates where they are repetitions"
    raise InvalidInput([*problems, Problem((), f"each configuration must be there once: {advice}{replicates}")])


def _reseeded(result: Result, seed: int | None) -> Result:
    params = {name: value for name, value in result.params.items() if name != "seed"}
    params |= {} if seed is None else {"seed": seed}
    return Result(result.place, params, result.measured, result.lora.with_seed(seed))


def _search(
    file: Path, name: str, model: str, objectives: list[str], results: Sequence[Result], defaults: Mapping[str, Any]
) -> SearchFile:
    space = {key: parameter([result.params[key] for result in results]) for key in results[0].params}
    space = {**defaults, **space}
    if "alpha_ratio" in space:
        space["alpha"] = {"ratio": space.pop("alpha_ratio")}
    return parse_search(
        {
            "name": name,
            "model": model,
            "task": "causal_lm" if "perplexity" in objectives else "seq_cls",
            "data": {"path": file.name},
            "space": space,
            "objectives": objectives,
            "sampler": "random",
            "early_stopping": "off",
            "budget": {"trials": len(results)},
            "imported": file.name,
        }
    )


def parameter(values: Sequence[Any]) -> Any:
    """What was tried, as a search file says it: one value, a list of choices, or a range of numbers."""
    different = sorted(set(values))
    if len(different) == 1:
        return different[0]
    if len(different) <= MOST_CHOICES or isinstance(different[0], str):
        return different
    low, high = different[0], different[-1]
    return {"low": low, "high": high, "log": low > 0 and high > LOG_FROM * low}


def _notes(
    file: Path,
    unread: Sequence[str],
    columns: Mapping[str, Column],
    results: Sequence[Result],
    defaults: Mapping[str, Any],
) -> list[str]:
    """What a reader must know to believe the numbers no more than they deserve."""
    notes = [
        f"{len(results)} results were imported from {file.name}; nothing was trained or measured here",
        "columns: " + ", ".join(f"{ours} is {column.theirs}" for ours, column in columns.items()),
    ]
    if defaults:
        said = ", ".join(
            f"alpha {value:g} times the rank" if name == "alpha_ratio" else f"{name} {value}"
            for name, value in defaults.items()
        )
        notes.append(f"not in the table, so assumed as commonly recommended: {said}")
    if unread:
        notes.append(f"columns that were not read: {', '.join(unread)}")
    if VRAM in columns:
        column = columns[VRAM]
        notes.append(
            f"peak VRAM is {column.theirs}, in units of {column.factor * GIB:,.0f} bytes; what it counts is not known, "
            "and it is treated as the peak of tensors, to which a process adds its context"
        )
    if "eval_loss" in columns and "perplexity" not in columns:
        notes.append(f"perplexity is exp({columns['eval_loss'].theirs})")
    if set(_FLAGS) & set(columns) or "quantization" in columns:
        notes.append("quantization that only says 4 bits was read as nf4, 16 bits or none as bf16")
    if any(result.lora.seed is not None for result in results):
        notes.append("replicates are trials of their own here: the front takes the luckiest seed, not the mean")
    return notes
