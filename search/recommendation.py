"""One configuration of a front: which, why, and what its neighbours cost or lose. Pure.

Quality is the search's first objective of what the model learnt; cost is what a process needs on a GPU of its own: the
peak of its tensors and the context. A trial of a finished search was trained once, so a choice between two that differ
by less than their noise is a choice by cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lorafront.search.confirmation import Confirmation
from lorafront.search.confirmation_report import how_sure
from lorafront.search.front import front_of, values
from lorafront.search.gpu_memory import CONTEXT, OVER, TIERS
from lorafront.search.study_table import VRAM, StudyTable, TrialRecord
from lorafront.search.tables import COMPACT, number
from lorafront.spaces.errors import InvalidInput, NoFront
from lorafront.spaces.objectives import OBJECTIVES, Objective
from lorafront.spaces.sizes import GIB
from lorafront.trainables.session import IMPORTED, PREDICTED

LEAST_KNEE = 3  # members of a front: fewer bend nowhere


@dataclass(frozen=True)
class Recommendation:
    """What to take.

    Attributes:
        trial: the configuration.
        why: a sentence.
        quality: the objective by which others are better or worse.
        better: the front member that is next better and what more it needs; None where none is better.
        cheaper: the front member that needs less and loses least; None where none needs less.
        unknown: how many members of the front were left out, because nobody knows their peak.
        knee: number of the trial at the front's knee; None where there is none.
        tiers: for each tier of GPU memory the best that fits its largest card; None where none does.
    """

    trial: TrialRecord
    why: str
    quality: Objective
    better: TrialRecord | None
    cheaper: TrialRecord | None
    unknown: int
    knee: int | None
    tiers: tuple[tuple[str, TrialRecord | None], ...]


def recommend(table: StudyTable, vram: int | None = None) -> Recommendation:
    """The best that fits, or the knee of the front where no size is given.

    Args:
        table: the study.
        vram: bytes of the GPU; GPU vendors' GB are GiB.

    Raises:
        InvalidInput: the search measured no quality or no peak memory.
        NoFront: there is no front yet, or nothing of it fits.
    """
    quality = next((objective for objective in table.search.objective_list if objective.quality), None)
    if quality is None:
        raise InvalidInput("the search has no objective of quality to recommend by")
    front = front_of(table)
    members = _ladder(front, quality)
    if not members:
        raise NoFront(f"search {table.search.name!r} has no feasible trial at full fidelity with a measured peak yet")
    bend = knee([_point(trial, quality) for trial in members])
    fitting = [trial for trial in members if vram is None or need(trial) <= vram]
    if not fitting:
        least = min(map(need, members)) / GIB
        raise NoFront(f"nothing on the front of {table.search.name!r} fits: the smallest needs {least:.2f} GiB")
    if vram is None and bend is not None:
        chosen = members[bend]
        why = "the knee of the front: furthest below the line between its ends"
    else:
        chosen = fitting[0]
        why = f"the best {quality.label} of the front" + ("" if vram is None else f" that fits in {vram / GIB:.4g} GiB")
    place = members.index(chosen)
    sizes = [*TIERS.items(), (OVER, math.inf)]
    return Recommendation(
        trial=chosen,
        why=why,
        quality=quality,
        better=members[place - 1] if place else None,
        cheaper=members[place + 1] if place + 1 < len(members) else None,
        knee=None if bend is None else members[bend].number,
        unknown=sum(not _measured(trial) for trial in front),
        tiers=tuple((name, next((t for t in members if need(t) <= size), None)) for name, size in sizes),
    )


def need(trial: TrialRecord) -> float:
    """Bytes on a GPU of its own: of its tensors at the peak, and of what every process takes there."""
    return float(trial.measurements[VRAM]) * GIB + CONTEXT


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Index of the point furthest below the line between the ends, both axes scaled to the range of the points.

    Das (1999), "On characterizing the 'knee' of the Pareto curve"; Satopaa et al. (2011), "Finding a Kneedle in a
    Haystack".

    Args:
        points: (quality, cost), both to be minimized, from the best quality to the least cost.

    Returns:
        None where fewer than three are given, or none lies below the line.
    """
    if len(points) < LEAST_KNEE:
        return None
    (best, dear), (worst, cheap) = points[0], points[-1]
    if best >= worst or cheap >= dear:
        return None
    depths = [1 - (quality - best) / (worst - best) - (cost - cheap) / (dear - cheap) for quality, cost in points]
    deepest = max(range(len(points)), key=depths.__getitem__)
    return deepest if depths[deepest] > 0 else None


def _point(trial: TrialRecord, quality: Objective) -> tuple[float, float]:
    """Perplexity as the loss that it is the exponential of: equal ratios are equal steps."""
    value = values(trial, [quality])[0]
    if quality.direction == "maximize":
        return -value, need(trial)
    return (math.log(value) if quality is OBJECTIVES["perplexity"] else value), need(trial)


def _ladder(members: Sequence[TrialRecord], quality: Objective) -> list[TrialRecord]:
    """Members that nobody beats in quality and memory, from the best to the smallest.

    A front of three objectives has others, which some third objective keeps there.
    """
    measured = [trial for trial in members if _measured(trial)]
    ladder: list[TrialRecord] = []
    for trial in sorted(measured, key=lambda trial: (*_point(trial, quality), trial.number)):
        if not ladder or need(trial) < need(ladder[-1]):
            ladder.append(trial)
    return ladder


def _measured(trial: TrialRecord) -> bool:
    return isinstance(trial.measurements.get(VRAM), (int, float))


def _source(trial: TrialRecord) -> str:
    return str(trial.measurements.get("peak_vram_source", ""))


def needs(trial: TrialRecord) -> str:
    """In GiB, with a word where its peak was only predicted, or read from a table."""
    said = {PREDICTED: " (predicted)", IMPORTED: " (imported)"}.get(_source(trial), "")
    return f"{need(trial) / GIB:.2f}{said}"


def lines(found: Recommendation, confirmed: Confirmation | None = None) -> list[str]:
    """For people: what, why, what the neighbours cost, and how sure that is.

    Args:
        found: what to take.
        confirmed: what replicates say, where it was chosen by them.
    """
    trial, quality = found.trial, found.quality
    told = [f"take trial {trial.number}: {trial.lora.label} lr {trial.lora.learning_rate:.2g}"]
    told += [f"{quality.label} {_number(trial, quality)}, needs {needs(trial)} GiB of a GPU", found.why]
    for other, word in ((found.better, "better"), (found.cheaper, "cheaper")):
        if other is None:
            told.append("nothing on the front is better" if word == "better" else "nothing on the front needs less")
            continue
        more = (need(other) - need(trial)) / GIB
        told.append(
            f"next {word}: trial {other.number} ({other.lora.label}) for {more:+.3g} GiB: "
            f"{quality.label} {_number(other, quality)}"
        )
    if found.unknown:
        told.append(f"{found.unknown} of the front left out: their peak memory is not known")
    return [*told, *_how_sure(trial, confirmed)]


def _how_sure(trial: TrialRecord, confirmed: Confirmation | None) -> list[str]:
    entry = confirmed and confirmed.of(trial.number)
    if not confirmed or not entry:
        if _source(trial) == IMPORTED:
            return ["the numbers are those of an imported table; none was measured here, and their noise is not known"]
        return ["trained once, with one seed: a small difference may be noise (confirm tells)"]
    return how_sure(confirmed, trial.number)


def tiers_table(found: Recommendation) -> Table:
    """The best for each size of GPU; one that is also best on a smaller one stands there alone."""
    shown = Table(title="The best by GPU memory", title_justify="left", caption_justify="left", **COMPACT)
    for heading in ("GPU", "trial", "configuration", found.quality.label, "needs GiB"):
        shown.add_column(heading, overflow="fold", justify="left" if heading in {"GPU", "configuration"} else "right")
    last = None
    for name, trial in found.tiers:
        if trial is not None and trial is last:
            shown.add_row(name, "", "as above", "", "")
        elif trial is not None:
            shown.add_row(name, str(trial.number), trial.lora.label, _number(trial, found.quality), needs(trial))
        else:
            shown.add_row(name, "", "nothing fits", "", "")
        last = trial
    return shown


def as_json(found: Recommendation) -> dict[str, Any]:
    """As `recommend --json` prints it."""

    def one(trial: TrialRecord | None) -> dict[str, Any] | None:
        if trial is None:
            return None
        return {
            "trial": trial.number,
            "params": trial.lora.model_dump(mode="json"),
            found.quality.name: values(trial, [found.quality])[0],
            VRAM: trial.measurements[VRAM],
            "need_gib": need(trial) / GIB,
            "peak_vram_source": trial.measurements.get("peak_vram_source"),
        }

    return {
        "recommended": one(found.trial),
        "why": found.why,
        "next_better": one(found.better),
        "next_cheaper": one(found.cheaper),
        "knee": found.knee,
        "tiers": {name: one(trial) for name, trial in found.tiers},
    }


def _number(trial: TrialRecord, objective: Objective) -> str:
    return number(values(trial, [objective])[0], objective)
