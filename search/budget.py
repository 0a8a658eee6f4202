"""Budgets: what a search has spent, which limit that reaches, and how a budget grows. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from lorafront.search.search_file import Budget
from lorafront.spaces.errors import InvalidInput

HOUR = 3600.0
LIMITS = ("trials", "gpu_hours", "hours")
TIMES = ("gpu_hours", "hours")


@dataclass(frozen=True)
class Spent:
    """What counts against a budget.

    Attributes:
        trials: recorded ones, failed ones included.
        seconds: that drivers have lived, all together.
        gpu_seconds: of attempts at trials, each times its share of a GPU; without a GPU, seconds of workers.
    """

    trials: int
    seconds: float = 0.0
    gpu_seconds: float = 0.0

    def of(self, limit: str) -> float:
        """How much of a limit, in its own unit."""
        return {"trials": float(self.trials), "gpu_hours": self.gpu_seconds / HOUR, "hours": self.seconds / HOUR}[limit]


def limit_reached(budget: Budget, spent: Spent, limits: Collection[str] = LIMITS) -> str:
    """The first of the limits that is spent, in words such as `gpu_hours (2 of 2)`; empty where none is."""
    for name in limits:
        limit = getattr(budget, name)
        if limit is not None and spent.of(name) >= limit:
            return f"{name} ({spent.of(name):{_digits(name)}} of {limit:g})"
    return ""


def shown(budget: Budget, spent: Spent) -> str:
    """`5 of 64 trials recorded, 1.2 of 8 hours`: every limit that there is."""
    labels = {"trials": "trials recorded", "gpu_hours": "GPU hours", "hours": "hours"}
    limits = [(name, label, getattr(budget, name)) for name, label in labels.items()]
    return ", ".join(
        f"{spent.of(name):{_digits(name)}} of {limit:g} {label}" for name, label, limit in limits if limit is not None
    )


def _digits(limit: str) -> str:
    return ".0f" if limit == "trials" else ".3g"


def extended(budget: Budget, more: Mapping[str, float], spent: Spent) -> Budget:
    """The budget with so much more of some of its limits.

    Args:
        budget: as it is.
        more: by limit, what is added; positive.
        spent: so far. A search that ended at a limit goes on only if that limit grows.

    Raises:
        InvalidInput: nothing is added, a limit is not there, it grows too large, or another one is spent.
    """
    if not more:
        raise InvalidInput("say how much more: --trials, --gpu-hours or --hours")
    for name, value in more.items():
        if getattr(budget, name) is None:
            raise InvalidInput(f"budget.{name} has no limit, so there is nothing to extend")
        if value <= 0:
            raise InvalidInput(f"budget.{name} can only grow (got {value:g} more)")
    try:
        grown = Budget.model_validate(
            {**budget.model_dump(), **{name: getattr(budget, name) + value for name, value in more.items()}}
        )
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]
        raise InvalidInput(f"budget.{reason['loc'][0]}: {reason['msg']} (got {reason['input']})") from error
    still = limit_reached(grown, spent)
    if still:
        raise InvalidInput(f"budget.{still} would still be spent; extend that as well")
    return grown


@dataclass
class Meter:
    """Adds up share times seconds of what runs.

    Attributes:
        total: of what has ended.
    """

    total: float = 0.0
    _running: dict[int, tuple[float, float]] = field(default_factory=dict)

    def began(self, number: int, share: float, now: float) -> None:
        """An attempt at a trial began; an earlier one that still runs ended just now."""
        self.ended(number, now)
        self._running[number] = (share, now)

    def ended(self, number: int, now: float) -> None:
        """An attempt ended; nothing where none runs."""
        share, since = self._running.pop(number, (0.0, now))
        self.total += share * (now - since)

    def spent(self, now: float) -> float:
        """All so far, what runs included."""
        return self.total + sum(share * (now - since) for share, since in self._running.values())
