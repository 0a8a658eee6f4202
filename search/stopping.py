"""Which trials are stopped early. Pure: no clock, no I/O, and trials are only compared at the same rung.

`Rungs` is asynchronous successive halving over several objectives, after MO-ASHA (Schmucker et al. 2021,
arXiv:2106.12639): at each rung the better half goes on, by non-dominated rank, and within a rank by what keeps the
front spread. The best so far on any one objective, so also the cheapest, is never stopped. The rule `model` is in
`model_stopping.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from moocore import pareto_rank

KEEP = 0.5  # share of a rung that goes on: rungs double the rows


class StoppingRule(Protocol):
    """Hears every rung of every trial, in the order in which they were recorded."""

    def stops(self, number: int, rows: int, values: Sequence[float]) -> bool:
        """Hear of a rung that is not the last one; True where the trial should end there.

        Args:
            number: the trial's.
            rows: of the rung.
            values: the objectives there, each to be minimized.
        """


class Never:
    """Every trial is trained to the end."""

    def stops(self, number: int, rows: int, values: Sequence[float]) -> bool:
        """False."""
        del number, rows, values
        return False


class Sparing:
    """A rule that never ends some trials; it hears of them all the same, so that others are compared with them."""

    def __init__(self, rule: StoppingRule, spared: Callable[[int], bool]) -> None:
        """Args: rule: for all others. spared: whether a trial, by number, goes on whatever the rule says."""
        self._rule = rule
        self._spared = spared

    def stops(self, number: int, rows: int, values: Sequence[float]) -> bool:
        """As the rule says, but never of a trial that is spared."""
        return self._rule.stops(number, rows, values) and not self._spared(number)


class Rungs:
    """See the module."""

    def __init__(self, keep: float = KEEP) -> None:
        """Args: keep: share of the trials of a rung that go on."""
        self._keep = keep
        self._seen: dict[int, dict[int, tuple[float, ...]]] = {}

    def stops(self, number: int, rows: int, values: Sequence[float]) -> bool:
        """True where the trial is not in the better part of those that reached this rung so far."""
        rung = self._seen.setdefault(rows, {})
        rung[number] = tuple(values)
        points = np.array(list(rung.values()), dtype=float)
        place = list(rung).index(number)
        if np.any(points[place] <= points.min(axis=0)):
            return False
        going_on = max(1, round(len(points) * self._keep))
        return place not in best_first(points)[:going_on]


def best_first(points: np.ndarray) -> list[int]:
    """Indices of points (float[n, objectives], minimized) by non-dominated rank, then spread out.

    Within a rank the extremes come first, then always the point that is farthest from those already taken.
    """
    ranks = pareto_rank(points)
    spread = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(spread > 0, spread, 1)
    order: list[int] = []
    for rank in range(int(ranks.max()) + 1):
        members = np.flatnonzero(ranks == rank)
        taken = list(dict.fromkeys(int(members[i]) for i in scaled[members].argmin(axis=0)))
        left = [int(i) for i in members if i not in taken]
        while left:
            distances = np.linalg.norm(scaled[left][:, None] - scaled[taken][None], axis=2).min(axis=1)
            taken.append(left.pop(int(distances.argmax())))
        order += taken
    return order
