"""Who proposes configurations, by name: each is an `optuna.samplers.BaseSampler`.

mfgp    one Gaussian process over configuration and rows seen, fitted on every rung (search/mfgp.py)
tpe     Optuna's tree-structured Parzen estimator
gp      Optuna's Gaussian process with expected hypervolume improvement
nsga2   Optuna's evolutionary sampler
random  uniform draws
grid    every configuration of a discrete space, in order
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from lorafront.spaces.parameters import count, stepped

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from lorafront.search.search_file import SearchFile

NUMBER = "number"  # attribute in the sampler's view: the trial's number in the study; refused proposals have none


def make_sampler(search: SearchFile, asked: int = 0) -> BaseSampler:
    """The sampler that the search names.

    Args:
        search: names it, and its seed.
        asked: how often a sampler was asked already; a resumed search must not repeat its draws.
    """
    seed = search.seed + asked
    makers: dict[str, Callable[[], BaseSampler]] = {
        "mfgp": lambda: _mfgp(search, seed),
        "tpe": lambda: TPESampler(seed=seed),
        "gp": lambda: GPSampler(seed=seed),
        "nsga2": lambda: NSGAIISampler(seed=seed),
        "random": lambda: RandomSampler(seed=seed),
        "grid": lambda: InOrder({name: count(value) or 1 for name, value in search.space.parameters().items()}, asked),
    }
    return makers[search.sampler]()


def _mfgp(search: SearchFile, seed: int) -> BaseSampler:
    from lorafront.search.mfgp import MultiFidelityGP  # imports torch, which only this one needs

    return MultiFidelityGP(search, seed)


class OneByOne(BaseSampler):
    """A sampler that answers for each parameter by itself, in `sample_independent`."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: no parameters are sampled together."""
        del study, trial
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None."""
        del study, trial, search_space
        return {}


class InOrder(OneByOne):
    """Counts through the space, the last parameter fastest. After the last configuration it starts over."""

    def __init__(self, sizes: dict[str, int], start: int = 0) -> None:
        """Args: sizes: choices of each parameter, in order. start: configurations that are behind us."""
        self._strides = {}
        stride = math.prod(sizes.values())
        for name, size in sizes.items():
            stride //= size
            self._strides[name] = stride
        self._next = start - 1

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Move on, unless the configuration was given from outside."""
        del study
        self._next += "fixed_params" not in trial.system_attrs

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The digit of the count that belongs to the parameter."""
        del study, trial
        digit = self._next // self._strides[param_name]
        choices = getattr(param_distribution, "choices", None)
        if choices is not None:
            return choices[digit % len(choices)]
        low, high, step = param_distribution.low, param_distribution.high, param_distribution.step  # type: ignore[attr-defined]
        return stepped(low, digit % (math.floor((high - low) / step + 1e-9) + 1), step)
