"""A search's peaks of memory with another number of rows per pass than its trials had, to choose by.

Each peak is predicted, and corrected by what the trial had with its own rows over what is predicted of those: with its
own rows a trial keeps the very number that it has. What it learnt is not touched: that was with its own rows.
`at_batch` is pure; `other_batch` reads the search's rows to predict with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorafront.search.front import front_of
from lorafront.search.study_table import VRAM, StudyTable, TrialRecord
from lorafront.spaces.errors import InvalidInput, NoFront, NotTraced, Problem
from lorafront.trainables.session import PREDICTED
from lorafront.trainables.task import TASKS

if TYPE_CHECKING:
    from lorafront.search.paths import SearchPaths
    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.config import TrainingConfig

Predict = Callable[["LoraConfiguration", "TrainingConfig"], int | None]  # bytes of tensors at the peak
LARGEST = 4096  # rows in a pass; nobody asks for more


@dataclass(frozen=True)
class OtherBatch:
    """A study as it would be with other passes.

    Attributes:
        table: its trials' peaks are those with `rows`; they keep their configurations and have none that nobody knows.
        rows: of a pass.
        on_cpu: the search counted tensors on a CPU, and so does the prediction.
        unknown: how many trials' peaks cannot be predicted.
    """

    table: StudyTable
    rows: int
    on_cpu: bool
    unknown: int = 0

    def passes(self, trial: TrialRecord) -> int:
        """Of an optimizer step."""
        return passes(_as_run(self.table, trial)[0], self.rows)

    def lines(self, trial: TrialRecord, quality: str) -> list[str]:
        """For people: what is predicted, and what that leaves of what the search measured.

        Args:
            trial: the recommended one.
            quality: by which it was chosen.
        """
        own, times = _as_run(self.table, trial)[0], self.passes(trial)
        had, step = own.batch_size * own.gradient_accumulation, self.rows * times
        batch = f"{self.rows} row{'s' if self.rows > 1 else ''}"
        if own == _with_rows(own, self.rows):
            told = [f"this trial ran with {batch} a pass, so its memory is what the search has for it"]
        else:
            counted = ", as tensors are counted on a CPU," if self.on_cpu else ""
            corrected = f"corrected by what each trial had with its own ({own.batch_size} for this one)"
            told = [f"memory with {batch} a pass is predicted{counted} and {corrected}"]
        if self.table.search.space.batch_size is not None:
            told.append(f"the search varied batch_size; {batch} a pass take the place of every trial's own")
        if step == had:
            same = f"{self.rows} x {times} are as many: it stands"
            told.append(f"{quality} was measured with {had} rows a step, and {same}")
        else:
            told.append(
                f"{quality} was measured with {had} rows a step, not with {self.rows} x {times} = {step}: that wants "
                "another learning rate, and may be better or worse"
            )
        if self.unknown:
            told.append(f"{self.unknown} trials are left out: their memory cannot be predicted")
        return told

    def as_json(self, trial: TrialRecord, quality: str) -> dict[str, Any]:
        """Of the recommended trial; arguments as for `lines`."""
        own = _as_run(self.table, trial)[0]
        return {
            "rows_per_pass": self.rows,
            "passes_per_step": self.passes(trial),
            "rows_per_step_of_trial": own.batch_size * own.gradient_accumulation,
            "predicted": own != _with_rows(own, self.rows),
            "notes": self.lines(trial, quality),
        }


def at_batch(table: StudyTable, rows: int, predict: Predict) -> StudyTable:
    """The study with the peaks that its complete trials would have with so many rows in a pass.

    A trial whose peak is not known, or that cannot be predicted, has none then.
    """
    return replace(table, trials=tuple(_moved(table, trial, rows, predict) for trial in table.trials))


def passes(lora: LoraConfiguration, rows: int) -> int:
    """That come nearest to the rows of an optimizer step of a configuration; at least one."""
    return max(1, round(lora.batch_size * lora.gradient_accumulation / rows))


def _moved(table: StudyTable, trial: TrialRecord, rows: int, predict: Predict) -> TrialRecord:
    if trial.state != "COMPLETE" or trial.result is None or not _known(trial):
        return trial
    own, training = _as_run(table, trial)
    other = _with_rows(own, rows)
    if other == own:
        return trial
    before, after = predict(own, training), predict(other, training)
    peak = trial.measurements[VRAM] * after / before if before and after else None
    measured = {**trial.measurements, VRAM: peak, "peak_vram_source": PREDICTED}
    return replace(trial, result=replace(trial.result, measurements=measured), standalone=None)


def _as_run(table: StudyTable, trial: TrialRecord) -> tuple[LoraConfiguration, TrainingConfig]:
    training = table.search.training
    return trial.execution.applied(trial.lora, training) if trial.execution else (trial.lora, training)


def _with_rows(lora: LoraConfiguration, rows: int) -> LoraConfiguration:
    return lora.model_copy(update={"batch_size": rows, "gradient_accumulation": passes(lora, rows)})


def other_batch(table: StudyTable, chosen_from: StudyTable, paths: SearchPaths, rows: int) -> OtherBatch:
    """Predict with the rows of a search.

    Args:
        table: the study of the search.
        chosen_from: the same, or what replicates say of it.
        paths: of the search.
        rows: of a pass.

    Raises:
        InvalidInput: too many rows, or the search was imported, is of the user's own task, or has lost model or rows.
        NotTraced: the memory of this model cannot be predicted.
        NoFront: nothing keeps the limits of the file then.
    """
    from lorafront.search.export import on_cpu, tokens_of
    from lorafront.search.paths import RootPaths
    from lorafront.search.peak_memory import peak_memory
    from lorafront.search.read_only import refuse_imported
    from lorafront.trainables.models import load_config

    search = table.search
    refuse_imported(search, "predict memory with")
    if not 1 <= rows <= LARGEST:
        raise InvalidInput([Problem(("--batch",), f"takes 1 to {LARGEST} rows (got {rows})")])
    if search.task not in TASKS:
        message = f"takes a task whose batches are known: {', '.join(TASKS)} (got {search.task})"
        raise InvalidInput([Problem(("--batch",), message)])
    on_a_cpu = all(on_cpu(trial.measurements) for trial in table.complete)
    config, tokens = load_config(search.model), tokens_of(table, paths)
    traced = RootPaths(paths.folder.parent).traced.absolute()
    memory = peak_memory(search, config, tokens, table.data["rungs"][-1], traced, "cpu" if on_a_cpu else "cuda")

    def predict(lora: LoraConfiguration, training: TrainingConfig) -> int | None:
        found = memory.predict(lora, training)
        return None if found is None else found.peak

    moved = at_batch(chosen_from, rows, predict)
    unknown = sum(_known(trial) for trial in chosen_from.complete) - sum(_known(trial) for trial in moved.complete)
    if unknown and not any(_known(trial) for trial in moved.complete):
        raise NotTraced(f"the peak memory of {search.model.name} cannot be predicted, so --batch says nothing")
    if front_of(chosen_from) and not front_of(moved):
        limits = ", ".join(map(str, search.limits))
        raise NoFront(f"with {rows} rows a pass no trial of {search.name!r} keeps the limits of its file ({limits})")
    return OtherBatch(moved, rows, on_a_cpu, unknown)


def _known(trial: TrialRecord) -> bool:
    return isinstance(trial.measurements.get(VRAM), (int, float))
