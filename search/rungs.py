"""Rungs: the numbers of training rows at which trials are compared. Pure, and integers throughout.

The last rung is full fidelity. Each rung is half of the next, so `n` rungs of `rows` are `rows // 2**(n-1-i)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.trainables.config import TrainingConfig


def ladder(rows: int, rungs: int | Sequence[int], step: int = 1) -> tuple[int, ...]:
    """The rungs of a training over `rows` rows.

    Args:
        rows: training rows at full fidelity.
        rungs: how many, or the rows of each; a list must end at or before `rows`, which is added.
        step: rows of an optimizer step. A number of rungs gives fewer where the first ones would lie below a step.

    Raises:
        InvalidInput: a rung lies beyond the end.
    """
    if isinstance(rungs, int):
        halves = [rows]
        while len(halves) < rungs and halves[-1] // 2 >= step:
            halves.append(halves[-1] // 2)
        return tuple(reversed(halves))
    if rungs[-1] > rows:
        raise InvalidInput(
            [Problem(("training", "rungs"), f"rung {rungs[-1]} lies beyond the {rows} rows of a training")]
        )
    return tuple(sorted({*rungs, rows}))


def total_rows(training: TrainingConfig, train_rows: int, rows_per_step: Sequence[int]) -> int:
    """Rows of a full training.

    Args:
        training: gives epochs, steps or rows.
        train_rows: rows of the training split.
        rows_per_step: the sizes of an optimizer step that the space allows, in rows.

    Raises:
        InvalidInput: steps are given while the rows per step vary, so trials would see different amounts of data.
    """
    if training.rows is not None:
        return training.rows
    if training.steps is not None:
        if len(set(rows_per_step)) > 1:
            raise InvalidInput(
                [
                    Problem(
                        ("training", "steps"),
                        "steps of different sizes are no common length; give rows or epochs, since the space varies "
                        "the rows per step",
                    )
                ]
            )
        return training.steps * rows_per_step[0]
    return max(1, round((training.epochs or 1) * train_rows))
