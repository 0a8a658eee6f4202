"""What the study knows, as arrays: every configuration as a point, and what each rung of it measured.

Shape legend: n observations, d searched parameters, k objectives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from moocore import is_nondominated
from optuna.trial import TrialState

from lorafront.search import study_table
from lorafront.search.learning_curve import transformed
from lorafront.search.samplers import NUMBER
from lorafront.spaces.lora import LoraConfiguration, LoraSpace
from lorafront.spaces.modules import GROUPS
from lorafront.spaces.objectives import minimized
from lorafront.spaces.parameters import Range, count, stepped
from lorafront.trainables.outcome import Outcome

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from lorafront.search.search_file import SearchFile

GRID = 17  # values of a continuous parameter


class Axis:
    """One searched parameter as a coordinate from 0 to 1."""

    def __init__(self, name: str, parameter: Any) -> None:
        """Args: name: as the sampler sees it. parameter: choices or a range."""
        self.name = name
        self.continuous = count(parameter) is None
        self.grid = _values(parameter)
        numeric = all(isinstance(value, (int, float)) for value in self.grid)
        nested = not numeric and _nested(self.grid)
        self.categorical = not numeric and not nested
        if numeric:
            log = (isinstance(parameter, Range) and parameter.log) or _wide(self.grid)
            self._places = [math.log(value) if log else float(value) for value in self.grid]
            self._log = log
        else:
            self._places = [float(index) for index in range(len(self.grid))]
        self._numeric = numeric
        self._low, self._extent = min(self._places), (max(self._places) - min(self._places)) or 1.0

    @property
    def places(self) -> np.ndarray:
        """float64[values of the grid]."""
        return (np.array(self._places) - self._low) / self._extent

    def place(self, value: Any) -> float:
        """Coordinate of any value; one outside the grid lies outside of 0 to 1 or, for a name, at -1."""
        if self._numeric:
            return ((math.log(value) if self._log else float(value)) - self._low) / self._extent
        return (self.grid.index(value) - self._low) / self._extent if value in self.grid else -1.0


def _values(parameter: Any) -> list[Any]:
    if isinstance(parameter, list):
        return parameter
    steps = count(parameter)
    low, high, step = parameter.low, parameter.high, parameter.step
    if steps is not None and steps <= GRID:
        return [stepped(low, index, step or 1) for index in range(steps)]
    if steps is None:
        grid = np.geomspace(low, high, GRID) if parameter.log else np.linspace(low, high, GRID)
        return [float(value) for value in grid]
    spread = np.geomspace(low, high, GRID) if parameter.log else np.linspace(low, high, GRID)
    every = step or 1
    return sorted({stepped(low, min(steps - 1, round((value - low) / every)), every) for value in spread})


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 4  # noqa: PLR2004  # as ranks are: 4, 8, 16


def _nested(names: Sequence[str]) -> bool:
    """True where each set of module groups holds the one before it, so that their order means something."""
    sets = [
        frozenset[str]().union(*(GROUPS.get(part, frozenset({part})) for part in name.split("+"))) for name in names
    ]
    return all(small < large for small, large in itertools.pairwise(sets))


class Entry(NamedTuple):
    """What one trial has to say.

    Attributes:
        number: in the study; -1 for a proposal that was not run.
        place: float[d], of its configuration.
        seen: (rows, the first objective) of every rung; infinite where it diverged.
        costs: float[k - 1], NaN where not measured yet.
        final: the first objective at full fidelity; NaN where it did not come so far.
        running: it has not ended.
    """

    number: int
    place: list[float]
    seen: list[tuple[float, float]]
    costs: list[float]
    final: float
    running: bool = False


class Reader:
    """Reads trials, those that have ended once."""

    def __init__(self, search: SearchFile, axes: Sequence[Axis]) -> None:
        """Args: search: its objectives. axes: of its space."""
        self._objectives = search.objective_list
        self._axes = axes
        self._ended: dict[int, Entry] = {}  # by the number in the sampler's view

    def read(self, trials: Sequence[FrozenTrial]) -> History:
        """All that these trials say."""
        entries = []
        for trial in trials:
            entry = self._ended.get(trial.number) or self._entry(trial)
            if trial.state.is_finished():
                self._ended[trial.number] = entry
            entries.append(entry)
        return History(entries, len(self._axes), len(self._objectives))

    def _entry(self, trial: FrozenTrial) -> Entry:
        attributes, objectives = trial.user_attrs, self._objectives
        if study_table.CONFIGURATION not in attributes:
            place = [axis.place(trial.params[axis.name]) for axis in self._axes]
            return Entry(-1, place, [], [math.nan] * (len(objectives) - 1), math.nan)
        place = encode(LoraConfiguration(**attributes[study_table.CONFIGURATION]), self._axes)
        costs, last = [math.nan] * (len(objectives) - 1), math.nan
        outcome = attributes.get(study_table.OUTCOME)
        imported = outcome == Outcome.IMPORTED.stored  # at as many rows as here, or it would not have been
        seen = []
        for report in [attributes[study_table.RESULT]] if imported else study_table.rungs(attributes):
            first = minimized(report["measurements"], objectives[:1])
            rest = minimized(report["measurements"], objectives[1:])
            if first and math.isfinite(value := transformed(first[0], objectives[0].name)):
                seen.append((float(report["rows"]), value))
                last = value
            if len(rest) == len(costs):
                costs = rest
        if outcome == Outcome.DIVERGED.stored:
            seen.append((float(attributes[study_table.RESULT]["rows"]), math.inf))
        final = last if imported or outcome == Outcome.COMPLETE.stored else math.nan
        return Entry(attributes[NUMBER], place, seen, costs, final, running=trial.state == TrialState.RUNNING)


class History:
    """What the study knows, as arrays.

    Attributes:
        numbers: int[trials].
        configurations: float64[trials, d].
        pending: int[...], trials that run.
        trial, rows, value: [n] of every rung: index of the trial, training rows, the first objective to be minimized
            (perplexity as its logarithm). A trial that diverged is believed to be as bad as the worst one.
        full: rows at the last rung.
        costs: float64[trials, k - 1], NaN where not measured yet.
        final: float64[trials], the first objective at full fidelity, NaN elsewhere.
        member: bool[trials], of the front.
    """

    def __init__(self, entries: Sequence[Entry], axes: int, objectives: int) -> None:
        """Args: entries: one per trial. axes: d. objectives: k."""
        self.numbers = np.array([entry.number for entry in entries], dtype=int)
        self.configurations = np.array([entry.place for entry in entries], dtype=float).reshape(len(entries), axes)
        self.costs = np.array([entry.costs for entry in entries], dtype=float).reshape(len(entries), objectives - 1)
        self.final = np.array([entry.final for entry in entries], dtype=float)
        self.pending = np.array([i for i, entry in enumerate(entries) if entry.running], dtype=int)
        seen = [(i, rows, value) for i, entry in enumerate(entries) for rows, value in entry.seen]
        self.full = max((rows for _, rows, _ in seen), default=1.0)
        self.trial = np.array([i for i, _, _ in seen], dtype=int)
        self.rows = np.array([rows for _, rows, _ in seen], dtype=float)
        values = np.array([value for _, _, value in seen], dtype=float)
        worst = max((value for value in values if math.isfinite(value)), default=0.0)
        self.value = np.where(np.isfinite(values), values, worst)
        points = np.column_stack([self.final, self.costs])
        done = np.isfinite(points).all(axis=1)
        self.member = np.zeros(len(points), dtype=bool)
        self.member[done] = is_nondominated(points[done])


def encode(lora: LoraConfiguration, space: Sequence[Axis]) -> list[float]:
    """Coordinates of a configuration, however it came about."""
    ratio = lora.alpha / lora.rank
    return [axis.place(ratio if axis.name == "alpha_ratio" else getattr(lora, axis.name)) for axis in space]


def axes_of(space: LoraSpace) -> list[Axis]:
    """The parameters of a space that have more than one value."""
    return [Axis(name, parameter) for name, parameter in space.parameters().items() if count(parameter) != 1]
