"""The sampler `mfgp`: one Gaussian process over (configuration, rows seen), fitted on every rung of every trial.

Only the first objective is uncertain. What a trial costs is nearly a function of its configuration, so the other
objectives of a candidate are believed at the mean of a process of their own. The expected hypervolume improvement at
full fidelity is then a closed form: a sum of widths times expected improvements over the steps of the front's
staircase. Trials that run are believed at their mean. Candidates are the whole discrete space times a grid of the
continuous parameters, or a draw of it where it is large.

The process is Optuna's (Matern 5/2, one length scale per parameter). Shape legend: n observations, m candidates,
d parameters, k objectives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from moocore import hypervolume, is_nondominated
from optuna._gp import gp, prior
from optuna.samplers import RandomSampler

from lorafront.search.history import Axis, History, Reader, axes_of
from lorafront.search.learning_curve import remaining
from lorafront.search.samplers import OneByOne

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from lorafront.search.search_file import SearchFile

BEGIN = 4  # observations before the process is asked; uniform draws until then
MOST_CANDIDATES = 2048
MOST_OBSERVATIONS = 400  # the cost of a fit grows with their cube
FEW = 64  # observations up to which the hyperparameters are tuned at each question
TUNED_AGAIN = 1.1  # times as many observations as when they were tuned, and they are tuned again
MARGIN = 0.1  # of the front's extent; the reference point stands so far behind its worst values


class Proposal(NamedTuple):
    """What to try next; uniform draws where there are no values."""

    values: dict[str, Any]
    beliefs: Beliefs | None


class MultiFidelityGP(OneByOne):
    """See the module."""

    def __init__(self, search: SearchFile, seed: int) -> None:
        """Args: search: space, objectives, limits. seed: of the draws among many candidates."""
        self._search = search
        self._axes = axes_of(search.space)
        self._reader = Reader(search, self._axes)
        self._seed = seed
        self._uniform = RandomSampler(seed=seed)
        self._last: Beliefs | None = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose the configuration of the trial.

        Here, while a worker waits: a choice that was made ahead, without the result that sets the worker free, costs a
        search more than the wait (benchmarks/README.md).
        """
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        proposal = self.propose(self._reader.read(others), self._last)
        self._chosen, self._last = proposal.values, proposal.beliefs or self._last

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The chosen value, or a uniform draw while there is too little to learn from."""
        if param_name in self._chosen:
            return self._chosen[param_name]
        return self._uniform.sample_independent(study, trial, param_name, param_distribution)

    def propose(self, history: History, last: Beliefs | None) -> Proposal:
        """The configuration with the greatest expected hypervolume improvement; none where nothing was learnt yet.

        Args:
            history: what is known.
            last: of an earlier question; fits begin at their hyperparameters.
        """
        measured = np.isfinite(history.costs).all(axis=1)  # functions of the user are, at full fidelity only
        if min(len(set(history.trial)), measured.sum()) < BEGIN or not self._axes:
            return Proposal({}, None)
        candidates = self._candidates(history)
        if not len(candidates):
            return Proposal({}, None)
        places = self._places(candidates)
        beliefs = Beliefs(history, self._axes, last)
        mean, deviation = beliefs.at_full(places)
        costs = beliefs.costs_at(places)
        front, reference = self._front(history, beliefs, mean, costs)
        gain = improvement(mean, deviation, costs, front, reference)
        best = int(np.lexsort((deviation, gain, self._allowed(costs)))[-1])
        return Proposal({axis.name: axis.grid[candidates[best, i]] for i, axis in enumerate(self._axes)}, beliefs)

    def _candidates(self, history: History) -> np.ndarray:
        """int64[m, d]: indices into the grids of the axes; those that were tried are left out."""
        sizes = [len(axis.grid) for axis in self._axes]
        total = math.prod(sizes)
        if total <= MOST_CANDIDATES:
            flat = np.arange(total)
        else:
            draw = np.random.default_rng((self._seed, len(history.numbers), len(history.rows)))
            flat = np.unique(draw.integers(total, size=MOST_CANDIDATES))
        found = np.stack(np.unravel_index(flat, sizes), axis=1)
        tried = set(_tuples(history.configurations))
        fresh = [place not in tried for place in _tuples(self._places(found))]
        untried: np.ndarray = found[np.array(fresh, dtype=bool)]
        return untried

    def _places(self, candidates: np.ndarray) -> np.ndarray:
        return np.stack([axis.places[candidates[:, i]] for i, axis in enumerate(self._axes)], axis=1)

    def _allowed(self, costs: np.ndarray) -> np.ndarray:
        """bool[m]: within the limits on what is modelled as a cost."""
        allowed = np.ones(len(costs), dtype=bool)
        for limit in self._search.limits:
            for column, objective in enumerate(self._search.objective_list[1:]):
                if objective.name == limit.name:
                    sign = -1 if objective.direction == "maximize" else 1
                    within = sign * costs[:, column]
                    allowed &= np.array([limit.holds(float(value)) for value in within])
        return allowed if allowed.any() else ~allowed

    def _front(
        self, history: History, beliefs: Beliefs, mean: np.ndarray, costs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(float64[members, k] of what is there and what is believed of running trials, float64[k] reference)."""
        done = np.flatnonzero(np.isfinite(history.final))
        points = [np.column_stack([history.final[done], history.costs[done]])]
        if len(history.pending):
            running = history.configurations[history.pending]
            points.append(np.column_stack([beliefs.at_full(running)[0], beliefs.costs_at(running)]))
        known = np.concatenate(points)
        known = known[np.isfinite(known).all(axis=1)]
        known = known[self._allowed(known[:, 1:])] if len(known) else known
        front = known[is_nondominated(known)] if len(known) else known
        cheapest = costs.argmin(axis=0)
        seen = np.concatenate([front[:, 0], mean[cheapest]]) if len(front) else mean[cheapest]
        worst = seen.max()
        extent = worst - min(seen.min(), mean.min())
        ends = np.concatenate([costs[self._allowed(costs)], front[:, 1:]])
        return front, np.concatenate([[worst + MARGIN * extent], ends.max(axis=0) + MARGIN * np.ptp(ends, axis=0)])


class Beliefs:
    """The fitted processes of one moment."""

    quality: gp.GPRegressor
    processes: list[gp.GPRegressor]
    tuned_on: int

    def __init__(
        self, history: History, axes: Sequence[Axis], last: Beliefs | None = None, judged: int | None = None
    ) -> None:
        """Fit the processes.

        Args:
            history: what is known.
            axes: of the space.
            last: earlier processes. Hyperparameters begin at theirs, and stay there while little more is known than
                when they were tuned, which is what takes the time.
            judged: index of a trial whose own rungs count in any case. It is not believed at its mean then, nor are the
                others that run.
        """
        known = len(history.rows)
        again = last is None or known <= FEW or known >= last.tuned_on * TUNED_AGAIN
        self.tuned_on = known if last is None or again else last.tuned_on
        self._categorical = np.array([*(axis.categorical for axis in axes), False])
        kept = telling(history, MOST_OBSERVATIONS, judged)
        trial, rows, value = history.trial[kept], history.rows[kept], history.value[kept]
        extent = math.log(history.full / history.rows.min()) or 1.0
        share = 1 + (np.log(rows) - math.log(history.full)) / extent  # 1 is where `at_full` asks, also with one rung
        # What training on brings is nearly the same for all: taken out before, so that the process models the rest.
        to_full = remaining(history.trial, history.rows, history.value)
        flat = value + np.array([to_full[r] for r in rows])
        self._center, self._scale = float(np.median(flat)), float(np.std(flat)) or 1.0
        points = np.column_stack([history.configurations[trial], share])
        scaled = (flat - self._center) / self._scale
        self.quality = _fitted(points, scaled, self._categorical, last.quality if last else None, tune=again)
        if len(history.pending) and judged is None:
            running = np.column_stack([history.configurations[history.pending], np.ones(len(history.pending))])
            x = torch.from_numpy(running)
            with torch.no_grad():
                self.quality.append_running_data(x, self.quality.posterior(x)[0])
        self.processes = []
        self._cost_scales = []
        measured = np.flatnonzero(np.isfinite(history.costs).all(axis=1))
        measured = measured[spread(MOST_OBSERVATIONS, ~history.member[measured])]
        for column in range(history.costs.shape[1]):
            y = history.costs[measured, column]
            center, scale = float(y.mean()), float(y.std()) or 1.0
            x_cost = history.configurations[measured]
            categorical, earlier = self._categorical[:-1], last.processes[column] if last else None
            scaled = (y - center) / scale
            self.processes.append(_fitted(x_cost, scaled, categorical, earlier, tune=again, exact=True))
            self._cost_scales.append((center, scale))

    def at_full(self, places: np.ndarray, *, noise: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(mean float64[m], standard deviation float64[m]) of the first objective at full fidelity.

        With `noise`, of what one training measures; without, of what trainings of that configuration scatter around.
        """
        x = torch.from_numpy(np.column_stack([places, np.ones(len(places))]))
        with torch.no_grad():
            mean, variance = self.quality.posterior(x)
            variance = variance + self.quality.noise_var if noise else variance
        return mean.numpy() * self._scale + self._center, np.sqrt(variance.numpy()) * self._scale

    def costs_at(self, places: np.ndarray) -> np.ndarray:
        """float64[m, k - 1]: the other objectives, at their mean."""
        x = torch.from_numpy(places)
        columns = []
        for process, (center, scale) in zip(self.processes, self._cost_scales, strict=True):
            with torch.no_grad():
                columns.append(process.posterior(x)[0].numpy() * scale + center)
        return np.stack(columns, axis=1)


def telling(history: History, most: int, judged: int | None = None) -> np.ndarray:
    """int[<= most]: observations to learn from where there are too many.

    Those of the trial that is judged first; then high rungs before low ones, and in each the members of the front
    before the others: what was good shows where to look, what was not where it is no use.
    """
    others = history.trial != (-1 if judged is None else judged)
    return spread(most, ~history.member[history.trial], -history.rows, others)


def spread(most: int, *keys: np.ndarray) -> np.ndarray:
    """int[<= most]: in the order of the keys, the last one first; among equals a draw over all of them.

    The draw is the same for what was there before. All, as they stand, where there are no more than that.
    """
    n = len(keys[0])
    return np.lexsort((np.random.default_rng(0).random(n), *keys))[:most] if n > most else np.arange(n)


def _fitted(
    x: np.ndarray,
    y: np.ndarray,
    categorical: np.ndarray,
    earlier: gp.GPRegressor | None,
    *,
    tune: bool,
    exact: bool = False,
) -> gp.GPRegressor:
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    if earlier is not None and not tune:
        fitted = gp.GPRegressor(
            torch.from_numpy(categorical), torch.from_numpy(x), torch.from_numpy(y),
            earlier.inverse_squared_lengthscales, earlier.kernel_scale, earlier.noise_var,
        )  # fmt: skip
        fitted._cache_matrix()  # noqa: SLF001  # what `fit_kernel_params` does at its end
        return fitted
    return gp.fit_kernel_params(
        X=x,
        Y=y,
        is_categorical=categorical,
        log_prior=prior.default_log_prior,
        minimum_noise=prior.DEFAULT_MINIMUM_NOISE_VAR,
        deterministic_objective=exact,
        gpr_cache=earlier,
    )


def _tuples(places: np.ndarray) -> list[tuple[float, ...]]:
    """Places that can be compared with those of another way to the same."""
    return list(map(tuple, np.round(places, 6).tolist()))


def improvement(
    mean: np.ndarray, deviation: np.ndarray, costs: np.ndarray, front: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """float64[m]: expected hypervolume improvement where only the first objective is uncertain.

    Between two neighbouring qualities of the front the volume that a candidate would add per unit of quality is
    constant: what its costs dominate and no better member does. So the expectation is a sum over these slabs.

    Args:
        mean: float64[m] of the first objective.
        deviation: float64[m], its standard deviation.
        costs: float64[m, k - 1].
        front: float64[members, k].
        reference: float64[k].
    """
    order = np.argsort(front[:, 0])
    front = front[order][front[order][:, 0] < reference[0]]
    tops = np.append(front[:, 0], reference[0])  # slab j reaches up to tops[j]; members before j are better than it
    total = np.zeros(len(mean))
    below = np.zeros(len(mean))  # of max(0, top - y), for the slab's lower end
    for j, top in enumerate(tops):
        reach = expected_improvement(mean, deviation, top)
        total += added_volume(costs, front[:j, 1:], reference[1:]) * (reach - below)
        below = reach
    return total


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, bound: float) -> np.ndarray:
    """float64[m]: E max(0, bound - y) of a normal y."""
    deviation = np.maximum(deviation, 1e-12)
    z: np.ndarray = (bound - mean) / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    below: np.ndarray = torch.special.ndtr(torch.from_numpy(z)).numpy()
    found: np.ndarray = deviation * (z * below + density)
    return found


def added_volume(costs: np.ndarray, members: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """float64[m]: volume that the costs dominate up to the reference and no member does."""
    if costs.shape[1] == 1:
        best = min([float(reference[0]), *members[:, 0].tolist()])
        width: np.ndarray = np.maximum(0.0, best - costs[:, 0])
        return width
    held = hypervolume(members, ref=reference) if len(members) else 0.0
    return np.array(
        [
            hypervolume(np.vstack([members, cost]), ref=reference) - held if (cost < reference).all() else 0.0
            for cost in costs
        ]
    )
