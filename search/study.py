"""The study: Optuna storage, asked and told. The only module that imports Optuna, and the only writer of a study.

Every value is in the database before anybody else hears of it. A trial's outcome and result are attributes that are set
before it is told, so a driver that dies in between leaves a trial that the next one can tell the same way.
"""

from __future__ import annotations

import math
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from lorafront.search import study_table
from lorafront.search.samplers import make_sampler
from lorafront.search.search_file import SearchFile
from lorafront.spaces.errors import StateUnreadable
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.objectives import minimized
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

optuna.logging.set_verbosity(optuna.logging.ERROR)
STUDY = "search"  # one study per database
REPEATS_BEFORE_RANDOM = 10  # a sampler that keeps proposing what it knows is helped out by uniform draws
REPEATS_BEFORE_END = 100  # so many in a row mean that the space is exhausted
_TOLD = {Outcome.COMPLETE: TrialState.COMPLETE, Outcome.STOPPED: TrialState.PRUNED, Outcome.DIVERGED: TrialState.PRUNED}


class StudyLedger:
    """One search's study."""

    def __init__(
        self,
        path: Path | None,
        search: SearchFile,
        *,
        create: bool,
        canonical: Callable[[LoraConfiguration], LoraConfiguration] = lambda lora: lora,
    ) -> None:
        """Open the study, or create it.

        Args:
            path: of the SQLite file; none keeps the study in memory, for a replay.
            search: the resolved file.
            create: a new one.
            canonical: the simplest configuration that trains the same on this model, so that equals are not run twice.

        Raises:
            StateUnreadable: the file is no study of this version.
        """
        self.search = search
        self._canonical = canonical
        try:
            self.storage: BaseStorage = InMemoryStorage() if path is None else _storage(path)
            directions = [objective.direction for objective in search.objective_list]
            if create:
                self.study = optuna.create_study(storage=self.storage, study_name=STUDY, directions=directions)
                self.study.set_user_attr(study_table.UID, uuid.uuid4().hex)
                self.study.set_user_attr(study_table.SEARCH, search.model_dump(mode="json"))
            else:
                self.study = optuna.load_study(storage=self.storage, study_name=STUDY)
        except (sqlite3.DatabaseError, optuna.exceptions.OptunaError, KeyError, RuntimeError) as error:
            raise StateUnreadable(f"{path} cannot be opened as a study: {error}") from error
        self.study_id = self.storage.get_study_id_from_name(STUDY)
        trials = self.study.get_trials(deepcopy=False)
        asked = sum("fixed_params" not in trial.system_attrs for trial in trials)
        self.study.sampler = make_sampler(search, asked)
        self.known: dict[str, int] = {}
        self.configurations: dict[int, LoraConfiguration] = {}
        self.references = {key for key in self.study.user_attrs if key.startswith(study_table.REFERENCE)}
        self.recorded = 0
        self.epoch = int(self.study.user_attrs.get(study_table.EPOCH, 0))
        for trial in trials:
            self._remember(trial)

    def _remember(self, trial: FrozenTrial) -> None:
        attributes = trial.user_attrs
        if study_table.CONFIGURATION in attributes and attributes.get(study_table.OUTCOME) != Outcome.NOT_RUN.stored:
            lora = LoraConfiguration(**attributes[study_table.CONFIGURATION])
            self.configurations[trial.number] = lora
            self.known.setdefault(lora.fingerprint, trial.number)
        if trial.state.is_finished() and attributes.get(study_table.OUTCOME) != Outcome.NOT_RUN.stored:
            self.recorded += 1

    def begin_epoch(self) -> int:
        """Count one more driver; its number fences what older ones left behind."""
        self.epoch += 1
        self.study.set_user_attr(study_table.EPOCH, self.epoch)
        return self.epoch

    def note(self, notes: tuple[str, ...]) -> None:
        """Keep what the user should know about the data."""
        self.study.set_user_attr(study_table.NOTES, list(notes))

    @property
    def lived(self) -> float:
        """Seconds that drivers have lived, as of the last trial that ended."""
        return float(self.study.user_attrs.get(study_table.LIVED, 0.0))

    def keep_lived(self, seconds: float) -> None:
        """See `lived`."""
        self.study.set_user_attr(study_table.LIVED, seconds)

    def keep_data(self, token_file: str, rungs: tuple[int, ...], code: Mapping[str, str]) -> None:
        """Keep which token rows and rungs the trials see; a driver that goes on must see the same.

        Args:
            token_file: named by the content of the data.
            rungs: training rows at which trials report.
            code: digest of the file of each of the user's own modules.

        Raises:
            StateUnreadable: the data, the tokenizer, the rungs or the user's code are not those of the search's start.
        """
        found = {"tokens": token_file, "rungs": list(rungs), "code": dict(code)}
        kept = self.study.user_attrs.get(study_table.DATA)
        if kept is None:
            self.study.set_user_attr(study_table.DATA, found)
        elif kept != found:
            raise StateUnreadable(
                "the data, its tokenizer, the rungs or your own code changed since the search began, so new trials "
                "would not compare "
                f"with old ones (began with {kept}, found {found}); restore them, or start a search of another name"
            )

    def note_reference(self, name: str, measured: Mapping[str, float]) -> None:
        """Keep what is measured without adapting; the first to say it counts."""
        key = f"{study_table.REFERENCE}{name}"
        finite = {metric: value for metric, value in measured.items() if math.isfinite(value)}
        if key not in self.references and finite:
            self.study.set_user_attr(key, finite)
            self.references.add(key)

    def running(self) -> list[tuple[int, LoraConfiguration]]:
        """Trials that were started and never told. Those that never got a configuration are told FAIL here."""
        found = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if study_table.CONFIGURATION in trial.user_attrs:
                found.append((trial.number, LoraConfiguration(**trial.user_attrs[study_table.CONFIGURATION])))
            else:
                self._end(
                    trial.number, Report(0, {}, Outcome.NOT_RUN, "asked for by a driver that died"), TrialState.FAIL
                )
        return found

    def ask(self) -> tuple[int, LoraConfiguration] | None:
        """A new configuration that no trial has; None where the space has no more to give."""
        sampler: BaseSampler = self.study.sampler
        try:
            for repeats in range(REPEATS_BEFORE_END):
                if repeats == REPEATS_BEFORE_RANDOM and self.search.sampler != "grid":
                    self.study.sampler = RandomSampler(seed=self.search.seed + len(self.study.trials))
                trial = self.study.ask()
                lora = self._canonical(self.search.space.ask(trial, self.search.training.defaults()))
                earlier = self.known.get(lora.fingerprint)
                trial.set_user_attr(study_table.CONFIGURATION, lora.model_dump(mode="json"))
                if earlier is None:
                    self.known[lora.fingerprint] = trial.number
                    self.configurations[trial.number] = lora
                    return trial.number, lora
                repeated = Report(0, {}, Outcome.NOT_RUN, f"the same as trial {earlier}")
                self._end(trial.number, repeated, TrialState.FAIL)
            return None
        finally:
            self.study.sampler = sampler

    def started(self, number: int) -> None:
        """Note which epoch a trial belongs to."""
        self._set(number, study_table.EPOCH, self.epoch)

    def record_rung(self, number: int, report: Report) -> list[float]:
        """Store what a trial reported at a rung; returns the objectives measured there, each to be minimized."""
        base = {k.removeprefix("base_"): v for k, v in report.measurements.items() if k.startswith("base_") and v}
        self.note_reference(f"bare base in {self.configurations[number].quantization}", base)
        self._set(number, f"{study_table.RUNG}{report.rows}", report.as_json())
        return minimized(report.measurements, self.search.objective_list)

    def tell(self, number: int, report: Report) -> Report:
        """Store how a trial ended, and tell the sampler. Telling twice changes nothing.

        Returns:
            The report as recorded: BAD_METRIC where an objective has no finite value.
        """
        outcome = report.outcome or Outcome.INFRA_LOST
        names = [objective.name for objective in self.search.objective_list]
        values = [report.measurements.get(name) for name in names]
        bad = [
            name
            for name, value in zip(names, values, strict=True)
            if not isinstance(value, (int, float)) or not math.isfinite(value)
        ]
        if outcome is Outcome.COMPLETE and bad:
            report = Report(
                report.rows,
                report.measurements,
                Outcome.BAD_METRIC,
                "no finite number for " + ", ".join(f"{name} (got {report.measurements.get(name)!r})" for name in bad),
            )
            outcome = Outcome.BAD_METRIC
        state = _TOLD.get(outcome, TrialState.FAIL)
        self._end(number, report, state, values if state is TrialState.COMPLETE else None)
        return report

    def _end(self, number: int, report: Report, state: TrialState, values: Any = None) -> None:
        outcome = report.outcome or Outcome.INFRA_LOST
        if self._frozen(number).state.is_finished():
            return
        self._set(number, study_table.OUTCOME, outcome.stored)
        self._set(number, study_table.RESULT, report.as_json())
        self.study.tell(number, values, state, skip_if_finished=True)
        self.recorded += outcome.counts

    def _frozen(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._id(number))

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._id(number), key, value)


def _storage(path: Path) -> RDBStorage:
    """SQLite with WAL and synchronous=FULL: a commit survives a power cut, readers never wait for the writer.

    Set through `creator`: a listener on SQLAlchemy's engine leaves `journal_mode=delete`.
    """

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"creator": connect})
