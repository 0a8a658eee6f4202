"""The user's own recipe among the trials: which one it is, who beats it, and by how much. Pure.

Every trial of a search has the same seed, rows and length, so a difference is that of two configurations on the same
terms; like everything that was trained once it may be noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafront.search.front import front_of, values
from lorafront.search.start_points import BASELINE
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.objectives import Objective, broken_limit, minimized

IN_PERCENT = frozenset({"perplexity", "train_seconds", "tokens_per_second", "trainable_params", "adapter_mb"})


@dataclass(frozen=True)
class Standing:
    """Where the baseline stands when it is measured.

    Attributes:
        trial: the baseline.
        on_front: nobody beats it, and it keeps the limits.
        beaten: members of the front that are better in every objective, by number of trial.
        matched: those that are better in some and worse in none, but equal in some.
        broken: the limit that it breaks, with the value; empty where it breaks none.
    """

    trial: TrialRecord
    on_front: bool
    beaten: tuple[int, ...]
    matched: tuple[int, ...]
    broken: str


def baseline_of(table: StudyTable) -> TrialRecord | None:
    """The trial of the user's own recipe, by its configuration; None where the search has none, or it has not begun."""
    for start in table.starts:
        if start.label == BASELINE:
            return next((trial for trial in table.trials if trial.lora.fingerprint == start.fingerprint), None)
    return None


def standing(table: StudyTable) -> Standing | None:
    """Who beats the baseline; None while it has not come to full fidelity."""
    trial, objectives = baseline_of(table), table.search.objective_list
    if trial is None or trial.state != "COMPLETE":
        return None
    mine = minimized(trial.measurements, objectives)
    beaten, matched, members = [], [], front_of(table)
    for member in members:
        theirs = minimized(member.measurements, objectives)
        if all(a < b for a, b in zip(theirs, mine, strict=True)):
            beaten.append(member.number)
        elif theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True)):
            matched.append(member.number)
    on_front = any(member.number == trial.number for member in members)
    broken = broken_limit(table.search.limits, trial.measurements)
    return Standing(trial, on_front, tuple(sorted(beaten)), tuple(sorted(matched)), broken)


def differences(trial: TrialRecord, baseline: TrialRecord, objectives: Sequence[Objective]) -> dict[str, float]:
    """What a trial has more than the baseline, by objective; what either has not measured is left out.

    In per cent of the baseline's value for `IN_PERCENT`, in the objective's own unit for all others.
    """
    found = {}
    pairs = zip(values(trial, objectives), values(baseline, objectives), objectives, strict=True)
    for value, own, objective in pairs:
        more = value - own
        if objective.name in IN_PERCENT:
            more = 100 * more / own if own else math.nan
        if math.isfinite(more):
            found[objective.name] = more
    return found


def with_differences(table: StudyTable, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Members of the front as `front.as_json` has them, with what each has more than the baseline, where there is one.

    `to_baseline` has `trial`, and `difference` in the units of the objectives; `percent` for those of `IN_PERCENT`.
    """
    found, objectives = standing(table), table.search.objective_list
    if found is None:
        return [dict(entry) for entry in entries]
    trials = {trial.number: trial for trial in table.complete}
    own = dict(zip((o.name for o in objectives), values(found.trial, objectives), strict=True))
    shown = []
    for entry in entries:
        absolute = {name: value - own[name] for name, value in entry["values"].items()}
        relative = differences(trials[entry["trial"]], found.trial, [o for o in objectives if o.name in IN_PERCENT])
        told = {"trial": found.trial.number, "difference": absolute, "percent": relative}
        shown.append({**entry, "to_baseline": told})
    return shown
