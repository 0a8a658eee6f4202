"""What a few replicates over seeds say of many configurations: means with intervals, and who is on the front. Pure.

A replicate is the mean of its configuration, an effect of its seed, which all configurations share (the same rows in
the same order), and noise of one variance for all: of two or three replicates alone nobody can tell a variance (a
bootstrap of three covers 67 % at a nominal 95). Means stand on the scale of the objective, see `scaled`.

Shape legend: m and n configurations, k objectives, s draws.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lorafront.spaces.objectives import Objective

LEVEL = 0.95
DRAWS = 2000
LARGEST = math.log(sys.float_info.max)
RATIOS = frozenset({"perplexity", "train_seconds", "tokens_per_second"})  # their noise is a part of their value


def scaled(value: float, objective: Objective) -> float:
    """On the scale on which noise is the same everywhere: the logarithm of what is compared by ratios."""
    return math.log(value) if objective.name in RATIOS else value


def natural(value: float, objective: Objective) -> float:
    """The inverse of `scaled`; infinite where no float is as large."""
    if objective.name not in RATIOS:
        return value
    return math.exp(value) if value < LARGEST else math.inf


@dataclass(frozen=True)
class Fit:
    """One objective of all configurations that have replicates.

    Attributes:
        numbers: of the configurations.
        counts: int[m], replicates of each.
        spread: standard deviation over seeds, pooled over the configurations.
        freedom: degrees of freedom of `spread`; 0 where no configuration has two replicates. The more of it is an
            effect of few seeds, the fewer they are (Satterthwaite 1946).
        levels: float64[m], means over the seeds of all: what differs between them is no effect of a seed.
        covariance: float64[m, m] of `levels`, in units of `noise` squared.
        noise: standard deviation of what is left without the effects of the seeds.
        paired_freedom: degrees of freedom of `noise`.
    """

    numbers: tuple[int, ...]
    counts: np.ndarray
    spread: float
    freedom: float
    levels: np.ndarray
    covariance: np.ndarray
    noise: float
    paired_freedom: int

    @property
    def half_widths(self) -> np.ndarray:
        """float64[m]: the interval of a level reaches so far to both sides; infinite where nothing is known of it."""
        if self.freedom == 0:
            return np.full(len(self.numbers), math.inf)
        half: np.ndarray = _quantile(self.freedom) * self.spread / np.sqrt(self.counts)
        return half

    def difference(self, one: int, other: int) -> tuple[float, float]:
        """(how much larger configuration `one` is than `other` at the same seeds, half the width of its interval)."""
        i, j = self.numbers.index(one), self.numbers.index(other)
        variance = max(0.0, self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j])
        half = _quantile(self.paired_freedom) * self.noise * math.sqrt(variance) if self.paired_freedom else math.inf
        return float(self.levels[i] - self.levels[j]), half

    def draw(self, generator: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
        """float64[s, m]: levels as they may be, given what was seen (a flat prior)."""
        if self.paired_freedom == 0 or self.noise == 0:
            return np.tile(self.levels, (draws, 1))
        noise = self.noise * np.sqrt(self.paired_freedom / generator.chisquare(self.paired_freedom, size=(draws, 1)))
        root = np.linalg.cholesky(self.covariance + 1e-12 * np.eye(len(self.numbers)))
        found: np.ndarray = self.levels + noise * (generator.standard_normal((draws, len(self.numbers))) @ root.T)
        return found


def fit(replicates: Mapping[int, Mapping[int, float]]) -> Fit:
    """Fit one objective.

    Args:
        replicates: of each configuration, by seed, its value on the scale of the objective; one at least.
    """
    numbers = tuple(replicates)
    seen = [(place, seed, replicates[n][seed]) for place, n in enumerate(numbers) for seed in replicates[n]]
    values = np.array([value for _, _, value in seen])
    places = np.array([place for place, _, _ in seen])
    counts = np.bincount(places, minlength=len(numbers))
    means = np.bincount(places, weights=values, minlength=len(numbers)) / counts
    freedom = len(seen) - len(numbers)
    scatter = float(((values - means[places]) ** 2).sum())
    own = np.eye(len(numbers))[places]
    seeds = sorted({seed for _, seed, _ in seen})
    design = np.hstack([own, _contrasts([seeds.index(seed) for _, seed, _ in seen], len(seeds))])
    paired_freedom = len(seen) - int(np.linalg.matrix_rank(design))
    if paired_freedom == 0:  # one configuration alone, or seeds that only one of them had
        design, paired_freedom = own, freedom
    if all(len(set(replicates[number].values())) == 1 for number in numbers):  # to the last digit, as costs mostly are
        means = np.array([next(iter(replicates[number].values())) for number in numbers])
        nothing = np.zeros((len(numbers), len(numbers)))
        return Fit(numbers, counts, 0.0, float(freedom), means, nothing, 0.0, freedom)
    solution = np.linalg.lstsq(design, values, rcond=None)[0]
    left = float(((values - design @ solution) ** 2).sum())
    m = len(numbers)
    return Fit(
        numbers, counts,
        spread=math.sqrt(scatter / freedom) if freedom else 0.0,
        freedom=_satterthwaite(scatter - left, freedom - paired_freedom, left, paired_freedom),
        levels=solution[:m], covariance=np.linalg.pinv(design.T @ design)[:m, :m],
        noise=math.sqrt(left / paired_freedom) if paired_freedom else 0.0, paired_freedom=paired_freedom,
    )  # fmt: skip


def beaten(points: np.ndarray, by: np.ndarray, able: np.ndarray) -> np.ndarray:
    """bool[s, m]: whether any of `by` is nowhere worse and somewhere better.

    Args:
        points: float64[s, m, k], to be minimized.
        by: float64[s, n, k], likewise.
        able: bool[s, n]; the others beat nobody.
    """
    nowhere_worse = (by[:, None] <= points[:, :, None]).all(axis=-1)
    somewhere_better = (by[:, None] < points[:, :, None]).any(axis=-1)
    return np.asarray((nowhere_worse & somewhere_better & able[:, None]).any(axis=-1))


def _contrasts(codes: list[int], levels: int) -> np.ndarray:
    """float64[n, levels - 1]: effects that add up to zero over the levels."""
    coded = np.vstack([np.eye(levels - 1), -np.ones((1, levels - 1))])
    return coded[codes]


def _satterthwaite(seeds: float, seed_freedom: int, left: float, left_freedom: int) -> float:
    """Degrees of freedom of the variance that two sums of squares, each with its own, make up together."""
    whole = seeds + left
    if seed_freedom == 0 or left_freedom == 0 or whole <= 0:
        return float(seed_freedom + left_freedom)
    return 1 / ((max(0.0, seeds) / whole) ** 2 / seed_freedom + (left / whole) ** 2 / left_freedom)


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) if freedom else math.inf
