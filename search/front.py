"""The front: trials at full fidelity within the limits that no other one beats. Pure.

Dominance is moocore's; trials with equal values are all kept, because nobody beats them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from moocore import is_nondominated

from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.objectives import Limit, Objective, feasible


def front(trials: Sequence[TrialRecord], objectives: Sequence[Objective], limits: tuple[Limit, ...]) -> list[TrialRecord]:
    """Non-dominated, feasible, complete trials, best first on the first objective, then by number."""
    candidates = [trial for trial in trials if trial.state == "COMPLETE" and feasible(limits, trial.measurements)]
    candidates = [trial for trial in candidates if all(map(math.isfinite, values(trial, objectives)))]
    if not candidates:
        return []
    points = np.array([values(trial, objectives) for trial in candidates], dtype=float)
    kept = is_nondominated(points, maximise=[o.direction == "maximize" for o in objectives], keep_weakly=True)
    members = [trial for trial, keep in zip(candidates, kept, strict=True) if keep]
    first = objectives[0]
    sign = -1 if first.direction == "maximize" else 1
    return sorted(members, key=lambda trial: (sign * values(trial, [first])[0], trial.number))


def values(trial: TrialRecord, objectives: Sequence[Objective]) -> list[float]:
    """The objectives of one trial; NaN where it has no number."""
    found = (trial.measurements.get(objective.name) for objective in objectives)
    return [float(value) if isinstance(value, (int, float)) else math.nan for value in found]


def front_of(table: StudyTable) -> list[TrialRecord]:
    """The front of a study."""
    return front(table.complete, table.search.objective_list, table.search.limits)


def as_json(members: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[dict[str, object]]:
    """`{"trial", "params", "values"}` of each member, as `pareto --json` prints it."""
    return [
        {
            "trial": trial.number,
            "params": trial.lora.model_dump(mode="json") if trial.lora else {},
            "values": dict(zip((o.name for o in objectives), values(trial, objectives), strict=True)),
        }
        for trial in members
    ]
