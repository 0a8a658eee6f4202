"""Answers of candidates side by side: blocks for a terminal, and JSON. Pure apart from rich's drawing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lorafront.search.study_table import TrialRecord
    from lorafront.trainables.generate import Said
    from lorafront.trainables.prompts import Prompt

BASE, TAKE, BETTER, CHEAPER = "base", "take", "better", "cheaper"
MOST_SHOWN = 400  # characters of a prompt or of a row's own answer: the end of the one, the beginning of the other
OWN = "the row's own"


@dataclass(frozen=True)
class Candidate:
    """Who answers.

    Attributes:
        role: as the recommendation has it; `base` is the bare one.
        trial: whose adapter; None for the bare base.
        quantization: how its base is stored.
    """

    role: str
    trial: TrialRecord | None
    quantization: str

    @property
    def label(self) -> str:
        """Such as `take: trial 7` or `base nf4`."""
        return f"{self.role} {self.quantization}" if self.trial is None else f"{self.role}: trial {self.trial.number}"


@dataclass(frozen=True)
class Generations:
    """All answers.

    Attributes:
        candidates: the bare base first, then the recommended one.
        prompts: in the order in which they were asked.
        said: for each prompt an answer of each candidate; None where it cannot answer.
    """

    candidates: tuple[Candidate, ...]
    prompts: tuple[Prompt, ...]
    said: tuple[tuple[Said | None, ...], ...]

    def blocks(self) -> Iterator[Text | Table]:
        """What is asked, then a line for each candidate, wrapped; an empty line between prompts."""
        for prompt, answers in zip(self.prompts, self.said, strict=True):
            shown = _printable(prompt.shown)
            yield Text(f"\n> {shown if len(shown) <= MOST_SHOWN else f'…{shown[-MOST_SHOWN:]}'}")
            block = Table.grid(padding=(0, 2, 0, 0))
            block.add_column(no_wrap=True)
            block.add_column(overflow="fold")
            for candidate, said in zip(self.candidates, answers, strict=True):
                block.add_row(Text(f"  {candidate.label}"), Text(_told(said)))
            if prompt.answer is not None:
                own = _printable(prompt.answer.strip())
                block.add_row(Text(f"  {OWN}"), Text(own if len(own) <= MOST_SHOWN else f"{own[:MOST_SHOWN]}…"))
            yield block

    def as_json(self) -> list[dict[str, Any]]:
        """An object for each prompt."""
        return [
            {
                "prompt": prompt.shown,
                "own_answer": prompt.answer,
                "answers": [
                    {
                        "candidate": candidate.role,
                        "trial": candidate.trial.number if candidate.trial else None,
                        "quantization": candidate.quantization,
                        **_fields(said),
                    }
                    for candidate, said in zip(self.candidates, answers, strict=True)
                ],
            }
            for prompt, answers in zip(self.prompts, self.said, strict=True)
        ]


def _fields(said: Said | None) -> dict[str, Any]:
    if said is None:
        return {"text": None}
    if said.probability is not None:
        return {"label": said.text, "probability": said.probability}
    return {"text": said.text, "ended": said.ended}


def _told(said: Said | None) -> str:
    if said is None:
        return "(it has no head for these labels)"
    if said.probability is not None:
        return f"{_printable(said.text)} ({said.probability:.0%})"
    text = _printable(said.text.strip())
    return (text or ("(blanks)" if said.text else "(nothing)")) + ("" if said.ended else "…")


def _printable(text: str) -> str:
    """A model may say characters that a terminal obeys."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "�" for c in text)
