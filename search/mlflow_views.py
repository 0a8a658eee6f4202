"""Views of a search's table of runs that MLflow's UI opens from a link: which runs, which order, which columns. Pure.

They are what its own "share view" keeps: JSON in a tag of the experiment, opened by its key. A UI that does not know
the form shows its usual table.
"""

from __future__ import annotations

import json

from lorafront.search.front import axes_of
from lorafront.search.mlflow_columns import sorted_by
from lorafront.search.search_file import SearchFile

TAG = "mlflow.sharedViewState."
FRONT, TRIALS = "front", "trials"
FILTERS = {FRONT: "tags.pareto = 'true'", TRIALS: "tags.`lorafront.trial` LIKE '%'"}
IN_WORDS = frozenset({"modules", "quantization", "bias", "scheduler"})  # hyperparameters that are no metrics


def view_tags(search: SearchFile) -> dict[str, str]:
    """Tags of the experiment, one for each view."""
    _, quality = axes_of(search.objective_list)
    columns = [f"metrics.`{objective.name}`" for objective in search.objective_list]
    columns += [f"{'params' if n in IN_WORDS else 'metrics'}.`{n}`" for n in sorted_by(search.space)]
    order = {"orderByKey": f"metrics.`{quality.name}`", "orderByAsc": quality.direction == "minimize"}
    more = {FRONT: [], TRIALS: ["tags.`pareto`", "tags.`stopped_at_rung`"]}
    return {
        f"{TAG}{key}": json.dumps({"searchFilter": query, **order, "selectedColumns": columns + more[key]})
        for key, query in FILTERS.items()
    }


def links(experiment_id: str) -> str:
    """In Markdown, to be read in the UI that shows the views."""
    table = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return (
        f"[the front]({table}{FRONT}), [its curves]({table}{FRONT}&compareRunsMode=CHART), "
        f"[all trials]({table}{TRIALS})"
    )
