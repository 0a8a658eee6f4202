"""Which hyperparameters separate the best trials from the others, by Optuna's PED-ANOVA. Pure.

Watanabe, Bansal, Hutter (2023), "PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary subspaces".
Marginals of a search that learns are confounded by what it chose to look at: these are hints.
"""

from __future__ import annotations

import math
from typing import Any

from lorafront.search.front import values
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.lora import HYPERPARAMETERS, AlphaRatio

LEAST_TRIALS = 20  # at full fidelity; a tenth of fewer, which PED-ANOVA takes as the good ones, is one trial


def importances(table: StudyTable) -> dict[str, dict[str, float]]:
    """By label of the objective, the share of each hyperparameter that varies; empty where trials are too few."""
    if len(table.complete) < LEAST_TRIALS:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {}
    ratio = isinstance(table.search.space.alpha, AlphaRatio)
    for objective in table.search.objective_list:
        trials = [trial for trial in table.complete if math.isfinite(values(trial, [objective])[0])]
        spaces = _spaces(trials, ratio=ratio)
        same = len({values(trial, [objective])[0] for trial in trials}) <= 1
        if len(trials) < LEAST_TRIALS or len(spaces) <= 1 or same:
            continue
        study = optuna.create_study(direction=objective.direction)
        for trial in trials:
            params = {name: _value(trial, name, ratio=ratio) for name in spaces}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=spaces, value=values(trial, [objective])[0])
            )
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        whole = sum(shares.values())
        if whole > 0:
            named = {"alpha": "alpha / rank"} if ratio else {}
            found[objective.label] = {named.get(name, name): share / whole for name, share in shares.items()}
    return found


def _value(trial: TrialRecord, name: str, *, ratio: bool) -> Any:
    """Of a hyperparameter; alpha as the space has it, else it stands for the rank."""
    return trial.lora.alpha / trial.lora.rank if ratio and name == "alpha" else getattr(trial.lora, name)


def _spaces(trials: list[TrialRecord], *, ratio: bool) -> dict[str, Any]:
    """A distribution for each hyperparameter that varies: what was tried, or the range of it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    spaces: dict[str, Any] = {}
    for name in HYPERPARAMETERS:
        chosen = [_value(trial, name, ratio=ratio) for trial in trials]
        different = sorted(set(chosen), key=lambda value: (str(type(value)), value))
        if len(different) <= 1:
            continue
        if all(isinstance(value, float) for value in chosen):
            low, high = min(chosen), max(chosen)
            spaces[name] = FloatDistribution(low, high, log=low > 0)
        else:
            spaces[name] = CategoricalDistribution(different)
    return spaces
