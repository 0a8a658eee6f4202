"""Configurations with replicates: what is known of each, who is on the front, and who makes whom needless. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from lorafront.search.front import axes_of, values
from lorafront.search.replicates import RATIOS, Fit, beaten, fit, natural, scaled
from lorafront.search.study_table import VRAM, StudyTable, TrialRecord
from lorafront.spaces.objectives import Objective, feasible
from lorafront.trainables.data import SEARCHED, seeded_generator

LEAST = 0.05  # probability of being on the front below which a configuration is beaten
DRAWS, DRAWS_NEAR = 2000, 400
TRIFLE_GIB, TRIFLE = 0.1, 0.02  # of memory: nobody chooses by less than 0.1 GiB, on tiny models by less than 2 %

Role = Literal["front", "near the front", "baseline", "compared"]


@dataclass(frozen=True)
class Replicated:
    """A configuration of a search and what its replicates measured.

    Attributes:
        trial: of the search.
        role: whether it was on the search's front; the user's recipe may have been, and is trained again in any case;
            what the search is compared with is no trial of it.
        results: complete replicates, by seed.
        lost: seeds with which it diverged or failed.
        running: seeds that have not ended.
    """

    trial: TrialRecord
    role: Role
    results: Mapping[int, TrialRecord] = field(default_factory=dict)
    lost: frozenset[int] = frozenset()
    running: frozenset[int] = frozenset()

    @property
    def tried(self) -> frozenset[int]:
        """Seeds that it needs no more."""
        return self.lost | self.running | self.results.keys()


def of_trial(trial: TrialRecord, role: Role, replicates: Iterable[TrialRecord], table: StudyTable) -> Replicated:
    """A configuration with its replicates, by how they ended."""
    by_seed = {one.lora.seed or 0: one for one in replicates}
    return Replicated(
        trial,
        role,
        {seed: one for seed, one in by_seed.items() if _complete(one, table)},
        frozenset(seed for seed, one in by_seed.items() if one.outcome is not None and not _complete(one, table)),
        frozenset(seed for seed, one in by_seed.items() if one.outcome is None),
    )


@dataclass(frozen=True)
class Confirmed:
    """What is known of one configuration.

    Attributes:
        trial: of the search.
        role: as in `Replicated`.
        seeds: complete replicates.
        lost: replicates that diverged or failed.
        values: by objective, the mean over the seeds of all (of perplexities the geometric one): a seed that is bad for
            everybody does not count against those that alone had it.
        intervals: by objective, the interval of that mean at 95 %.
        peak: largest measured peak VRAM in GiB; None where no replicate measured it.
        probability: that it is on the front.
        covers: trials that it makes needless: nowhere better than it by more than noise or a trifle.
        to_baseline: how much larger its quality is than that of the user's recipe at the same seeds, on the scale of
            the objective, and half the width of the interval; None where there is no such recipe, or this is it.
    """

    trial: TrialRecord
    role: Role
    seeds: int
    lost: int
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    peak: float | None
    probability: float
    covers: tuple[int, ...] = ()
    to_baseline: tuple[float, float] | None = None


@dataclass(frozen=True)
class Bias:
    """By how much the search's estimates of its front were too good, on the scale of the objective.

    Attributes:
        total: replicates less estimates, mean over the front; positive is worse than estimated.
        rows: of that, what other rows make of the same models; None where that was not measured.
    """

    total: float
    rows: float | None

    @property
    def luck(self) -> float | None:
        """The rest: the seed that was the best of its trial's."""
        return None if self.rows is None else self.total - self.rows


class Judged:
    """Configurations with replicates, each objective fitted."""

    def __init__(self, table: StudyTable, members: Sequence[Replicated], *, longer: bool = False) -> None:
        self.table = table
        self.longer = longer
        self.members = members
        self.objectives = table.search.objective_list
        self.fits: dict[str, Fit] = {
            o.name: fit({m.trial.number: _seen(m, o) for m in members}) for o in self.objectives
        }

    def memberships(self) -> dict[int, float]:
        """Probability of being on the front, by number."""
        drawn, able = self._drawn(DRAWS)
        kept = able & ~beaten(drawn, drawn, able)
        return dict(zip((m.trial.number for m in self.members), kept.mean(axis=0).tolist(), strict=True))

    def rivals(self, there: Sequence[Replicated]) -> list[TrialRecord]:
        """Trials of the search that could be on the front, the likeliest first; at most as many as it has members.

        One run says where a trial may lie: as far from its estimate as seeds scatter, and as much worse on the rows
        that the search never saw as the front's own members are.
        """
        taken = {member.trial.number for member in there}
        drawn, able = self._drawn(DRAWS_NEAR)
        found = []
        for trial in self.table.complete:
            if trial.number in taken or not feasible(self.table.search.limits, trial.measurements):
                continue
            point = self._as_it_may_be(trial)
            share = float((~beaten(point, drawn, able)).mean()) if np.isfinite(point).all() else 0.0
            if share > LEAST:
                found.append((share, trial))
        most = sum(member.role == "front" for member in there)
        found.sort(key=lambda one: (-one[0], one[1].number))
        return [trial for _, trial in found[:most]]

    def confirmed(self, member: Replicated, share: float) -> Confirmed:
        """With its means and their intervals."""
        place = self.members.index(member)
        means, intervals = {}, {}
        for objective in self.objectives:
            known = self.fits[objective.name]
            mean, half = float(known.levels[place]), float(known.half_widths[place])
            means[objective.name] = natural(mean, objective)
            ends = [natural(end, objective) if math.isfinite(end) else end for end in (mean - half, mean + half)]
            intervals[objective.name] = (ends[0], ends[1])
        peaks = [trial.measurements.get(VRAM) for trial in member.results.values()]
        measured = [float(peak) for peak in peaks if isinstance(peak, (int, float))]
        seeds, lost, peak = len(member.results), len(member.lost), max(measured, default=None)
        found = Confirmed(member.trial, member.role, seeds, lost, means, intervals, peak, share)
        own = next((one.trial.number for one in self.members if one.role == "baseline"), None)
        if own is None or own == member.trial.number:
            return found
        quality = axes_of(self.objectives)[1]
        return replace(found, to_baseline=self.fits[quality.name].difference(member.trial.number, own))

    def covers(self, one: int, other: int) -> bool:
        """True where trial `other` is nowhere better than `one` by more than noise or a trifle."""
        for objective in self.objectives:
            known = self.fits[objective.name]
            worse, half = known.difference(one, other)
            worse = -worse if objective.direction == "maximize" else worse
            noise = half if math.isfinite(half) else 0.0  # where nothing is known of it, nothing is within it
            if worse > (noise if objective.quality else self._trifle(objective, one, other)):
                return False
        return True

    def bias(self, quality: Objective) -> Bias:
        """Of the members of the search's front."""
        members = [member for member in self.members if member.role == "front"] or list(self.members)
        known = dict(zip(self.fits[quality.name].numbers, self.fits[quality.name].levels, strict=True))
        sign = -1 if quality.direction == "maximize" else 1
        gaps = [sign * (known[m.trial.number] - scaled(values(m.trial, [quality])[0], quality)) for m in members]
        rows = self._other_rows(members) if quality.name == "perplexity" else None
        return Bias(float(np.mean(gaps)), rows)

    def _other_rows(self, members: Iterable[Replicated]) -> float | None:
        """How much larger the loss of the same models is on the rows that the search never saw."""
        measured = [trial.measurements for member in members for trial in member.results.values()]
        gaps = [
            one["eval_loss"] - one[f"eval_{SEARCHED}_loss"]
            for one in measured
            if all(isinstance(one.get(name), (int, float)) for name in ("eval_loss", f"eval_{SEARCHED}_loss"))
        ]
        return float(np.mean(gaps)) if gaps else None

    def _drawn(self, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """(float64[draws, m, k] to be minimized, bool[draws, m] whether the limits are kept)."""
        generator = seeded_generator(self.table.search.seed, "confirmation")
        drawn = {o.name: self.fits[o.name].draw(generator, draws) for o in self.objectives}
        signs = [-1.0 if o.direction == "maximize" else 1.0 for o in self.objectives]
        points = np.stack([sign * drawn[o.name] for sign, o in zip(signs, self.objectives, strict=True)], axis=-1)
        able = np.ones(points.shape[:2], dtype=bool)
        by_name = {o.name: o for o in self.objectives}
        for limit in self.table.search.limits:
            objective = by_name.get(limit.name)
            if objective is not None:
                bound = scaled(limit.bound, objective) if limit.bound > 0 else limit.bound
                held = drawn[limit.name] <= bound if limit.operator == "<=" else drawn[limit.name] >= bound
            else:
                held = np.array([_keeps(member, limit.name, limit.holds) for member in self.members])
            able &= held
        return points, able

    def _as_it_may_be(self, trial: TrialRecord) -> np.ndarray:
        """float64[draws, 1, k]: a trial that has no replicate, to be minimized."""
        generator = seeded_generator(self.table.search.seed, "rival", trial.number)
        columns = []
        for objective in self.objectives:
            known = self.fits[objective.name]
            shift = self._shift(objective)
            value = scaled(values(trial, [objective])[0], objective) + shift
            scatter = known.spread * generator.standard_t(known.freedom, DRAWS_NEAR) if known.freedom else 0.0
            sign = -1.0 if objective.direction == "maximize" else 1.0
            columns.append(sign * (value + scatter + np.zeros(DRAWS_NEAR)))
        return np.stack(columns, axis=-1)[:, None, :]

    def _shift(self, objective: Objective) -> float:
        """How far replicates lie from estimates for another reason than luck, as far as that can be told."""
        rows = self._other_rows(self.members) if objective.name == "perplexity" and not self.longer else None
        if rows is not None:
            return rows
        known = self.fits[objective.name]
        own = [scaled(values(member.trial, [objective])[0], objective) for member in self.members]
        return float(np.mean(known.levels - np.array(own)))

    def _trifle(self, objective: Objective, one: int, other: int) -> float:
        """What nobody chooses by, on the scale of an objective of cost."""
        known = self.fits[objective.name]
        least = min(abs(natural(float(known.levels[known.numbers.index(n)]), objective)) for n in (one, other))
        if objective.name in RATIOS:
            return math.log1p(TRIFLE)
        return min(TRIFLE_GIB, TRIFLE * least) if objective.name == VRAM else TRIFLE * least


def _seen(member: Replicated, objective: Objective) -> dict[int, float]:
    return {seed: scaled(values(trial, [objective])[0], objective) for seed, trial in member.results.items()}


def _complete(trial: TrialRecord, table: StudyTable) -> bool:
    """True where it has every objective."""
    return trial.state == "COMPLETE" and all(math.isfinite(v) for v in values(trial, table.search.objective_list))


def _keeps(member: Replicated, name: str, holds: Callable[[object], bool]) -> bool:
    """Whether its replicates keep a limit on what is no objective, each of them."""
    return all(holds(trial.measurements.get(name)) for trial in member.results.values())
