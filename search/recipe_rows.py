"""The very rows that a search trained and evaluated on, as JSON lines in the shapes that trainers read.

Split, renamed columns and templates are those of the search, so no trainer has to know them:

    text/      {text}: blocks of a packed text; of pairs, both parts and the end token in one
    pairs/     {prompt, completion}
    ended/     the same with the tokenizer's end token written behind the completion
    turns/     {messages: [{role, content, train}]}, where the last turn alone is trained on
    prompted/  {prompt: [turns], completion: [the last turn]}
    labelled/  {text, label}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search.recipe import TRAIN, VALIDATION, Form
from lorafront.search.search_file import SearchFile
from lorafront.trainables.checkpoint import write_text
from lorafront.trainables.data import TokenData, TokenRows, split_rows
from lorafront.trainables.formats import Row
from lorafront.trainables.models import load_tokenizer
from lorafront.trainables.row_sets import RawSet, read_sets
from lorafront.trainables.task import task_named

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Shaped = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class RecipeRows:
    """Rows in the form in which the search read them.

    Attributes:
        form: what they are.
        train: to train on; texts, (prompt, completion) pairs, conversations or (text, label) pairs.
        validation: to evaluate on.
        end: the tokenizer's end token; empty where it has none, or the rows bring their own.
    """

    form: Form
    train: Sequence[Any]
    validation: Sequence[Any]
    end: str = ""

    def write(self, folder: Path, shapes: Sequence[str]) -> None:
        """One folder for each shape."""
        for shape in shapes:
            for name, rows in ((TRAIN, self.train), (VALIDATION, self.validation)):
                lines = [json.dumps(self._shaped(shape, row), ensure_ascii=False) + "\n" for row in rows]
                write_text(folder / shape / name, "".join(lines))

    def _shaped(self, shape: str, row: Any) -> dict[str, Any]:
        if shape == "text":
            return {"text": row if self.form == "text" else "".join([*row, self.end])}
        if shape == "turns":
            last = len(row) - 1
            return {"messages": [{**_turn(turn), "train": index == last} for index, turn in enumerate(row)]}
        if shape == "prompted":
            turns = [_turn(turn) for turn in row]
            return {"prompt": turns[:-1], "completion": turns[-1:]}
        if shape == "labelled":
            return {"text": row[0], "label": row[1]}
        return {"prompt": row[0], "completion": row[1] + (self.end if shape == "ended" else "")}


def _turn(turn: Row) -> dict[str, str]:
    return {"role": turn["role"], "content": turn["content"]}


def form_of(search: SearchFile, *, packed: bool) -> Form:
    """What the rows of a search are."""
    if packed:
        return "text"
    if search.data.format == "messages":
        return "turns"
    return "labelled" if search.task == "seq_cls" else "pairs"


def rows_of(search: SearchFile, tokens: TokenData) -> RecipeRows:
    """Read the rows of a search again and split them as it did.

    Raises:
        InvalidInput: the data is not there any more, or is not what it was.
    """
    tokenizer = load_tokenizer(search.model)
    raw = read_sets(search.data, task_named(search.task, search.code_folder), search.code_folder)
    end = "" if raw.main.form.framed else str(tokenizer.eos_token or "")
    form = form_of(search, packed=raw.main.form.packed)
    if form == "text":  # blocks of tokens are the rows
        return RecipeRows(form, _decoded(tokens.train, tokenizer), _decoded(tokens.evaluation, tokenizer), end)
    own = raw.evaluation.rows if raw.evaluation is not None else raw.main.evaluation
    train, validation, *_ = split_rows(raw.main.rows, own, search.data)

    def read(rows: list[Row], found: RawSet) -> list[Any]:
        return [row["messages"] for row in rows] if form == "turns" else list(found.pairs(rows, tokenizer))

    return RecipeRows(form, read(train, raw.main), read(validation, raw.evaluation or raw.main), end)


def _decoded(rows: TokenRows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    blocks = (rows.row(index)[0].tolist() for index in range(len(rows)))
    return [str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in blocks]
