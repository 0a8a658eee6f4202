"""Which members of the front still stand there with a peak that was only predicted; so also the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorafront.search.baseline import baseline_of
from lorafront.search.front import front_of
from lorafront.trainables.session import PREDICTED

if TYPE_CHECKING:
    from lorafront.search.prepared import Prepared
    from lorafront.search.study_table import StudyTable
    from lorafront.trainables.config import TrialConfig


def to_measure(table: StudyTable, prepared: Prepared) -> dict[int, TrialConfig]:
    """By number, what a worker needs to measure each alone (trainables/standalone.py).

    Ask again once they are kept in the study: where one is worse than predicted, another may have joined the front.

    Args:
        table: the study as it stands.
        prepared: the search.
    """
    baseline = baseline_of(table)
    compared = {trial.number: trial for trial in (*front_of(table), *([baseline] if baseline else []))}
    waiting = [
        trial
        for trial in compared.values()
        if trial.state == "COMPLETE"
        and trial.measurements.get("peak_vram_source") == PREDICTED
        and trial.standalone is None
    ]
    for trial in waiting:
        if trial.execution is not None:
            prepared.keep_execution(trial.lora, trial.execution)
    return {trial.number: prepared.trial(trial.lora) for trial in waiting}
