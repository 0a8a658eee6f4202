"""Rungs: the numbers of training rows at which trials are compared. Pure.

The last rung is full fidelity. Each rung is half of the next, so `n` rungs of `rows` are `rows // 2**(n-1-i)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.trainables.config import TrainingConfig

FEWEST = 5  # trials from which on a rank correlation is told


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


def rank_correlations(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """How far the order at each rung is the order at the end, by Spearman: 1 is the same order, 0 is chance.

    Args:
        curves: rows to quality, of trials that came to the end. With fewer than `FEWEST` there is nothing to say.

    Returns:
        By rows, without the last rung, and without rungs where all are equal or one of the trials did not report.
    """
    if len(curves) < FEWEST:
        return {}
    rungs = sorted(set[int].intersection(*(set(curve) for curve in curves)))
    ranks = {rows: _ranks(np.array([curve[rows] for curve in curves], dtype=float)) for rows in rungs}
    varied = [rows for rows in rungs if np.ptp(ranks[rows]) > 0]
    if not varied or varied[-1] != rungs[-1]:
        return {}
    return {rows: float(np.corrcoef(ranks[rows], ranks[rungs[-1]])[0, 1]) for rows in varied[:-1]}


def _ranks(values: np.ndarray) -> np.ndarray:
    """float64[n]: equal values share the mean of their places."""
    inorder = np.sort(values)
    mean: np.ndarray = (np.searchsorted(inorder, values, "left") + np.searchsorted(inorder, values, "right")) / 2
    return mean


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
