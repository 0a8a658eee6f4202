"""The front: trials at full fidelity within the limits that no other one beats. Pure.

Dominance is moocore's; trials with equal values are all kept, because nobody beats them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from moocore import is_nondominated

from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.objectives import OBJECTIVES, Limit, Objective, feasible
from lorafront.spaces.sizes import GIB, parse_size


def front(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], limits: tuple[Limit, ...]
) -> list[TrialRecord]:
    """Non-dominated, feasible, complete trials, best first on the first objective, then by number."""
    kept = undominated({t.number: t.measurements for t in trials if t.state == "COMPLETE"}, objectives, limits)
    members = [trial for trial in trials if trial.number in kept]
    first = objectives[0]
    sign = -1 if first.direction == "maximize" else 1
    return sorted(members, key=lambda trial: (sign * values(trial, [first])[0], trial.number))


def undominated(
    measured: Mapping[int, Mapping[str, object]], objectives: Sequence[Objective], limits: tuple[Limit, ...]
) -> set[int]:
    """Numbers of the trials within the limits that no other one beats; all of these trials are complete."""
    points = {
        number: [_number(measurements.get(objective.name)) for objective in objectives]
        for number, measurements in measured.items()
        if feasible(limits, measurements)
    }
    points = {number: point for number, point in points.items() if all(map(math.isfinite, point))}
    if not points:
        return set()
    kept = is_nondominated(
        np.array(list(points.values()), dtype=float),
        maximise=[objective.direction == "maximize" for objective in objectives],
        keep_weakly=True,
    )
    return {number for number, keep in zip(points, kept, strict=True) if keep}


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def values(trial: TrialRecord, objectives: Sequence[Objective]) -> list[float]:
    """The objectives of one trial; NaN where it has no number."""
    return [_number(trial.measurements.get(objective.name)) for objective in objectives]


def axes_of(objectives: Sequence[Objective]) -> tuple[Objective, Objective]:
    """What a picture has from left to right and from bottom to top: the first cost, and the first quality."""
    vertical = next((o for o in objectives if o.quality), objectives[0])
    others = [o for o in objectives if o is not vertical]
    return next((o for o in others if not o.quality), others[0]), vertical


def front_of(table: StudyTable) -> list[TrialRecord]:
    """The front of a study."""
    return front(table.complete, table.search.objective_list, table.search.limits)


def best_under(table: StudyTable, size: str) -> list[TrialRecord]:
    """The best on the first objective other than VRAM among front members that need at most so much VRAM.

    Args:
        table: the study.
        size: such as `8GB`, `500MB` or `8` (GiB; GPU vendors' GB are GiB).

    Returns:
        One trial, or none where nothing fits.

    Raises:
        InvalidInput: the size cannot be read, or VRAM was not measured.
    """
    try:
        bound = parse_size(size) / GIB
    except ValueError as error:
        raise InvalidInput(f"--under {error}") from error
    vram = OBJECTIVES["peak_vram_gb"]
    if table.complete and not any(math.isfinite(values(trial, [vram])[0]) for trial in table.complete):
        raise InvalidInput("--under needs peak VRAM, which no trial of this search has measured")
    quality = [objective for objective in table.search.objective_list if objective is not vram]
    limits = (*table.search.limits, Limit(vram.name, "<=", bound))
    return front(table.complete, [quality[0], vram, *quality[1:]], limits)[:1]


def as_json(members: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[dict[str, object]]:
    """`{"trial", "params", "values"}` of each member, and how it ran where that is known, as `pareto --json` prints."""
    return [
        {
            "trial": trial.number,
            "params": trial.lora.model_dump(mode="json"),
            **({"execution": trial.execution.model_dump()} if trial.execution else {}),
            **{name: said for name in ("engine", "peak_vram_source") if (said := trial.measurements.get(name))},
            "values": dict(zip((o.name for o in objectives), values(trial, objectives), strict=True)),
        }
        for trial in members
    ]
