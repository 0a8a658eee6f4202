"""The stopping rule `model`: a trial ends where it is unlikely to beat, at full fidelity, what costs no more.

Quality at full fidelity is what the process of `mfgp` expects of it after all rungs of all trials so far. What it costs
is measured already. The best so far at its rung, and one that is cheaper than everything finished, go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorafront.search.history import Reader, axes_of
from lorafront.search.mfgp import BEGIN, Beliefs

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from lorafront.search.search_file import SearchFile

LEAST_CHANCE = 0.05  # of beating them; below it a trial ends


class Model:
    """Implements `StoppingRule`."""

    def __init__(
        self, search: SearchFile, trials: Callable[[], Sequence[FrozenTrial]], least: float = LEAST_CHANCE
    ) -> None:
        """Learn nothing yet.

        Args:
            search: space and objectives.
            trials: those of the study, the rung in question recorded.
            least: chance below which a trial ends.
        """
        self._search = search
        self._axes = axes_of(search.space)
        self._trials = trials
        self._reader = Reader(search, self._axes)
        self._least = least
        self._beliefs: Beliefs | None = None

    def stops(self, number: int, rows: int, values: Sequence[float]) -> bool:
        """True where the chance is too small. False while fewer trials have finished than the process needs."""
        if not values or not self._axes:
            return False
        history = self._reader.read(self._trials())
        finished = np.isfinite(history.final) & np.isfinite(history.costs).all(axis=1)
        index = int(np.flatnonzero(history.numbers == number)[0])
        rivals = finished & (history.costs <= np.array(values[1:])).all(axis=1)
        at_rung = history.rows == rows
        mine = history.value[at_rung & (history.trial == index)]
        if finished.sum() < BEGIN or not rivals.any() or mine.min() <= history.value[at_rung].min():
            return False
        self._beliefs = Beliefs(history, self._axes, self._beliefs, judged=index)
        mean, deviation = self._beliefs.at_full(history.configurations[[index]], noise=True)
        return chance(history.final[rivals].min(), float(mean[0]), float(deviation[0])) < self._least


def chance(bound: float, mean: float, deviation: float) -> float:
    """That a normal variable falls below the bound."""
    return 0.5 * math.erfc((mean - bound) / (max(deviation, 1e-12) * math.sqrt(2)))
