"""What a trial's MLflow run has: parameters, tags and metrics, under names to sort and filter by. Pure.

MLflow keeps parameters as text, so it sorts them as text (16 before 2) and knows only `=` for them. Hyperparameters
that are numbers and vary stand among the metrics too, under the same names: `metrics.rank > 8`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from lorafront.search.baseline import baseline_of
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.lora import HYPERPARAMETERS, LoraSpace
from lorafront.spaces.parameters import count
from lorafront.trainables.outcome import Outcome

if TYPE_CHECKING:
    from mlflow.entities import RunData

    from lorafront.search.confirmation import Confirmation
    from lorafront.search.judged import Confirmed

# What a trial has one of; everything else that is a number is a curve over the rungs.
ONCE = frozenset(
    {"peak_vram_gb", "peak_reserved_gb", "process_memory_gb", "predicted_peak_vram_gb", "vram_error_percent",
     "trainable_params", "trainable_percent", "adapter_mb",
     "setup_seconds", "seconds_per_epoch"}
)  # fmt: skip
IN_WORDS = ("engine", "engine_reason", "peak_vram_source")  # measurements
AT_A_RUNG = frozenset({Outcome.STOPPED, Outcome.CANCELLED})  # ways to end before full fidelity


class Value(NamedTuple):
    """One value of a metric.

    Attributes:
        name: of the metric.
        value: finite.
        time: milliseconds since 1970.
        step: training rows; 0 for what a trial has one of.
    """

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Columns:
    """What one run has.

    Attributes:
        metrics: in the order of their rows.
        params: parameters; MLflow lets nobody change them.
        tags: the rest.
    """

    metrics: tuple[Value, ...]
    params: Mapping[str, str]
    tags: Mapping[str, str]

    def stand_in(self, found: RunData) -> bool:
        """Whether a run has all of it, by the newest value of each metric."""
        newest: dict[str, Value] = {}
        for one in self.metrics:
            newest[one.name] = max(one, newest.get(one.name, one), key=lambda value: (value.step, value.time))
        numbers = {name: one.value for name, one in newest.items()}
        return (
            numbers.items() <= found.metrics.items()
            and self.params.items() <= found.params.items()
            and self.tags.items() <= found.tags.items()
        )


def millis(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return round(moment.timestamp() * 1000)


def columns_of(trial: TrialRecord, table: StudyTable, *, pareto: bool) -> Columns:
    """What a trial's run has; `pareto`: it is on the front."""
    params = {name: str(value) for name, value in trial.lora.model_dump(mode="json").items()}
    return Columns(tuple(_metrics(trial, table)), params, _tags(trial, table, pareto=pareto))


def _tags(trial: TrialRecord, table: StudyTable, *, pareto: bool) -> dict[str, str]:
    """How it ended and how it ran.

    `stopped_at_rung` is the number of the rung, counted from 1, at which a trial ended before full fidelity.
    """
    found = {"pareto": "true" if pareto else "false"} if trial.state == "COMPLETE" else {}
    if trial.outcome is not None:
        found |= {"outcome": trial.outcome.value, "reason": trial.outcome.stored}
    if trial.outcome in AT_A_RUNG and trial.last is not None:
        found["stopped_at_rung"] = str(_rung(trial.last.rows, trial, table))
    if trial.result is not None and trial.result.error:
        found["error"] = trial.result.error[-4000:]
    if trial is baseline_of(table):
        found["baseline"] = "true"
    if trial.execution is not None:
        found["execution"] = trial.execution.label
    return found | {name: str(trial.measurements[name]) for name in IN_WORDS if name in trial.measurements}


def _rung(rows: int, trial: TrialRecord, table: StudyTable) -> int:
    """Counted from 1; the last one that it came to."""
    ladder: Sequence[int] = table.data.get("rungs") or [report.rows for report in trial.rungs]
    return sum(rung <= rows for rung in ladder)


def sorted_by(space: LoraSpace) -> tuple[str, ...]:
    """Hyperparameters that vary, of which those that are numbers are metrics too."""
    varying = {name for name, parameter in space.parameters().items() if count(parameter) != 1}
    if varying & {"rank", "alpha_ratio"}:
        varying.add("alpha")
    return tuple(name for name in HYPERPARAMETERS if name in varying)


def _metrics(trial: TrialRecord, table: StudyTable) -> Iterator[Value]:
    """Every curve at its rows, and once what a trial has one of; finite numbers only."""
    began = millis(trial.started)
    said = trial.lora.model_dump()  # full fine-tuning has no rank
    for name in sorted_by(table.search.space):
        value = said.get(name)
        if isinstance(value, (int, float)):
            yield Value(name, float(value), began, 0)
    for index, report in enumerate(trial.rungs):
        last = index == len(trial.rungs) - 1
        time = began + round(1000 * (report.measurements.get("train_seconds") or 0)) + index
        for name, value in report.measurements.items():
            once = name in ONCE or name.startswith("base_")
            if isinstance(value, (int, float)) and math.isfinite(value) and (last or not once):
                yield Value(name, float(value), time, 0 if once else report.rows)
        if last:
            yield Value("rows_seen", float(report.rows), time, 0)
            for name, value in trial.beside.items():
                if isinstance(value, (int, float)):
                    # Later by a moment: of two values of one step MLflow shows the newer one.
                    yield Value(name, float(value), time + 1, 0)


def confirmed_columns(entry: Confirmed, found: Confirmation) -> Columns:
    """What replicates say of a trial: the mean over seeds with its 95 % interval, its chance of being on the front.

    `tags.confirmed`: `kept` is worth choosing, of `needless` another one makes no use, `beaten` is off the front. More
    replicates come later, so their values get a later time, and MLflow shows them.
    """
    replicates = sum(one.seeds + one.lost for one in found.entries)
    time = millis(entry.trial.ended or entry.trial.started) + 2 + replicates
    said = {"front_probability": entry.probability, "confirmed_seeds": float(entry.seeds)}
    for name, mean in entry.values.items():
        low, high = entry.intervals[name]
        said |= {f"confirmed_{name}": mean, f"confirmed_{name}_low": low, f"confirmed_{name}_high": high}
    groups = {"kept": found.kept, "needless": found.needless, "beaten": found.beaten}
    group = next(name for name, entries in groups.items() if entry in entries)
    metrics = (Value(name, value, time, 0) for name, value in said.items() if math.isfinite(value))
    return Columns(tuple(metrics), {}, {"confirmed": group})
