"""How a row of a data set becomes a prompt and a completion; the prompt is not trained on.

A new format is a `RowFormat`: an entry in `FORMATS`, or `module:name` in a search file. Rows are plain dictionaries; a
value of the wrong type is refused with its row and column, because a library would silently train on `str(None)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.spaces.errors import InvalidInput, did_you_mean
from lorafront.trainables.user_code import load_reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
Check = Callable[[Any], str]  # what is wrong with a value, such as "must be text"; empty where nothing is
ANYTHING = "."  # stands for an answer that nobody has given: formats and templates want one


def text(value: Any) -> str:
    """A value that is text."""
    return "" if isinstance(value, str) else "must be text"


def text_or_nothing(value: Any) -> str:
    """Text, or None."""
    return "" if value is None else text(value)


def label(value: Any) -> str:
    """The name or number of a class."""
    good = isinstance(value, int) or (isinstance(value, str) and value.strip())
    return "" if good else "must be a label: text or a whole number"


def messages(value: Any) -> str:
    """A conversation whose last turn is the assistant's."""
    if not isinstance(value, (list, tuple)) or len(value) < 2:  # noqa: PLR2004  # a question and an answer
        return "must be a list of two or more messages"
    for turn in value:
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            return "must hold messages with the texts role and content"
    return "" if value[-1]["role"] == "assistant" else "must end with a message of the assistant"


_ANY_TURN = {"role": "assistant", "content": ANYTHING}


@dataclass(frozen=True)
class RowFormat:
    """One way to read rows.

    Attributes:
        columns: what every row must have, and the check of its values.
        split: (row, tokenizer) to (prompt, completion); for classification (text, label). An empty prompt means that
            the whole text is trained on.
        optional: what a row may have.
        packed: True where texts are joined and cut into blocks of `max_length`.
        framed: True where `split` writes the begin and end tokens itself.
        ask: a row that asks a plain text, with `ANYTHING` as its answer; None where only whole rows can be asked.
    """

    columns: Mapping[str, Check]
    split: Callable[[Row, PreTrainedTokenizerBase], tuple[str, str]]
    optional: Mapping[str, Check] = field(default_factory=dict)
    packed: bool = False
    framed: bool = False
    ask: Callable[[str], Row] | None = None


def _alpaca(row: Row, _: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The template of Stanford Alpaca (Taori et al. 2023), with and without input."""
    task, instruction = "Below is an instruction that describes a task", row["instruction"]
    if row.get("input"):
        opening = f"{task}, paired with an input that provides further context. Write a response that appropriately "
        middle = f"### Instruction:\n{instruction}\n\n### Input:\n{row['input']}"
    else:
        opening = f"{task}. Write a response that appropriately "
        middle = f"### Instruction:\n{instruction}"
    return f"{opening}completes the request.\n\n{middle}\n\n### Response:\n", row["output"]


def _chat(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Everything up to the last turn is the prompt, in the words of the tokenizer's own chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidInput(
            "the tokenizer has no chat template, which format messages needs; use a chat model, or prompt_completion"
        )
    turns = list(row["messages"])
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    for generation in (True, False):  # some templates put more into the prompt of a generation than into a turn
        prompt = str(tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=generation))
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :]
    raise InvalidInput("the chat template rewrites earlier turns, so prompt and completion cannot be told apart")


FORMATS: dict[str, RowFormat] = {
    "text": RowFormat({"text": text}, lambda row, _: ("", row["text"]), packed=True, ask=lambda asked: {"text": asked}),
    "prompt_completion": RowFormat(
        {"prompt": text, "completion": text},
        lambda row, _: (row["prompt"], row["completion"]),
        ask=lambda asked: {"prompt": asked, "completion": ANYTHING},
    ),
    "question_answer": RowFormat(
        {"question": text, "answer": text},
        lambda row, _: (f"Question: {row['question']}\nAnswer: ", row["answer"]),
        ask=lambda asked: {"question": asked, "answer": ANYTHING},
    ),
    "alpaca": RowFormat(
        {"instruction": text, "output": text},
        _alpaca,
        optional={"input": text_or_nothing},
        ask=lambda asked: {"instruction": asked, "output": ANYTHING},
    ),
    "messages": RowFormat(
        {"messages": messages},
        _chat,
        framed=True,
        ask=lambda asked: {"messages": [{"role": "user", "content": asked}, _ANY_TURN]},
    ),
    "text_label": RowFormat(
        {"text": text, "label": label},
        lambda row, _: (row["text"], str(row["label"])),
        ask=lambda asked: {"text": asked, "label": ANYTHING},
    ),
}


def unanswered(form: RowFormat, row: Row) -> tuple[Row, bool]:
    """A row with `ANYTHING` where its answer is missing, and whether it was."""
    turns = row.get("messages")
    if form.columns.get("messages") is messages and isinstance(turns, list) and turns:
        asks = isinstance(turns[-1], Mapping) and turns[-1].get("role") != "assistant"
        return ({**row, "messages": [*turns, _ANY_TURN]} if asks else row), asks
    blanks = {name: value for name, value in (form.ask("") if form.ask else {}).items() if value == ANYTHING}
    return {**blanks, **row}, not blanks.keys() <= row.keys()


def format_named(name: str, folder: Path | None = None) -> RowFormat:
    """A format of `FORMATS`, or the user's own as `module:name`.

    Raises:
        InvalidInput: it cannot be loaded, or is no RowFormat.
    """
    if name in FORMATS:
        return FORMATS[name]
    found = load_reference(name, folder)
    if not isinstance(found, RowFormat):
        raise InvalidInput(f"{name} must be a lorafront.trainables.formats.RowFormat (got {type(found).__name__})")
    return found


def check_columns(name: str, form: RowFormat, columns: Sequence[str], source: str) -> None:
    """Raise InvalidInput that lists the columns where one that the format needs is missing."""
    missing = [column for column in form.columns if column not in columns]
    if missing:
        hint = did_you_mean(missing[0], columns)
        shown = ", ".join(column if len(column) <= 40 else f"{column[:40]}…" for column in columns)  # noqa: PLR2004
        names = f"column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}"
        raise InvalidInput(
            f"format {name} needs {names}, which {source} lacks; it has {shown}.{hint} Say which it is in "
            f"columns: {{{missing[0]}: …}}, or, for a CSV without a header line, in header: [{', '.join(form.columns)}]"
        )


def check_rows(form: RowFormat, rows: Sequence[Row], source: str) -> None:
    """Raise InvalidInput where a value is not what its column must hold; names row (from 1) and column."""
    for number, row in enumerate(rows, start=1):
        for column, check in {**form.columns, **form.optional}.items():
            wrong = check(row.get(column))
            if not isinstance(wrong, str):
                raise InvalidInput(f"the check of column {column!r} must give text: what is wrong, or nothing at all")
            if wrong and (column in form.columns or column in row):
                raise InvalidInput(
                    f"row {number} of {source}: column {column!r} {wrong} (got {_short(row.get(column))})"
                )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"  # noqa: PLR2004  # a line of a terminal
