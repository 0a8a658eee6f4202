"""What a study says, read by SQL: one row per trial, without importing Optuna.

The only reader that `status`, `pareto`, `list`, `export` and the MLflow projection use; it never writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from lorafront.search.budget import Spent, limit_reached
from lorafront.search.database import Read, is_lost, place_of, reading
from lorafront.search.search_end import SearchEnd
from lorafront.search.search_file import SearchFile
from lorafront.search.start_points import Start
from lorafront.spaces.errors import StateUnreadable
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.execution import Execution
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.session import PREDICTED
from lorafront.trainables.trial import Report

# Names of the attributes that the driver writes (search/study.py).
CONFIGURATION, EPOCH, RUNG, OUTCOME, RESULT = "configuration", "epoch", "rung:", "outcome", "result"
SEARCH, NOTES, REFERENCE, UID, DATA = "search", "notes", "reference:", "uid", "data"
LIVED, GPU = "lived_seconds", "gpu_seconds"
STARTS, WARMED, IMPORTED_FROM, ENDED = "start_points", "warm_started", "imported_from", "ended"
REPEATABLE = "repeatable"
EXECUTION = "execution"
STANDALONE = "standalone:"  # what a trial of a pack measured alone, after it was told (trainables/standalone.py)
VRAM = "peak_vram_gb"
ENDS = "ends"  # how often a trial was lost, by kind, before it was told (search/retries.py)


def rungs(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A trial's reports at its rungs, as they are stored, by rows."""
    return sorted((v for key, v in attributes.items() if key.startswith(RUNG)), key=lambda report: int(report["rows"]))


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the study has it.

    Attributes:
        number: the Optuna trial number.
        state: Optuna's: COMPLETE, PRUNED, FAIL, RUNNING or WAITING.
        lora: its configuration.
        epoch: of the driver that last started it.
        rungs: reports so far, by rows.
        result: the final report; None while it runs.
        started: when it was asked for.
        ended: when it was told; None while it runs.
        imported_from: the search and the number whose result this is; empty for a trial of this search.
        execution: how it was executed, where that was solved (`training.execution: auto`).
        standalone: what it measured alone after it had ended; None where nobody tried, empty where that failed.
    """

    number: int
    state: str
    lora: LoraConfiguration
    epoch: int
    rungs: tuple[Report, ...]
    result: Report | None
    started: datetime
    ended: datetime | None
    imported_from: str = ""
    execution: Execution | None = None
    standalone: Mapping[str, Any] | None = None

    @property
    def outcome(self) -> Outcome | None:
        """How it ended."""
        return self.result.outcome if self.result else None

    @property
    def last(self) -> Report | None:
        """The newest report with measurements."""
        if self.result is not None and self.result.measurements:
            return self.result
        return self.rungs[-1] if self.rungs else None

    @property
    def reported(self) -> dict[str, Any]:
        """Measurements of the newest report; empty where there is none."""
        return self.last.measurements if self.last else {}

    @property
    def measurements(self) -> dict[str, Any]:
        """What is known best: of the newest report, and of what it measured alone."""
        return {**self.reported, **self.beside}

    @property
    def beside(self) -> dict[str, Any]:
        """What takes the place of the newest report's measurements, or comes to them.

        A peak that was only predicted stands as predicted too, so that both are there once it is measured.
        """
        predicted = self.reported.get(VRAM)
        if not predicted or self.reported.get("peak_vram_source") != PREDICTED:
            return {}
        found: dict[str, Any] = {f"predicted_{VRAM}": predicted, **(self.standalone or {})}
        if found.get(VRAM):
            found["vram_error_percent"] = 100 * (predicted / found[VRAM] - 1)
        return found


@dataclass(frozen=True)
class StudyTable:
    """A whole study at one moment.

    Attributes:
        search: the file, resolved.
        trials: by number.
        references: what is measured without adapting, such as the bare base in each quantization.
        notes: what the user should know about the data.
        uid: of this search alone, whatever its name; MLflow runs are found by it.
        imported: results of earlier searches; they teach the sampler and are no trials.
        end: why there is nothing more to try; None where the budget decides.
        data: which token rows and rungs its trials saw.
        warmed: the results of the searches that `warm_start` names are in it.
        seconds: that drivers have lived, all together.
        gpu_seconds: of attempts at trials, each times its share.
        starts: what was to be tried first.
    """

    search: SearchFile
    trials: tuple[TrialRecord, ...]
    references: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    uid: str = ""
    imported: tuple[TrialRecord, ...] = ()
    end: SearchEnd | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    warmed: bool = False
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    starts: tuple[Start, ...] = ()

    @cached_property
    def counted(self) -> tuple[TrialRecord, ...]:
        """Trials that spent budget."""
        return tuple(trial for trial in self.trials if trial.outcome is not None and trial.outcome.counts)

    def seed_of(self, trial: TrialRecord) -> int:
        """Its own where it is a replicate, else that of the search."""
        return self.search.seed if trial.lora.seed is None else trial.lora.seed

    @property
    def spent(self) -> Spent:
        """What counts against the budget."""
        return Spent(len(self.counted), self.seconds, self.gpu_seconds)

    @property
    def over(self) -> str:
        """The limit of the budget that ended the search, in words; empty where it is not over."""
        return limit_reached(self.search.budget, self.spent)

    @property
    def hours_again(self) -> str:
        """What a command needs to go on with replicates whose hours are spent: as many again; else empty."""
        hours = self.search.budget.hours
        return f" --hours {2 * hours:g}" if hours and limit_reached(self.search.budget, self.spent, ("hours",)) else ""

    @property
    def complete(self) -> tuple[TrialRecord, ...]:
        """Trials at full fidelity."""
        return tuple(trial for trial in self.trials if trial.state == "COMPLETE")

    @property
    def running(self) -> tuple[TrialRecord, ...]:
        """Trials that were started and have not ended."""
        return tuple(trial for trial in self.trials if trial.state == "RUNNING")


def read_study(path: Path) -> StudyTable:
    """Read the study of a search.

    Raises:
        StateUnreadable: it is no study, or is damaged.
    """
    try:
        return _read(path)
    except StateUnreadable as error:
        if not is_lost(error.__cause__):
            raise
        return _read(path)  # a connection that broke: another one waits for the server


def _read(path: Path) -> StudyTable:
    try:
        with reading(path) as read:
            attributes = dict(read("SELECT key, value_json FROM study_user_attributes WHERE study_id = {study}"))
            if SEARCH not in attributes:
                raise StateUnreadable(
                    f"{place_of(path)} holds no search: its driver ended before it was set up; delete {path.parent}"
                )
            search = SearchFile.model_validate(json.loads(attributes[SEARCH]))
            found = tuple(_trials(read, _standalone(attributes)))
    except (ValueError, KeyError) as error:
        raise StateUnreadable(f"{place_of(path)} cannot be read: {error}") from error
    references = {
        key.removeprefix(REFERENCE): json.loads(value)
        for key, value in sorted(attributes.items())
        if key.startswith(REFERENCE)
    }
    end = json.loads(attributes.get(ENDED, "null"))
    return StudyTable(
        search,
        tuple(trial for trial in found if not trial.imported_from),
        references,
        tuple(json.loads(attributes.get(NOTES, "[]"))),
        json.loads(attributes.get(UID, '""')),
        tuple(trial for trial in found if trial.imported_from),
        SearchEnd.of(end) if end else None,
        json.loads(attributes.get(DATA, "{}")),
        WARMED in attributes,
        json.loads(attributes.get(LIVED, "0")),
        json.loads(attributes.get(GPU, "0")),
        tuple(Start(**raw) for raw in json.loads(attributes.get(STARTS, "[]"))),
    )


def _time(stored: Any) -> datetime:
    """SQLite has text."""
    return stored if isinstance(stored, datetime) else datetime.fromisoformat(stored)


def _standalone(attributes: Mapping[str, str]) -> dict[int, dict[str, Any]]:
    """By number of the trial."""
    own = {key: value for key, value in attributes.items() if key.startswith(STANDALONE)}
    return {int(key.removeprefix(STANDALONE)): json.loads(value) for key, value in own.items()}


def _trials(read: Read, standalone: Mapping[int, dict[str, Any]]) -> Iterator[TrialRecord]:
    attributes: dict[int, dict[str, Any]] = {}
    query = (
        "SELECT trial_id, key, value_json FROM trial_user_attributes JOIN trials USING (trial_id) "
        "WHERE study_id = {study}"
    )
    for trial_id, key, value in read(query):
        attributes.setdefault(trial_id, {})[key] = from_json(value)  # at 10,000 trials the half of the time of `json`
    query = (
        "SELECT trial_id, number, state, datetime_start, datetime_complete FROM trials "
        "WHERE study_id = {study} ORDER BY number"
    )
    for trial_id, number, state, started, ended in read(query):
        own = attributes.get(trial_id, {})
        yield TrialRecord(
            number=number,
            state=state,
            lora=LoraConfiguration(**own[CONFIGURATION]),
            epoch=own.get(EPOCH, 0),
            rungs=tuple(map(Report.from_json, rungs(own))),
            result=Report.from_json(own[RESULT]) if RESULT in own and state != "RUNNING" else None,
            started=_time(started),
            ended=_time(ended) if ended else None,
            imported_from=own.get(IMPORTED_FROM, ""),
            execution=Execution(**own[EXECUTION]) if EXECUTION in own else None,
            standalone=standalone.get(number),
        )
