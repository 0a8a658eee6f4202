"""What training on brings, as the trials of a search have shown it so far. Pure.

Qualities are compared as `transformed` gives them: differences are then about equally large everywhere.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def transformed(value: float, name: str) -> float:
    """Perplexity as its logarithm, which is a loss; other objectives as they are."""
    return math.log(value) if name == "perplexity" else value


def original(value: float, name: str) -> float:
    """The inverse of `transformed`."""
    return math.exp(value) if name == "perplexity" else value


def remaining(trial: np.ndarray, rows: np.ndarray, value: np.ndarray) -> dict[float, float]:
    """Rows to what a trial still gains from there to the last rung, as trials that went on have shown.

    From one rung to the next it is the median difference of the trials that reached both; zero where there is none yet.

    Args:
        trial: [n], whose each rung is.
        rows: [n], training rows.
        value: [n], the quality there, minimized.
    """
    levels = sorted(set(rows.tolist()), reverse=True)
    by_level = {r: dict(zip(trial[rows == r].tolist(), value[rows == r].tolist(), strict=True)) for r in levels}
    total = dict.fromkeys(levels[:1], 0.0)
    for upper, lower in itertools.pairwise(levels):
        both = by_level[upper].keys() & by_level[lower].keys()
        step = float(np.median([by_level[upper][t] - by_level[lower][t] for t in both])) if both else 0.0
        total[lower] = total[upper] + step
    return total
