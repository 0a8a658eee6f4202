"""What an MLflow store has of a search, as plain values. Reads only; `mlflow_tracker` is what writes."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before MLflow

from dataclasses import dataclass, field

from lorafront.search.mlflow_tracker import TRIAL_TAG, UID_TAG, Tracking
from lorafront.search.study_table import StudyTable


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        trial: its number; None for the run of the search.
        status: MLflow's: RUNNING, FINISHED, FAILED, KILLED.
        metrics: the newest value of each.
        tags: all of them.
    """

    trial: int | None
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def read_runs(tracking: Tracking, table: StudyTable) -> list[Run]:
    """All runs of a search, oldest first; none where the store has no such experiment.

    Raises:
        MlflowException: the store cannot be read.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking.uri)
    experiment = client.get_experiment_by_name(table.search.name)
    found: list[Run] = []
    token = None
    while experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id],
            f"tags.`{UID_TAG}` = '{table.uid}'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        for run in page:
            number = run.data.tags.get(TRIAL_TAG)
            found.append(
                Run(
                    None if number is None else int(number),
                    str(run.info.status),
                    dict(run.data.metrics),
                    dict(run.data.tags),
                )
            )
        token = page.token
        if not token:
            break
    return found
