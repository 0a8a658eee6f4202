"""The rows of a search, checked before anything is encoded: the main set, its evaluation set, the second sets.

All that is wrong with any of them is raised together, each with the key of the file that names it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorafront.spaces.errors import InvalidInput, Problem, did_you_mean
from lorafront.trainables.config import DataConfig, RowSource
from lorafront.trainables.formats import Row, RowFormat, check_columns, check_rows, format_named
from lorafront.trainables.read_rows import RawData, read_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafront.trainables.task import Task

Pairs = list[tuple[str, str]]  # (prompt, completion), or (text, label)


@dataclass(frozen=True)
class RawSet:
    """Rows of one source that have every column that their format needs.

    Attributes:
        rows: rows to train on, or to split; of a set that is only evaluated, all of it.
        evaluation: rows of a split of its own, where the source names one.
        test: rows of a second one.
        form: how a row is read.
        source: for messages.
        key: where the file names it.
    """

    rows: list[Row]
    evaluation: list[Row] | None
    form: RowFormat
    source: str
    key: tuple[str, ...]
    test: list[Row] | None = None

    def pairs(self, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Pairs:
        """(prompt, completion) of each.

        Raises:
            InvalidInput: the format refuses a row, or its own function raises or gives something else than two texts.
        """
        found = []
        for number, row in enumerate(rows, start=1):
            try:
                pair = self.form.split(row, tokenizer)
                if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):  # noqa: PLR2004  # a pair
                    raise InvalidInput(f"the format must give two texts (got {pair!r})")  # noqa: TRY301
            except InvalidInput as error:
                reason = "; ".join(problem.message for problem in error.problems)
                raise self._refused(number, reason) from error
            except Exception as error:  # a chat template and a user's own format raise what they like
                raise self._refused(number, f"{type(error).__name__}: {error}") from error
            found.append(pair)
        return found

    def _refused(self, number: int, reason: str) -> InvalidInput:
        return InvalidInput([Problem((*self.key[:-1], "format"), f"row {number} of {self.source}: {reason}")])


@dataclass(frozen=True)
class RowSets:
    """Raw rows of a search: the main set, evaluation and test sets that are sources of their own, the second sets."""

    main: RawSet
    evaluation: RawSet | None
    also: dict[str, RawSet]
    test: RawSet | None = None


def read_sets(data: DataConfig, task: Task, code: Path | None = None) -> RowSets:
    """Read the rows and check that they are what their format says.

    Args:
        data: the `data` section of a search file.
        task: what the rows are for.
        code: folder of the user's own formats.

    Raises:
        InvalidInput: the data is missing, malformed, empty, lacks a column, holds a value of the wrong type, or is of a
            format that the task cannot use.
    """
    problems: list[Problem] = []

    def one(source: RowSource, key: tuple[str, ...], form: str) -> RawSet | None:
        try:
            # Only a confirmation looks at the test split, so only there anything can be wrong with it.
            tested = data.evaluate_on == "held_out" if source is data else key[-1] == "test_path"
            found = _read_set(source, key, form, task, code, tested=tested)
            # The main set is split; of the others what they name an evaluation split, or all.
            if source is data:
                return found
            rows = (found.test if key[-1] == "test_path" else None) or found.evaluation or found.rows
            return replace(found, rows=rows, evaluation=None, test=None)
        except InvalidInput as error:
            problems.extend(error.problems)
            return None

    main = one(data, ("data", "path"), data.format)
    own = {
        key: one(data.model_copy(update={"path": path}), ("data", key), data.format)
        for key in ("eval_path", "test_path")
        if (path := getattr(data, key)) is not None
    }
    also = {
        name: one(source, ("data", "also_evaluate", name, "path"), source.format or data.format)
        for name, source in data.also_evaluate.items()
    }
    if problems or main is None:
        raise InvalidInput(problems)
    second = {name: found for name, found in also.items() if found is not None}
    return RowSets(main, own.get("eval_path"), second, own.get("test_path"))


def _read_set(
    source: RowSource, key: tuple[str, ...], form_name: str, task: Task, code: Path | None, *, tested: bool
) -> RawSet:
    where = (*key[:-1], "format")
    try:
        form = format_named(form_name, code)
    except InvalidInput as error:
        raise InvalidInput([Problem(where, problem.message) for problem in error.problems]) from error
    if task.needs_prompt and form.packed:
        message = f"format {form_name} has nothing but text, and {task.name} needs a prompt or a label with it"
        raise InvalidInput([Problem(where, message)])
    try:
        raw = read_data(source)
        raw = _renamed(raw if tested else replace(raw, test=None), source, form)
        check_columns(form_name, form, raw.columns, raw.source)
        check_rows(form, raw.train, raw.source)
        check_rows(form, raw.evaluation or [], f"{raw.source} (evaluation split)")
        check_rows(form, raw.test or [], f"{raw.source} (test split)")
    except InvalidInput as error:
        raise InvalidInput(
            [Problem(key if not p.path else (*key[:-1], *p.path), p.message) for p in error.problems]
        ) from error
    return RawSet(raw.train, raw.evaluation, form, raw.source, key, raw.test)


def _renamed(raw: RawData, source: RowSource, form: RowFormat) -> RawData:
    """The rows under the names that the format knows (`columns`)."""
    problems = []
    for wanted, own in source.columns.items():
        if wanted not in {*form.columns, *form.optional}:
            known = [*form.columns, *form.optional]
            hint = f" Write {own}: {wanted}" if own in known else did_you_mean(wanted, known)
            message = f"is no column of this format; it has {', '.join(known)}.{hint}"
            problems.append(Problem(("columns", wanted), message))
        elif own not in raw.columns:
            message = (
                f"{raw.source} has no column {own!r}; it has {', '.join(raw.columns)}.{did_you_mean(own, raw.columns)}"
            )
            problems.append(Problem(("columns", wanted), message))
    if problems:
        raise InvalidInput(problems)
    if not source.columns:
        return raw

    def rename(rows: list[Row]) -> list[Row]:
        return [{**row, **{wanted: row.get(own) for wanted, own in source.columns.items()}} for row in rows]

    evaluation, test = (rename(rows) if rows is not None else None for rows in (raw.evaluation, raw.test))
    return RawData(rename(raw.train), evaluation, raw.source, [*raw.columns, *source.columns], test)
