"""A Gaussian process for differences between configurations, which takes its own uncertainty seriously. Pure.

`mfgp` asks where to look next and lives with one best guess of the hyperparameters. A finding needs intervals that
hold, so here they are drawn from their posterior, and a part of the noise is shared by all rungs of a trial: a trial is
one piece of evidence, however often it reports. Covariance of two observations (u is 0 at full fidelity, 1 at the
lowest rung; k is Matern 5/2 along one parameter, or equality of names):

    (v + w u u') product over parameters of (1 + a k)  +  t where the trial is the same  +  s where both are one

The product is the ANOVA kernel (Durrande et al. 2012): a term for each parameter and for each set of them. Where the
best learning rate lies depends on the other parameters, so its axis is shifted by a multiple of each ordered one, which
is learnt as well. Shape legend: n observations, m points asked for, d parameters, h hyperparameters (logarithms of v,
w, t, s, then of a and of the lengths for each parameter, then the shifts).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, eigh, solve_triangular
from scipy.optimize import minimize

Floats: TypeAlias = NDArray[np.float64]

# Medians and widths of the priors (normal, of the logarithm), for values scaled to unit variance.
VARIANCES, VARIANCE_WIDTHS = (0.5, 0.02, 0.01, 0.002), (1.0, 1.5, 1.5, 1.5)  # v, w, t, s
SHARE, SHARE_WIDTH = 0.5, 1.2  # a
LENGTH, LENGTH_WIDTH = 0.8, 0.5  # of an axis from 0 to 1
SHIFT_WIDTH = 0.5  # of the range of the learning rate, over the whole range of another parameter
EXACT, EXACT_WIDTH = 1e-4, 2.0  # t and s of what is nearly a function of the configuration
ROUNDING, JITTER = 1e-10, 1e-6  # of what was seen and of draws, as a part of the largest variance
FIXED = 4  # hyperparameters that are there for any number of parameters
REACH = 3.0  # widths of the priors within which the best hyperparameters are looked for
STEP = 1e-3  # of the differences that give the curvature
FIT = {"maxiter": 80, "ftol": 1e-6}


class Observations(NamedTuple):
    """What a process learns from.

    Attributes:
        places: float64[n, d], coordinates from 0 to 1.
        depth: float64[n], 0 at full fidelity, 1 at the lowest rung.
        trial: int[n].
        value: float64[n].
    """

    places: Floats
    depth: Floats
    trial: NDArray[np.int64]
    value: Floats


class ContrastProcess:
    """The fitted process."""

    def __init__(
        self,
        seen: Observations,
        categorical: NDArray[np.bool_],
        samples: int,
        *,
        tuned: int | None = None,
        exact: bool = False,
    ) -> None:
        """Fit it.

        Args:
            seen: what was measured.
            categorical: bool[d], parameters whose values have no order.
            samples: of the hyperparameters.
            tuned: the parameter whose axis the others shift.
            exact: the value is nearly a function of the configuration, so there is hardly any noise.
        """
        self._seen, self._categorical, self._tuned = seen, categorical, tuned
        self._center, self._scale = float(np.median(seen.value)), float(np.std(seen.value)) or 1.0
        self._y: Floats = (seen.value - self._center) / self._scale
        self._same = (seen.trial[:, None] == seen.trial).astype(float)
        self._both = seen.depth[:, None] * seen.depth
        varies = np.ptp(seen.places, axis=0) > 0
        self._shifting = np.flatnonzero(varies & ~categorical & (np.arange(len(varies)) != tuned))
        if tuned is None:
            self._shifting = self._shifting[:0]
        self._median, self._width = self._prior(exact=exact)
        bounds = list(zip(self._median - REACH * self._width, self._median + REACH * self._width, strict=True))
        found = minimize(self._loss, self._median, jac=True, method="L-BFGS-B", bounds=bounds, options=FIT)
        self._samples = self._around(found.x, samples)
        self._factors = [self._factor(raw) for raw in self._samples]

    def _prior(self, *, exact: bool) -> tuple[Floats, Floats]:
        d, shifts = len(self._categorical), len(self._shifting)
        median = np.log([*VARIANCES, *[SHARE] * d, *[LENGTH] * d])
        width = np.array([*VARIANCE_WIDTHS, *[SHARE_WIDTH] * d, *[LENGTH_WIDTH] * d, *[SHIFT_WIDTH] * shifts])
        if exact:
            median[2:FIXED], width[2:FIXED] = np.log(EXACT), EXACT_WIDTH
        return np.concatenate([median, np.zeros(shifts)]), width

    def _around(self, best: Floats, samples: int) -> list[Floats]:
        """The best hyperparameters and draws from their posterior, by Laplace's approximation."""
        here = self._loss(best)[1]
        curvature = np.array([self._loss(best + step)[1] - here for step in STEP * np.eye(len(best))]) / STEP
        values, vectors = eigh((curvature + curvature.T) / 2 * np.outer(self._width, self._width))
        spread = self._width[:, None] * vectors / np.sqrt(np.maximum(values, 1.0))  # never wider than the prior
        normal = np.random.default_rng(0).standard_normal((samples - 1, len(best)))
        limits = self._median - REACH * self._width, self._median + REACH * self._width
        return [best, *np.clip(best + normal @ spread.T, *limits)]

    def _loss(self, raw: Floats) -> tuple[float, Floats]:
        """Negative logarithm of the posterior of the hyperparameters, and its gradient float64[h]."""
        d = len(self._categorical)
        v, w, t, s = np.exp(raw[:FIXED])
        shares, lengths = _shapes(raw, d)
        places = self._shifted(raw, self._seen.places)
        terms = [
            _term(column, column, categorical=c, length=ell)
            for column, c, ell in zip(places.T, self._categorical, lengths, strict=True)
        ]
        product = np.ones_like(self._same)
        for a, k in zip(shares, terms, strict=True):
            product *= 1 + a * k
        factor = v + w * self._both
        covariance = factor * product + t * self._same
        np.fill_diagonal(covariance, covariance.diagonal() + s)
        lower = _root(covariance, ROUNDING)
        inverse = cho_solve((lower, True), np.eye(len(self._y)), check_finite=False)
        alpha = inverse @ self._y
        z = (raw - self._median) / self._width
        loss = 0.5 * self._y @ alpha + np.log(lower.diagonal()).sum() + 0.5 * z @ z
        outer = 0.5 * (inverse - np.outer(alpha, alpha))  # of which the loss changes by sum(outer * d covariance)
        weighted = outer * product
        gradient = np.zeros_like(raw)
        gradient[:FIXED] = (
            v * weighted.sum(), w * (weighted * self._both).sum(), t * (outer * self._same).sum(), s * np.trace(outer),
        )  # fmt: skip
        weighted *= factor
        for p, (a, k) in enumerate(zip(shares, terms, strict=True)):
            part = weighted * (a / (1 + a * k))
            gradient[FIXED + p] = (part * k).sum()
            if self._categorical[p]:
                continue
            part *= _slope(places[:, p], lengths[p])
            gradient[FIXED + d + p] = part.sum()
            if p == self._tuned:
                apart = places[:, p, None] - places[:, p]
                apart[apart == 0] = np.inf  # the slope is zero there, and its quotient too
                for i, column in enumerate(self._seen.places[:, self._shifting].T):
                    gradient[FIXED + 2 * d + i] = -(part / apart * (column[:, None] - column)).sum()
        return float(loss), gradient + z / self._width

    def _shifted(self, raw: Floats, places: Floats) -> Floats:
        if not len(self._shifting):
            return places
        shifted = places.copy()
        shifted[:, self._tuned] += (places[:, self._shifting] - 0.5) @ raw[-len(self._shifting) :]
        return shifted

    def _covariance(self, raw: Floats, one: Floats, other: Floats) -> Floats:
        """float64[n, m], of the function at full fidelity."""
        shares, lengths = _shapes(raw, len(self._categorical))
        one, other = self._shifted(raw, one), self._shifted(raw, other)
        product = np.full((len(one), len(other)), np.exp(raw[0]))
        for p, (a, ell) in enumerate(zip(shares, lengths, strict=True)):
            product *= 1 + a * _term(one[:, p], other[:, p], categorical=self._categorical[p], length=ell)
        return product

    def _factor(self, raw: Floats) -> Floats:
        """Cholesky factor float64[n, n] of the covariance of what was seen."""
        v, w, t, s = np.exp(raw[:FIXED])
        covariance = self._covariance(raw, self._seen.places, self._seen.places) * (1 + w / v * self._both)
        covariance += t * self._same
        np.fill_diagonal(covariance, covariance.diagonal() + s)
        return _root(covariance, ROUNDING)

    def at_full(self, places: Floats) -> tuple[Floats, Floats]:
        """(mean float64[m], standard deviation float64[m]) at full fidelity, under the best hyperparameters."""
        mean, cross = self._given(0, places)
        shares, _ = _shapes(self._samples[0], len(self._categorical))
        prior = np.exp(self._samples[0][0]) * np.prod(1 + shares)
        variance = np.maximum(prior - (cross * cross).sum(axis=0), 0)
        return mean * self._scale + self._center, np.sqrt(variance) * self._scale

    def draws(self, places: Floats, each: int) -> Floats:
        """float64[samples * each, m]: joint draws at full fidelity of what trainings scatter around."""
        found = []
        for number, raw in enumerate(self._samples):
            mean, cross = self._given(number, places)
            covariance = self._covariance(raw, places, places) - cross.T @ cross
            normal = np.random.default_rng(number).standard_normal((each, len(places)))
            found.append(mean + normal @ _root(covariance, JITTER).T)
        return np.concatenate(found) * self._scale + self._center

    def _given(self, number: int, places: Floats) -> tuple[Floats, Floats]:
        """(mean float64[m], what explains variance float64[n, m]) under one sample of the hyperparameters."""
        lower = self._factors[number]
        known = self._covariance(self._samples[number], self._seen.places, places)
        cross = solve_triangular(lower, known, lower=True, check_finite=False)
        return cross.T @ solve_triangular(lower, self._y, lower=True, check_finite=False), cross


def _shapes(raw: Floats, d: int) -> tuple[Floats, Floats]:
    """(a float64[d], lengths float64[d])."""
    return np.exp(raw[FIXED : FIXED + d]), np.exp(raw[FIXED + d : FIXED + 2 * d])


def _term(one: Floats, other: Floats, *, categorical: bool, length: float) -> Floats:
    """Float64[n, m], k along one parameter; computed for different values only, of which most parameters have few."""
    mine, i = np.unique(one, return_inverse=True)
    theirs, j = np.unique(other, return_inverse=True)
    if categorical:
        k = (mine[:, None] == theirs).astype(float)
    else:
        r = np.sqrt(5) / length * np.abs(mine[:, None] - theirs)
        k = (1 + r + r * r / 3) * np.exp(-r)
    gathered: Floats = k[i].take(j, axis=1)
    return gathered


def _slope(column: Floats, length: float) -> Floats:
    """float64[n, n], the derivative of Matern's k by the logarithm of the length."""
    values, i = np.unique(column, return_inverse=True)
    r = np.sqrt(5) / length * np.abs(values[:, None] - values)
    slope: Floats = (r * r * (1 + r) / 3 * np.exp(-r))[i].take(i, axis=1)
    return slope


def _root(covariance: Floats, jitter: float) -> Floats:
    """Cholesky factor of what is positive within rounding; `jitter` is a part of the largest variance."""
    added = jitter * covariance.diagonal().max()
    while True:
        np.fill_diagonal(covariance, covariance.diagonal() + added)
        try:
            lower: Floats = cholesky(covariance, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            added *= 10
        else:
            return lower
