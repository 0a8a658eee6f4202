"""Prompts in the words in which the rows of a search were: a user's own, and evaluation rows with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.formats import ANYTHING, Row, RowFormat, check_rows, unanswered
from lorafront.trainables.row_sets import RawSet
from lorafront.trainables.task import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafront.trainables.task import Task

CLASSIFIES, CONTINUES = "SEQ_CLS", "CAUSAL_LM"  # PEFT's types of tasks
ANY_LENGTH = 2**30  # tokens


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        shown: to people.
        ids: tokens as the model reads them, in the words of the format.
        answer: the row's own; None where it has none.
    """

    shown: str
    ids: tuple[int, ...]
    answer: str | None = None


@dataclass(frozen=True)
class Wording:
    """How a search puts its rows.

    Attributes:
        form: the format of its data.
        task: what it is trained for.
        tokenizer: of the base.
        max_length: tokens at which its rows were cut.
        labels: of a classifier.
        columns: the format's name of a column to the data's own, where they differ.
    """

    form: RowFormat
    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    labels: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()

    def prompts(self, rows: Sequence[Row], source: str) -> list[Prompt]:
        """Of rows that may lack their answer, or have nothing but a `prompt`: a plain text.

        Raises:
            InvalidInput: a row is none of the format, or the task can do nothing with it.
        """
        named = [{**row, **{ours: row[own] for ours, own in self.columns if own in row}} for row in rows]
        plain = [self._plain(row) for row in named]
        if self.form.ask is None and any(text is not None for text in plain):
            columns = ", ".join(self.form.columns)
            message = "the format of this search does not say where a plain prompt stands (RowFormat.ask)"
            raise InvalidInput(f"{source}: {message}; give JSON lines with its columns: {columns}")
        asked = [self.form.ask(text) if self.form.ask and text is not None else row
                 for row, text in zip(named, plain, strict=True)]  # fmt: skip
        whole = [unanswered(self.form, row) for row in asked]
        filled = [row for row, _ in whole]
        check_rows(self.form, filled, source)
        pairs = RawSet(filled, None, self.form, source, ("data", "path")).pairs(filled, self.tokenizer)
        found = []
        for number, (pair, (_, missing), text) in enumerate(zip(pairs, whole, plain, strict=True), start=1):
            prompt = self._asked(pair, f"row {number} of {source}", answered=text is None and not missing)
            found.append(prompt if text is None else replace(prompt, shown=text))
        return found

    def _plain(self, row: Row) -> str | None:
        """The text of a row that has no column of the format."""
        text = row.get("prompt")
        return text if isinstance(text, str) and not self.form.columns.keys() & row.keys() else None

    def tokens(self, ids: Sequence[int], target: int) -> Prompt:
        """The prompt of a row that the search has encoded; of a text that is all trained on, its first half."""
        if self.task.peft_type == CLASSIFIES:
            return Prompt(self.decoded(ids), tuple(ids), self.labels[target])
        start = target if self.decoded(ids[:target]).strip() else len(ids) // 2
        return Prompt(self.decoded(ids[:start]), tuple(ids[:start]), self.decoded(ids[start:]))

    def decoded(self, ids: Sequence[int]) -> str:
        """Tokens as text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _asked(self, pair: tuple[str, str], where: str, *, answered: bool) -> Prompt:
        """Encoded as a training row was."""
        prompt, answer = pair
        classifies = self.task.peft_type == CLASSIFIES
        if not prompt:  # a text that is all trained on, so that there is nothing to answer
            prompt, answer, answered = answer, ANYTHING, False
        longest = ANY_LENGTH if self.task.peft_type == CONTINUES else self.max_length
        encoding = Encoding(longest, framed=self.form.framed, labels=self.labels)
        row = (prompt, self.labels[0] if classifies else answer)
        found = self.task.encode([row], self.tokenizer, encoding) if prompt.strip() else []
        if not found:
            raise InvalidInput(f"{where}: task {self.task.name} can do nothing with {prompt!r}")
        ids, start = found[0]
        if classifies:
            return Prompt(prompt, tuple(ids), answer if answered else None)
        return Prompt(prompt, tuple(ids[:start]), self.decoded(ids[start:]) if answered else None)
