"""The methods that a replay compares: ours by sampler and early stopping, and what else there is.

Peers are the objects that their users would run (Ray's OptunaSearch and ASHA, Syne Tune's MOASHA), called as Ray Tune
or Syne Tune calls them. Where a peer is a sampler of Optuna, it runs in our searcher, which spares it repeated
configurations. All start with the same configurations.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from trial_table import TrialTable

from lorafront.search.progress import Silent
from lorafront.search.ray_trainable import JOIN, REPORTS
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.start_points import Start
from lorafront.search.study_table import StudyTable
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.objectives import broken_limit
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

if TYPE_CHECKING:
    from replay import Player

VRAM, QUALITY = "peak_vram_gb", "perplexity"


@dataclass(frozen=True)
class Arena:
    """What every method is given.

    Attributes:
        table: the trials.
        start: rows that are trained first.
        seed: of the method.
        limit_gb: what a trial may need at most, GiB.
    """

    table: TrialTable
    start: tuple[int, ...]
    seed: int
    limit_gb: float = math.inf


# ---------------------------------------------------------------- ours


class LorafrontPlayer:
    """Our searcher with a study in memory."""

    def __init__(self, arena: Arena, sampler: str, early_stopping: str) -> None:
        from lorafront.search.optuna_searcher import OptunaSearcher, Workplace
        from lorafront.search.run import make_rule
        from lorafront.search.study import StudyLedger

        self.table = arena.table
        self._numbers: dict[str, int] = {}
        search = _search(arena, sampler, early_stopping)

        def breaks(lora: LoraConfiguration) -> str:
            """Peak memory, as prediction knows it before a trial runs."""
            return broken_limit(search.limits, {VRAM: float(self.table.peak_vram_gb[self.table.row_of(lora)])})

        ledger = StudyLedger(None, search, create=True, breaks=breaks)
        ledger.keep_starts([Start("", arena.table.params(row), own=True) for row in arena.start])
        self.searcher = OptunaSearcher(
            ledger,
            Workplace(lambda number, lora, *_: {"number": number, "row": self.table.row_of(lora)}),
            Silent(),
            unfinished=[],
            rule=make_rule(ledger, StudyTable(search, (), {}, ())),
        )

    def suggest(self, trial_id: str) -> int | None:
        """See `Player`."""
        config = self.searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return None
        (told,) = config[JOIN]
        self._numbers[trial_id] = told["number"]
        return int(told["row"])

    def judge(self, trial_id: str, report: Report) -> bool:
        """See `Player`."""
        return bool(self.searcher.note(trial_id, self._said(trial_id, report)))

    def complete(self, trial_id: str, report: Report) -> None:
        """See `Player`."""
        if report.outcome is not Outcome.STOPPED:  # that was told when it was judged
            self.searcher.note(trial_id, self._said(trial_id, report))
        self.searcher.on_trial_complete(trial_id)

    def _said(self, trial_id: str, report: Report) -> dict[str, str]:
        """What a worker of ours sends to Ray Tune."""
        return {REPORTS: json.dumps({self._numbers[trial_id]: report.as_json()})}


def _search(arena: Arena, sampler: str, early_stopping: str) -> SearchFile:
    changes: dict[str, Any] = {
        "sampler": sampler,
        "early_stopping": early_stopping,
        "seed": arena.seed,
        "budget": {"trials": len(arena.table)},
    }
    if math.isfinite(arena.limit_gb):
        changes["constraints"] = {VRAM: f"<= {arena.limit_gb!r}"}
    return parse_search({**arena.table.search.model_dump(mode="json"), **changes})


# ---------------------------------------------------------------- rows in an order of their own, and rules that stop


class Rule(Protocol):
    """Early stopping alone."""

    def started(self, trial_id: str, row: int) -> None:
        """A trial begins."""

    def stops(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True where the trial should end at this rung."""

    def ended(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial ended; an empty result means that it failed."""


class NeverStop:
    """Every trial goes to the end."""

    def started(self, trial_id: str, row: int) -> None:
        """Nothing."""

    def stops(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002  # whatever it is
        """Never."""
        return False

    def ended(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing."""


class RayAsha:
    """Ray Tune's ASHA on the quality alone."""

    def __init__(self, rungs: Sequence[int], reduction: int) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self._asha = AsyncHyperBandScheduler(
            time_attr="rows", metric=QUALITY, mode="min", max_t=rungs[-1], grace_period=rungs[0],
            reduction_factor=reduction,
        )  # fmt: skip

    def started(self, trial_id: str, row: int) -> None:  # noqa: ARG002  # only the result counts
        """Add it."""
        self._asha.on_trial_add(None, SimpleNamespace(trial_id=trial_id))

    def stops(self, trial_id: str, result: dict[str, Any]) -> bool:
        """What ASHA says."""
        return bool(self._asha.on_trial_result(None, SimpleNamespace(trial_id=trial_id), result) == "STOP")

    def ended(self, trial_id: str, result: dict[str, Any]) -> None:
        """ASHA counts the last result too."""
        trial = SimpleNamespace(trial_id=trial_id)
        if result:
            self._asha.on_trial_complete(None, trial, result)
        else:
            self._asha.on_trial_remove(None, trial)


class SyneTuneMoAsha:
    """Syne Tune's MO-ASHA: non-dominated sorting at each rung. Its own searcher draws at random, with repeats.

    In version 0.16 its priority returns the order of the trials (which index comes first) where the scheduler reads the
    rank of each, so it stops members of the front; `mended` turns the one into the other.
    """

    def __init__(self, rungs: Sequence[int], reduction: int, *, mended: bool = False) -> None:
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        shipped = MOASHA(
            {}, [QUALITY, VRAM], time_attr="rows", max_t=rungs[-1], grace_period=rungs[0], reduction_factor=reduction
        )
        if mended:
            for bracket in shipped.brackets:
                order = bracket.priority
                bracket.priority = lambda objectives, order=order: np.argsort(order(objectives))
        self._moasha = shipped

    def started(self, trial_id: str, row: int) -> None:  # noqa: ARG002  # only the result counts
        """Add it."""
        self._moasha.on_trial_add(SimpleNamespace(trial_id=trial_id))

    def stops(self, trial_id: str, result: dict[str, Any]) -> bool:
        """What MO-ASHA says."""
        return bool(self._moasha.on_trial_result(SimpleNamespace(trial_id=trial_id), result) == "STOP")

    def ended(self, trial_id: str, result: dict[str, Any]) -> None:
        """MO-ASHA counts the last result too."""
        trial = SimpleNamespace(trial_id=trial_id)
        if result:
            self._moasha.on_trial_complete(trial, result)
        else:
            self._moasha.on_trial_remove(trial)


class RapidFireRule:
    """Stop what more than half of the live trials dominate, each by its loss at the same rung.

    A live trial that has not come so far has no say.
    """

    def __init__(self) -> None:
        self._live: dict[str, dict[int, tuple[float, float]]] = {}

    def started(self, trial_id: str, row: int) -> None:  # noqa: ARG002  # only the result counts
        """It is live."""
        self._live[trial_id] = {}

    def stops(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Count who dominates it."""
        rows, own = result["rows"], (result[QUALITY], result[VRAM])
        self._live[trial_id][rows] = own
        others = [seen[rows] for other, seen in self._live.items() if other != trial_id and rows in seen]
        dominating = sum(_dominates(other, own) for other in others)
        return dominating > (len(self._live) - 1) / 2

    def ended(self, trial_id: str, result: dict[str, Any]) -> None:  # noqa: ARG002  # only the result counts
        """It is live no more."""
        self._live.pop(trial_id, None)


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


class ListPlayer:
    """Trains rows in a given order, under a rule."""

    def __init__(self, rows: Sequence[int], rule: Rule) -> None:
        self._rows = iter(rows)
        self._rule = rule

    def suggest(self, trial_id: str) -> int | None:
        """See `Player`."""
        row = next(self._rows, None)
        if row is not None:
            self._rule.started(trial_id, row)
        return row

    def judge(self, trial_id: str, report: Report) -> bool:
        """See `Player`."""
        return self._rule.stops(trial_id, _flat(report))

    def complete(self, trial_id: str, report: Report) -> None:
        """See `Player`."""
        self._rule.ended(trial_id, _flat(report) if report.measurements else {})


def _flat(report: Report) -> dict[str, Any]:
    return {**report.measurements, "rows": report.rows}


def _start_first(arena: Arena, rows: Sequence[int]) -> list[int]:
    return [*arena.start, *(row for row in rows if row not in arena.start)]


def _shuffled(arena: Arena) -> list[int]:
    rows = list(range(len(arena.table)))
    random.Random(arena.seed).shuffle(rows)  # noqa: S311  # no secret
    return _start_first(arena, rows)


# ---------------------------------------------------------------- Ray's own OptunaSearch


class OptunaSearchPlayer:
    """Ray Tune's searcher on both objectives, as its documentation shows it, with a rule beside it."""

    def __init__(self, arena: Arena, rule: Rule) -> None:
        import optuna
        from optuna.distributions import CategoricalDistribution
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.table = arena.table
        self._rule = rule
        self._rows = {tuple(arena.table.params(row).items()): row for row in range(len(arena.table))}
        self._names = list(arena.table.choices)
        self._searcher = OptunaSearch(
            {name: CategoricalDistribution(choices) for name, choices in arena.table.choices.items()},
            metric=[QUALITY, VRAM],
            mode=["min", "min"],
            points_to_evaluate=[arena.table.params(row) for row in arena.start],
            seed=arena.seed,
        )

    def suggest(self, trial_id: str) -> int | None:
        """See `Player`."""
        config = self._searcher.suggest(trial_id)
        row = self._rows[tuple((name, config[name]) for name in self._names)]
        self._rule.started(trial_id, row)
        return row

    def judge(self, trial_id: str, report: Report) -> bool:
        """See `Player`."""
        if self._rule.stops(trial_id, _flat(report)):
            return True
        self._searcher.on_trial_result(trial_id, _flat(report))
        return False

    def complete(self, trial_id: str, report: Report) -> None:
        """See `Player`. Ray Tune hands on the last result whatever the end was, nothing where there is none."""
        result = _flat(report) if report.measurements else {}
        self._rule.ended(trial_id, result)
        self._searcher.on_trial_complete(trial_id, result or None, error=not result)


# ---------------------------------------------------------------- by name

MakePlayer = Callable[[Arena], "Player"]

RAY_REDUCTION, SYNE_TUNE_REDUCTION = 4, 3  # their defaults; 2 is the step of the rungs

PEERS: dict[str, MakePlayer] = {
    "grid": lambda arena: ListPlayer(_start_first(arena, range(len(arena.table))), NeverStop()),
    "random": lambda arena: ListPlayer(_shuffled(arena), NeverStop()),
    "optunasearch": lambda arena: OptunaSearchPlayer(arena, NeverStop()),
    "optunasearch+asha": lambda arena: OptunaSearchPlayer(arena, RayAsha(arena.table.rungs, RAY_REDUCTION)),
    "optunasearch+asha2": lambda arena: OptunaSearchPlayer(arena, RayAsha(arena.table.rungs, 2)),
    "asha": lambda arena: ListPlayer(_shuffled(arena), RayAsha(arena.table.rungs, RAY_REDUCTION)),
    "asha2": lambda arena: ListPlayer(_shuffled(arena), RayAsha(arena.table.rungs, 2)),
    "moasha": lambda arena: ListPlayer(_shuffled(arena), SyneTuneMoAsha(arena.table.rungs, SYNE_TUNE_REDUCTION)),
    "moasha-mended": lambda arena: ListPlayer(
        _shuffled(arena), SyneTuneMoAsha(arena.table.rungs, SYNE_TUNE_REDUCTION, mended=True)
    ),
    "moasha2-mended": lambda arena: ListPlayer(_shuffled(arena), SyneTuneMoAsha(arena.table.rungs, 2, mended=True)),
    "rapidfire": lambda arena: ListPlayer(_shuffled(arena), RapidFireRule()),
    "nsga2": lambda arena: LorafrontPlayer(arena, "nsga2", "off"),
    "gp": lambda arena: LorafrontPlayer(arena, "gp", "off"),
}


# `pip install --no-deps syne-tune` is enough
NEEDS = {"moasha": "syne_tune", "moasha-mended": "syne_tune", "moasha2-mended": "syne_tune"}


def make_player(name: str, arena: Arena) -> Player:
    """A method by name; ours are `SAMPLER/EARLY_STOPPING`, such as `tpe/off`.

    Raises:
        ValueError: there is none of that name.
    """
    if name in PEERS:
        return PEERS[name](arena)
    sampler, slash, early_stopping = name.partition("/")
    if not slash:
        raise ValueError(f"no method {name!r}; there are {', '.join(PEERS)}, and SAMPLER/EARLY_STOPPING for ours")
    return LorafrontPlayer(arena, sampler, early_stopping)
