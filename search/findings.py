"""What a search has shown: matched contrasts with their uncertainty, in words. Pure.

The rule of what is said. An effect is stated where its 95 % interval excludes zero; "no difference worth naming" where
the interval lies within 1 % of perplexity, a point of accuracy or F1, or 0.01 nats of another loss; of everything else
nothing is said. A setting needs three trials, one of them at full fidelity, and contexts that were tried with both
(search/contrasts.py). All trials of a search have one seed, so what another one would change is not in the intervals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lorafront.search.contrasts import LEVEL, RATE, Evidence, Interval, Panel, best_rate, evidence, interval, panel
from lorafront.search.finding_words import TITLES, WORDS, WORTH_NAMING, change, more, pair, scale, size
from lorafront.search.front import values
from lorafront.search.importance import importances
from lorafront.search.known_defaults import CLAIMS, OTHER, RATE_SOURCE, RECOMMENDED, SIXTEEN_BITS, WIDER, Claim
from lorafront.search.study_table import VRAM, StudyTable
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.objectives import OBJECTIVES, Objective
from lorafront.spaces.parameters import count
from lorafront.spaces.quantization import QUANTIZATIONS

LEAST_COST = 0.005  # of what is usual; a smaller difference is not named
LEAST_SHARE = 0.05  # of what can be explained, for a hyperparameter to be named as one that matters
CERTAIN = 0.9  # probability of an edge of the searched learning rates
FAR = 2.0  # factor by which a known learning rate lies outside the interval of the best one
PARAMETERS = "trainable_params"
PROCESS = "process"  # the engine that trains each trial by itself
OTHERS, RATES, SPEED, AGAINST, MATTER = (
    "Other hyperparameters", "Learning rate", "Speed on this machine", "Unlike what is published", "What matters"
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that the trials support.

    Attributes:
        title: under which it stands.
        says: a sentence.
        data: the same for programs.
    """

    title: str
    says: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """One setting instead of another.

    Attributes:
        parameter: as the sampler sees it.
        before, after: its values.
        quality: difference as losses are compared (perplexity in its logarithm); negative is better.
        trials: with each of the two.
        contexts: over which the difference was averaged.
        memory: difference in GiB of peak VRAM; None where it is not known.
        parameters: difference in trainable parameters; None where it is not known.
    """

    parameter: str
    before: Any
    after: Any
    quality: Interval
    trials: tuple[int, int]
    contexts: int
    memory: Interval | None = None
    parameters: Interval | None = None

    @property
    def negligible(self) -> bool:
        """The whole interval is smaller than what is worth naming."""
        return max(-self.quality.low, self.quality.high) < WORTH_NAMING

    @property
    def stated(self) -> bool:
        """There is something to say."""
        return self.negligible or self.quality.certain != 0

    def says(self, quality: Objective) -> str:
        """The settings and what they differ by."""
        return f"{pair(self.parameter, self.before, self.after)}: {change(quality, self.quality)}"


@dataclass(frozen=True)
class Findings:
    """All of a search.

    Attributes:
        quality: the objective of the contrasts.
        about: how to read them.
        found: in the order of their titles.
    """

    quality: Objective
    about: str
    found: tuple[Finding, ...]

    @property
    def titled(self) -> list[tuple[str, list[Finding]]]:
        """By title."""
        return [(title, list(group)) for title, group in itertools.groupby(self.found, key=lambda found: found.title)]


def findings(table: StudyTable) -> Findings:
    """What the trials of a search support.

    Raises:
        InvalidInput: the search measured no quality.
    """
    quality = next((objective for objective in table.search.objective_list if objective.quality), None)
    if quality is None:
        raise InvalidInput("the search has no objective of quality to compare settings by")
    of = evidence(table, quality)
    found: list[Finding] = []
    if of is not None:
        panels = {axis.name: own for axis in of.axes if axis.name != RATE and (own := panel(of, axis.name))}
        costs = _Costs(table)
        for own in panels.values():
            found += [_contrast_finding(contrast, quality) for contrast in _steps(own, costs) if contrast.stated]
        if "rank" in panels:
            found += _returns(panels["rank"], quality)
        found += _rates(table, of, quality)
        found += _speeds(table, panels.get("quantization"))
        found += [
            said for claim in CLAIMS if (own := panels.get(claim.parameter)) for said in _against(claim, own, quality)
        ]
    found += _importance(table, quality)
    order = [*TITLES.values(), OTHERS, RATES, SPEED, AGAINST, MATTER]
    return Findings(quality, _about(of), tuple(sorted(found, key=lambda one: order.index(one.title))))


def _about(of: Evidence | None) -> str:
    if of is None:
        return "too few trials for contrasts"
    absolute = any(axis.name == "alpha" for axis in of.axes)
    rate = "each at its own best learning rate" if of.rate is not None else "at the one learning rate of the search"
    return (
        f"from {len(of.trials)} trials: two settings in the same contexts, {rate} and ranks at the same "
        f"{'alpha' if absolute else 'alpha / rank'}; in brackets {100 * LEVEL:g} % intervals and the trials of each "
        "setting; what another seed would change is not in them"
    )


# ---------------------------------------------------------------- contrasts


class _Costs:
    """What settings cost in memory and parameters, asked once."""

    def __init__(self, table: StudyTable) -> None:
        self._memory = evidence(table, OBJECTIVES[VRAM], lambda value: value, tune=False, exact=True)
        # The number of parameters is a product of the rank and what the modules have: a sum in its logarithm.
        self._parameters = evidence(table, OBJECTIVES[PARAMETERS], math.log, tune=False, exact=True)

    def beside(self, panel: Panel, contrasts: Sequence[Contrast]) -> Iterator[Contrast]:
        """The contrasts with what they cost."""
        memory = panel.measured_by(self._memory) if self._memory else None
        parameters = panel.measured_by(self._parameters, np.exp) if self._parameters else None
        for contrast in contrasts:
            pair = panel.settings.index(contrast.before), panel.settings.index(contrast.after)
            yield replace(contrast, memory=_cost(memory, *pair), parameters=_cost(parameters, *pair))


def _cost(panel: Panel | None, before: int, after: int) -> Interval | None:
    """None where it is not certain, or too small to name."""
    draws = panel.differences((before, after)) if panel is not None else None
    if panel is None or draws is None:
        return None
    found = interval(draws[0])
    return found if found.certain and abs(found.middle) >= LEAST_COST * panel.usual else None


def _steps(panel: Panel, costs: _Costs) -> list[Contrast]:
    """Each setting against the one before it; quantizations against 16 bits, or what is nearest to them."""
    if panel.name == "quantization":
        base = max(
            panel.usable, key=lambda i: (panel.settings[i] in SIXTEEN_BITS, QUANTIZATIONS.index(panel.settings[i]))
        )
        pairs = [(base, i) for i in panel.usable if i != base]
    else:
        pairs = list(itertools.pairwise(panel.usable))
    contrasts = [contrast for pair in pairs if (contrast := _contrast(panel, *pair))]
    return list(costs.beside(panel, contrasts))


def _contrast(panel: Panel, before: int, after: int) -> Contrast | None:
    draws = panel.differences((before, after))
    if draws is None:
        return None
    return Contrast(
        panel.name,
        panel.settings[before],
        panel.settings[after],
        interval(draws[0]),
        (int(panel.trials[before]), int(panel.trials[after])),
        int((panel.tried[before] & panel.tried[after]).sum()),
    )


def _contrast_finding(contrast: Contrast, quality: Objective) -> Finding:
    parts = [contrast.says(quality)]
    parameters, memory = contrast.parameters, contrast.memory
    if parameters is not None:
        parts.append(more(parameters.middle, "trainable parameters"))
        if contrast.parameter == "modules" and parameters.middle > 0 and not contrast.negligible:
            some = 10 ** math.floor(math.log10(parameters.middle))
            parts[-1] += f" ({size(quality, contrast.quality.middle * some / parameters.middle)} per {some:,})"
    if memory is not None:
        parts.append(more(memory.middle, "GiB"))
    says = f"{', '.join(parts)} [{contrast.trials[0]} and {contrast.trials[1]} trials]"
    data = {
        "contrast": contrast.parameter, "before": contrast.before, "after": contrast.after,
        "verdict": "no difference" if contrast.negligible else "better" if contrast.quality.high < 0 else "worse",
        "difference": contrast.quality._asdict(), "scale": scale(quality), "trials": list(contrast.trials),
        "contexts": contrast.contexts, f"{VRAM}_difference": memory and memory._asdict(),
        f"{PARAMETERS}_difference": parameters and parameters._asdict(),
    }  # fmt: skip
    return Finding(TITLES.get(contrast.parameter, OTHERS), says, data)


def _returns(panel: Panel, quality: Objective) -> Iterator[Finding]:
    """Whether returns of rank diminish, and from which rank on there is nothing to gain."""
    steps = list(itertools.pairwise(panel.usable))
    draws = panel.differences(*steps) if len(steps) > 1 else None
    if draws is None:
        return
    ranks = panel.settings
    doublings = [math.log2(ranks[after] / ranks[before]) for before, after in steps]
    first, last = (-draws[k] / doublings[k] for k in (0, -1))
    if (less := interval(first - last)).certain > 0 and interval(first).certain > 0:
        gains = [size(quality, -interval(gain).middle) for gain in (first, last)]
        (a, b), (c, d) = ([ranks[i] for i in step] for step in (steps[0], steps[-1]))
        yield Finding(
            "Rank",
            f"returns diminish: a doubling gained {gains[0]} from {a} to {b} and {gains[1]} from {c} to {d}",
            {"diminishing": True, "difference": less._asdict(), "scale": scale(quality)},
        )
    for start in range(len(steps) - 1):
        rest = interval(draws[start:].sum(axis=0))
        if rest.low > -WORTH_NAMING:
            rank, largest = ranks[steps[start][0]], ranks[panel.usable[-1]]
            yield Finding(
                "Rank",
                f"from rank {rank} on there is little to gain: up to rank {largest} {size(quality, rest.low)} at most",
                {"enough": rank, "largest": largest, "difference": rest._asdict(), "scale": scale(quality)},
            )
            return


# ---------------------------------------------------------------- learning rate, speed, known defaults


def _rates(table: StudyTable, of: Evidence, quality: Objective) -> Iterator[Finding]:
    """Whether the best learning rate lies at an edge of what was searched, or far from the recommended default."""
    sign = -1 if quality.direction == "maximize" else 1
    complete = [trial for trial in table.complete if math.isfinite(values(trial, [quality])[0])]
    if not complete or of.rate is None:
        return
    best = min(complete, key=lambda trial: sign * values(trial, [quality])[0])
    found = best_rate(of, best.number)
    low, high = min(of.axes[of.rate].grid), max(of.axes[of.rate].grid)
    data = {"trial": best.number, **asdict(found)}
    for edge, chance, bound in (("lower", found.at_lowest, low), ("upper", found.at_highest, high)):
        if chance >= CERTAIN:
            yield Finding(
                RATES,
                f"at the best configuration (trial {best.number}) the best learning rate is the {edge} end of what was "
                f"searched, {bound:.3g}; search beyond it",
                {"edge": edge, **data},
            )
    known = RECOMMENDED.point[RATE]
    if not found.low / FAR <= known <= found.high * FAR:
        within = f"{found.low:.2g}" + (f" to {found.high:.2g}" if found.high > found.low else "")
        yield Finding(
            AGAINST,
            f"a learning rate of {known:g} ({RATE_SOURCE}): here the best is {within} at the configuration of trial "
            f"{best.number}",
            {"claim": RATE, **data},
        )


def _speeds(table: StudyTable, panel: Panel | None) -> Iterator[Finding]:
    """The order of quantizations by speed, where trials were measured alone, each in a process of its own."""
    timed = any(objective.alone for objective in table.search.objective_list)
    own = [trial for trial in table.trials if trial.measurements.get("engine") == PROCESS]
    if panel is None or not timed:
        return
    alone = replace(table, trials=tuple(own), imported=())
    of = evidence(alone, OBJECTIVES["tokens_per_second"], lambda value: -math.log(-value), tune=False)
    if of is None:
        return
    times = panel.measured_by(of)
    fastest = panel.usable[0]
    for i in panel.usable[1:]:
        draws = times.differences((fastest, i))
        fastest = i if draws is not None and interval(draws[0]).middle < 0 else fastest
    slower = {
        i: interval(draws[0])
        for i in panel.usable
        if i != fastest and (draws := times.differences((fastest, i))) is not None
    }
    sure = sorted((time.middle, i) for i, time in slower.items() if time.certain > 0)
    if sure:
        said = [
            f"{panel.settings[i]} takes {math.exp(slower[i].middle):.2f} times as long "
            f"({math.exp(slower[i].low):.2f} to {math.exp(slower[i].high):.2f})"
            for _, i in sure
        ]
        yield Finding(
            SPEED,
            f"{panel.settings[fastest]} trains fastest; {', '.join(said)}",
            {
                "fastest": panel.settings[fastest],
                "times": {panel.settings[i]: {k: math.exp(v) for k, v in slower[i]._asdict().items()} for _, i in sure},
            },
        )


def _against(claim: Claim, panel: Panel, quality: Objective) -> Iterator[Finding]:
    """Where the trials clearly say something else than what is published."""
    before = next((i for i in panel.usable if panel.settings[i] in claim.before), None)
    if before is None:
        return
    if claim.after == WIDER:
        after = [i for i in panel.usable[-1:] if panel.settings[i] > panel.settings[before]]
    else:
        after = [i for i in panel.usable if i != before and (claim.after == OTHER or panel.settings[i] in claim.after)]
    for i in after:
        contrast = _contrast(panel, before, i)
        if contrast is not None and contradicted(claim, contrast.quality):
            yield Finding(
                AGAINST,
                f"{claim.says} ({claim.source}): here {contrast.says(quality)} "
                f"[{contrast.trials[0]} and {contrast.trials[1]} trials]",
                {
                    "claim": claim.says, "source": claim.source, "contrast": claim.parameter,
                    "before": contrast.before, "after": contrast.after, "difference": contrast.quality._asdict(),
                    "scale": scale(quality), "trials": list(contrast.trials),
                },
            )  # fmt: skip


def contradicted(claim: Claim, found: Interval) -> bool:
    """The whole interval lies on the other side of what is worth naming."""
    if claim.expects == "better":
        return found.low > -WORTH_NAMING
    return found.high < -WORTH_NAMING if claim.expects == "not better" else found.low > WORTH_NAMING


def _importance(table: StudyTable, quality: Objective) -> Iterator[Finding]:
    """Of the hyperparameters that are searched; alpha, where it is searched as a multiple, would stand for the rank."""
    searched = {name for name, value in table.search.space.parameters().items() if count(value) != 1}
    found = {name: share for name, share in importances(table).get(quality.label, {}).items() if name in searched}
    whole = sum(found.values()) or 1.0
    largest = sorted(
        ((share / whole, name) for name, share in found.items() if share > LEAST_SHARE * whole), reverse=True
    )
    if largest:
        said = ", ".join(f"{WORDS.get(name, name)} {100 * share:.0f} %" for share, name in largest)
        yield Finding(
            MATTER,
            f"{said} of what separates the best trials by {quality.label} from the others (PED-ANOVA; of the trials as "
            "they were chosen, so a hint and no effect)",
            {"importance": {name: share for share, name in largest}},
        )


def as_json(found: Findings) -> dict[str, Any]:
    """As `findings --json` prints it."""
    return {
        "objective": found.quality.name,
        "about": found.about,
        "findings": [{"title": one.title, "says": one.says, **one.data} for one in found.found],
    }
