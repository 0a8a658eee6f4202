"""How a row of a data set becomes a prompt and a completion; the prompt is not trained on.

A new format is a function and an entry in `FORMATS`. Rows are plain dictionaries; a value of the wrong type is refused
with its row and column, because a library would silently train on `str(None)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafront.spaces.errors import InvalidInput, Problem

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RowFormat:
    """One way to read rows.

    Attributes:
        columns: columns that every row must have.
        split: row to (prompt, completion); an empty prompt means that the whole text is trained on.
        packed: True where texts are joined and cut into blocks of `max_length`.
    """

    columns: tuple[str, ...]
    split: Callable[[Row], tuple[str, str]]
    packed: bool = False


def _alpaca(row: Row) -> tuple[str, str]:
    """The template of Stanford Alpaca (Taori et al. 2023), with and without input."""
    task, instruction = "Below is an instruction that describes a task", row["instruction"]
    if row.get("input"):
        opening = f"{task}, paired with an input that provides further context. Write a response that appropriately "
        middle = f"### Instruction:\n{instruction}\n\n### Input:\n{row['input']}"
    else:
        opening = f"{task}. Write a response that appropriately "
        middle = f"### Instruction:\n{instruction}"
    return f"{opening}completes the request.\n\n{middle}\n\n### Response:\n", row["output"]


FORMATS: dict[str, RowFormat] = {
    "text": RowFormat(("text",), lambda row: ("", row["text"]), packed=True),
    "prompt_completion": RowFormat(("prompt", "completion"), lambda row: (row["prompt"], row["completion"])),
    "question_answer": RowFormat(
        ("question", "answer"), lambda row: (f"Question: {row['question']}\nAnswer: ", row["answer"])
    ),
    "alpaca": RowFormat(("instruction", "output"), _alpaca),
}


def check_columns(row_format: str, columns: list[str], source: str) -> None:
    """Raise InvalidInput that lists the columns where one that the format needs is missing."""
    missing = [name for name in FORMATS[row_format].columns if name not in columns]
    if missing:
        raise InvalidInput(
            [
                Problem(
                    ("data", "format"),
                    f"format {row_format} needs column {name!r}, which {source} lacks; it has {', '.join(columns)}",
                )
                for name in missing
            ]
        )


def split_rows(row_format: str, rows: Sequence[Row], source: str) -> list[tuple[str, str]]:
    """(prompt, completion) of every row, in order.

    Raises:
        InvalidInput: a needed value is not text; names row (from 1) and column.
    """
    form = FORMATS[row_format]
    for number, row in enumerate(rows, start=1):
        for column in form.columns:
            if not isinstance(row.get(column), str):
                raise InvalidInput(
                    [
                        Problem(
                            ("data", "path"),
                            f"row {number} of {source}: column {column!r} must be text (got {row.get(column)!r})",
                        )
                    ]
                )
    return [form.split(row) for row in rows]
