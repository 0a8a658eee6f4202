"""Matched contrasts: what one setting gains over another, all else equal and the learning rate tuned for each. Pure.

The trials of a search that learns are no fair sample: it tries a rank at the learning rates that it believes in, so a
comparison of averages mixes the two. Here a process over all rungs of all trials (search/contrast_process.py) is asked
for both settings in the same contexts (all other parameters), each at its best learning rate of the searched ones, and
the differences are averaged. A context counts where each of its values was tried with both settings: nothing is said of
what nobody has tried. Shape legend: d parameters, l settings, c contexts, k points, r learning rates, s draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorafront.search.contrast_process import ContrastProcess, Floats, Observations
from lorafront.search.history import Axis, axes_of, encode
from lorafront.search.learning_curve import remaining, transformed
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.lora import HYPERPARAMETERS
from lorafront.spaces.objectives import Objective, minimized
from lorafront.trainables.outcome import Outcome

RATE = "learning_rate"
SEARCHED = frozenset({*HYPERPARAMETERS, "alpha_ratio"})  # a seed is none: what it changes is noise
SAMPLES, EACH = 12, 60  # of the hyperparameters, and draws under each
MOST_OBSERVATIONS = 300  # the cost of a fit grows with their cube
MOST_CONTEXTS = 10
MOST_RATES = 7  # that a setting is asked at in one context
PLAUSIBLE = 3.0  # standard deviations by which a learning rate may look worse than the best, and is asked
NEAR = 0.25  # of the range of a continuous parameter
ROUNDING = 1e-6
FEW = 10  # values of a parameter, each a setting
LEAST_TRIALS = 12  # of a search
LEAST_BESIDE = 3  # trials of a setting; one of them at full fidelity
LEVEL = 0.95  # of intervals
# By which intervals are wider than those of the process. Without it, its 90 % intervals held the truth of two tables of
# real trainings in 83 to 99 % of the contrasts of a sampler; with it, those of 95 % do in 94 to 100 %
# (benchmarks/findings_coverage.py).
MARGIN = 1.2


class Interval(NamedTuple):
    """An uncertain number: its median, and the ends of the interval at `LEVEL`."""

    low: float
    middle: float
    high: float

    @property
    def certain(self) -> int:
        """Its sign where the interval excludes zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def interval(draws: Floats) -> Interval:
    """Of draws, with the margin."""
    low, middle, high = np.quantile(draws, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return Interval(*(float(middle + MARGIN * (end - middle)) for end in (low, middle, high)))


class Evidence:
    """What the trials of a search say about one measurement, and the process that was fitted on it.

    Attributes:
        axes: the parameters of the space, [d].
        trials: that have reported the measurement.
        places: float64[trials, d], their configurations.
        complete: bool[trials], at full fidelity.
        process: of the measurement, to be minimized.
        rate: the column of the learning rate; None where it is not tuned.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        reports: Sequence[tuple[TrialRecord, Sequence[tuple[float, float]]]],
        *,
        tune: bool,
        exact: bool,
    ) -> None:
        """Fit the process.

        Args:
            axes: see above.
            reports: (training rows, value) of each trial, one at least; infinite where it diverged.
            tune: the learning rate; else it is no part of what decides.
            exact: the value is a function of the configuration.
        """
        self.axes, self.trials = axes, [trial for trial, _ in reports]
        names = [axis.name for axis in axes]
        self.rate = names.index(RATE) if tune and RATE in names else None
        self.places: Floats = np.array([encode(trial.lora, axes) for trial in self.trials])
        if RATE in names and not tune:
            self.places[:, names.index(RATE)] = 0.0
        seen = [(i, rows, value) for i, (_, own) in enumerate(reports) for rows, value in own]
        trial, rows, value = (np.array(column) for column in zip(*seen, strict=True))
        value = np.where(np.isfinite(value), value, value[np.isfinite(value)].max())  # as bad as the worst
        to_full = remaining(trial, rows, value)
        value = value + np.array([to_full[r] for r in rows])
        depth = np.log(rows.max() / rows) / (math.log(rows.max() / rows.min()) or 1.0)
        least = np.full(len(self.trials), np.inf)
        np.minimum.at(least, trial, depth)
        self.complete: NDArray[np.bool_] = least == 0
        # Where there are too many: the last of each trial first, of any trial. The highest rungs alone would be those
        # of trials that were not stopped, and what was not stopped is no fair sample.
        kept = np.lexsort((np.random.default_rng(0).random(len(rows)), depth > least[trial]))[:MOST_OBSERVATIONS]
        observations = Observations(self.places[trial[kept]], depth[kept], trial[kept], value[kept])
        categorical = np.array([axis.categorical for axis in axes], dtype=bool)
        self.process = ContrastProcess(observations, categorical, SAMPLES, tuned=self.rate, exact=exact)

    def tuned(self, points: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """(float64[s, k] draws at the best learning rate, int[s, k] its index among the searched ones).

        Args:
            points: float64[k, d]; their learning rates do not count.
        """
        rates = np.zeros(1) if self.rate is None else self.axes[self.rate].places
        asked = np.repeat(points[:, None], len(rates), axis=1)
        if self.rate is not None:
            asked[..., self.rate] = rates
        flat = asked.reshape(-1, asked.shape[-1])
        mean, deviation = (found.reshape(asked.shape[:2]) for found in self.process.at_full(flat))
        likely = mean - PLAUSIBLE * deviation <= (mean + PLAUSIBLE * deviation).min(axis=1, keepdims=True)
        kept = np.stack([_spread(row, MOST_RATES) for row in likely])
        drawn = self.process.draws(asked[kept], EACH)
        values = np.full((len(drawn), *kept.shape), np.inf)
        values[:, kept] = drawn
        return values.min(axis=2), values.argmin(axis=2)


def evidence(
    table: StudyTable,
    objective: Objective,
    scaled: Callable[[float], float] | None = None,
    *,
    tune: bool = True,
    exact: bool = False,
) -> Evidence | None:
    """Of one measurement; None where too few trials have it.

    Args:
        table: the study.
        objective: names the measurement.
        scaled: what to make of its values, which are to be minimized; else they are as loss is compared.
        tune: the learning rate; else the last report of a trial is all there is to know.
        exact: the value is a function of the configuration.
    """
    axes = [axis for axis in axes_of(table.search.space) if axis.name in SEARCHED]
    scaled = scaled or (lambda value: transformed(value, objective.name))
    reports = [
        (trial, [*seen, *_diverged(trial)] if tune else [(1.0, seen[-1][1])])
        for trial in (*table.imported, *table.trials)
        if (seen := list(_reports(trial, objective, scaled))) or (tune and _diverged(trial))
    ]
    if len(reports) < LEAST_TRIALS or not axes or not any(math.isfinite(v) for _, seen in reports for _, v in seen):
        return None
    return Evidence(axes, reports, tune=tune, exact=exact)


def _reports(
    trial: TrialRecord, objective: Objective, scaled: Callable[[float], float]
) -> Iterator[tuple[float, float]]:
    """(rows, value to be minimized) at each rung."""
    for report in trial.rungs or ([trial.result] if trial.result else []):
        found = minimized(report.measurements, [objective])
        if found and math.isfinite(found[0]) and math.isfinite(value := scaled(found[0])):
            yield float(report.rows), value


def _diverged(trial: TrialRecord) -> list[tuple[float, float]]:
    """An infinite value where it did."""
    if trial.result is None or trial.outcome is not Outcome.DIVERGED or not trial.result.rows:
        return []
    return [(float(trial.result.rows), math.inf)]


class Panel:
    """The settings of one parameter in the same contexts.

    Attributes:
        name: of the parameter.
        settings: its values, [l], in their order.
        trials: int[l], how many have each setting, or one near it.
        usable: indices of the settings with trials enough.
        points: float64[l, c, d], each setting in each context; their learning rates do not count.
        tried: bool[l, c], contexts each value of which was tried with the setting.
    """

    def __init__(self, of: Evidence, name: str, settings: Sequence[Any]) -> None:
        """Draw each setting in each context.

        Args:
            of: the trials and the process.
            name: of the parameter.
            settings: to compare.
        """
        self.name, self.settings = name, list(settings)
        column = [axis.name for axis in of.axes].index(name)
        axis = of.axes[column]
        levels = np.array([axis.place(setting) for setting in settings])
        members = _members(of.places[:, column], levels, axis)
        self.trials = members.sum(axis=1)
        enough = (self.trials >= LEAST_BESIDE) & (members & of.complete).any(axis=1)
        self.usable: list[int] = np.flatnonzero(enough).tolist()
        matched = [i for i in range(len(of.axes)) if i not in (column, of.rate)]
        contexts = _contexts(of.places[members[enough].any(axis=0)], matched)
        self.tried = np.stack([_tried(of, contexts, matched, mine) for mine in members]) & enough[:, None]
        self.points = np.repeat(contexts[None], len(levels), axis=0)
        self.points[..., column] = levels[:, None]
        self._values = self._drawn(of)

    def _drawn(self, of: Evidence) -> Floats:
        """float64[l, c, s], NaN where it was not tried."""
        values = np.full((*self.tried.shape, EACH * SAMPLES), np.nan)
        if self.tried.any():
            values[self.tried] = of.tuned(self.points[self.tried])[0].T
        return values

    def measured_by(self, of: Evidence, back: Callable[[Floats], Floats] | None = None) -> Panel:
        """The same settings in the same contexts by another measurement.

        Args:
            of: the measurement.
            back: from what the process has of it to what is compared.
        """
        other = copy(self)
        drawn = other._drawn(of)  # noqa: SLF001  # its own class
        other._values = back(drawn) if back else drawn  # noqa: SLF001
        return other

    @property
    def usual(self) -> float:
        """The median of all draws."""
        return float(np.nanmedian(self._values))

    def differences(self, *pairs: tuple[int, int]) -> Floats | None:
        """float64[pairs, s]: draws of the second setting minus the first, over the contexts that all of them share.

        None where there is none.
        """
        shared = self.tried[[i for pair in pairs for i in pair]].all(axis=0)
        if not shared.any():
            return None
        return np.stack([(self._values[after] - self._values[before])[shared].mean(axis=0) for before, after in pairs])


def panel(of: Evidence, name: str) -> Panel | None:
    """The settings of a parameter that are worth comparing; None where it has one only or nothing was tried."""
    axis = next((axis for axis in of.axes if axis.name == name), None)
    if axis is None:
        return None
    settings = _settings(axis)
    found = Panel(of, name, settings) if len(settings) > 1 else None
    return found if found is not None and len(found.usable) > 1 else None


def _settings(axis: Axis) -> list[Any]:
    """Of a parameter: all values of few, ranks in doublings, else the two ends of a range."""
    if len(axis.grid) <= FEW and not axis.continuous:
        return sorted(axis.grid) if all(isinstance(value, (int, float)) for value in axis.grid) else list(axis.grid)
    low, high = min(axis.grid), max(axis.grid)
    if axis.name == "rank":
        return [low << i for i in range(int(math.log2(high / low)) + 1)]
    return [low, high]


def _members(own: Floats, levels: Floats, axis: Axis) -> NDArray[np.bool_]:
    """bool[l, trials]: those that have a setting; of a range, those near it and nearer to it than to the others."""
    apart = np.abs(own - levels[:, None])
    discrete = len(axis.grid) == len(levels)
    found: NDArray[np.bool_] = (apart <= (ROUNDING if discrete else NEAR)) & (apart == apart.min(axis=0))
    return found


def _contexts(places: Floats, matched: Sequence[int]) -> Floats:
    """float64[c, d]: the different ones of some trials, or a draw of them; what is not matched is zero."""
    own = np.zeros_like(places)
    own[:, matched] = places[:, matched]
    different = np.unique(own.round(9), axis=0)
    order = np.random.default_rng(0).permutation(len(different))[:MOST_CONTEXTS]
    drawn: Floats = different[np.sort(order)]
    return drawn


def _tried(of: Evidence, contexts: Floats, matched: Sequence[int], mine: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool[c]: each value of the context stands in one of these trials."""
    found = np.ones(len(contexts), dtype=bool)
    for column in matched:
        near = NEAR if of.axes[column].continuous else ROUNDING
        found &= (np.abs(of.places[mine, column, None] - contexts[:, column]) <= near).any(axis=0)
    return found


def _spread(wanted: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """At most so many of what is wanted, evenly, both ends among them."""
    found = np.flatnonzero(wanted)
    picked = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    kept = np.zeros_like(wanted)
    kept[found[picked]] = True
    return kept


@dataclass(frozen=True)
class Best:
    """Where the best learning rate lies in one context.

    Attributes:
        low, high: ends of the interval at `LEVEL`, among the searched values.
        at_lowest, at_highest: probability that it is the lowest or the highest of the searched ones.
    """

    low: float
    high: float
    at_lowest: float
    at_highest: float


def best_rate(of: Evidence, number: int) -> Best:
    """At the configuration of one trial, by its number; the learning rate is searched."""
    rate = of.axes[of.rate or 0]
    index = next(i for i, trial in enumerate(of.trials) if trial.number == number and not trial.imported_from)
    drawn = rate.places[of.tuned(of.places[[index]])[1][:, 0]]
    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    low, high = (rate.grid[int(np.abs(rate.places - end).argmin())] for end in ends)
    return Best(float(low), float(high), float((drawn == 0).mean()), float((drawn == 1).mean()))
