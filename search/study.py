"""The study: Optuna storage, asked and told. The only writer of a study.

The sampler is asked in a copy in memory (`sampler_view.py`), which hears of everything right after the storage.

Every value is in the database before anybody else hears of it. A trial's outcome and result are attributes that are set
before it is told, so a driver that dies in between leaves a trial that the next one can tell the same way.
"""

from __future__ import annotations

import json
import math
import random
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from lorafront.search import study_table
from lorafront.search.budget import Spent
from lorafront.search.database import STUDY, StudyPlace, keep_place, new_place, place_of
from lorafront.search.sampler_view import SamplerView
from lorafront.search.search_end import SearchEnd
from lorafront.search.search_file import Budget, SearchFile
from lorafront.search.start_points import BASELINE, Start
from lorafront.search.study_lock import DRIVER
from lorafront.search.study_storage import PostgresStorage, sqlite_storage
from lorafront.search.warm_start import Observation, value_of
from lorafront.spaces.errors import SearchOwned, StateUnreadable
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.objectives import minimized
from lorafront.spaces.uniform_draw import UniformDraw
from lorafront.trainables.execution import Execution
from lorafront.trainables.fault_points import reached
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

optuna.logging.set_verbosity(optuna.logging.ERROR)
# What a full disk, a lock that is never released or a lost connection raise.
WRITE_ERRORS = (OSError, sqlite3.Error, SQLAlchemyError, optuna.exceptions.StorageInternalError)
REPEATS_BEFORE_RANDOM = 10  # a sampler that keeps proposing what it knows is helped out by uniform draws
REPEATS_OF_GRID = 100  # it goes on in order, so it passes what is known sooner or later
# So many draws in vain mean that the space is exhausted. They cost no storage, so a discrete space gets twenty for each
# of its points: the last one left is missed once in 10**8.
DRAWS, DRAWS_PER_POINT, MOST_DRAWS = 1000, 20, 20_000
_TOLD = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.STOPPED: TrialState.PRUNED,
    Outcome.CANCELLED: TrialState.PRUNED,
    Outcome.DIVERGED: TrialState.PRUNED,
}


class StudyLedger:
    """One search's study."""

    def __init__(
        self,
        path: Path | None,
        search: SearchFile,
        *,
        create: bool,
        canonical: Callable[[LoraConfiguration], LoraConfiguration] = lambda lora: lora,
        breaks: Callable[[LoraConfiguration], str] = lambda _lora: "",
    ) -> None:
        """Open the study, or create it.

        Args:
            path: of the SQLite file, which may be elsewhere (search/database.py); none keeps the study in memory, for a
                replay.
            search: the resolved file.
            create: a new one.
            canonical: the simplest configuration that trains the same on this model, so that equals are not run twice.
            breaks: why a configuration is in vain, so that it is not proposed; empty where it is not.

        Raises:
            StateUnreadable: the file is no study of this version.
            SearchOwned: another driver writes it.
        """
        self.search = search
        self._canonical = canonical
        self._breaks = breaks
        place = _place(path, search.confirms, create=create)
        try:
            self.storage: BaseStorage = _storage(place)
            name = place.study if place else STUDY
            directions = [objective.direction for objective in search.objective_list]
            if create:
                self.study = optuna.create_study(storage=self.storage, study_name=name, directions=directions)
                self.study.set_user_attr(study_table.UID, uuid.uuid4().hex)
                self.study.set_user_attr(study_table.SEARCH, search.model_dump(mode="json"))
                if place:
                    keep_place(place)
            else:
                self.study = optuna.load_study(storage=self.storage, study_name=name)
        except (SearchOwned, StateUnreadable):
            raise
        except (sqlite3.DatabaseError, SQLAlchemyError, optuna.exceptions.OptunaError, KeyError, RuntimeError) as error:
            raise StateUnreadable(f"{place or path} cannot be opened as a study: {error}") from error
        if isinstance(self.storage, PostgresStorage):
            self._begin_to_drive(self.storage)
        self.study_id = self.storage.get_study_id_from_name(name)
        trials = self.study.get_trials(deepcopy=False)
        self.view = SamplerView(search, trials)
        self.known: dict[str, int] = {}
        self.configurations: dict[int, LoraConfiguration] = {}
        self.references = {key for key in self.study.user_attrs if key.startswith(study_table.REFERENCE)}
        self._ends: dict[int, dict[str, int]] = {}
        self.recorded = 0
        self.imported: dict[str, str] = {}  # fingerprint to where it was trained with the same numbers
        self.end = self._read_end()
        self._ids = {trial.number: trial._trial_id for trial in trials}  # noqa: SLF001  # Optuna has no public name for it
        self._starts: list[Start] = []
        self._baseline = ""  # its fingerprint
        self.epoch = int(self.study.user_attrs.get(study_table.EPOCH, 0))
        for trial in trials:
            self._remember(trial)
        self._take_up_starts()

    def _begin_to_drive(self, storage: PostgresStorage) -> None:
        """Before anything is read that another driver could change: who comes after it is noticed by this."""
        driver = uuid.uuid4().hex
        self.study.set_user_attr(DRIVER, driver)
        storage.lock.driver = json.dumps(driver)

    def _remember(self, trial: FrozenTrial) -> None:
        attributes = trial.user_attrs
        if study_table.ENDS in attributes:
            self._ends[trial.number] = dict(attributes[study_table.ENDS])
        stored = attributes.get(study_table.OUTCOME)
        if stored == Outcome.IMPORTED.stored:
            self._remember_imported(attributes)
            return
        lora = LoraConfiguration(**attributes[study_table.CONFIGURATION])
        self.configurations[trial.number] = lora
        self.known.setdefault(lora.fingerprint, trial.number)
        self.recorded += trial.state.is_finished()

    def _remember_imported(self, attributes: Mapping[str, Any]) -> None:
        if attributes[study_table.REPEATABLE]:
            lora = LoraConfiguration(**attributes[study_table.CONFIGURATION])
            self.imported[lora.fingerprint] = attributes[study_table.IMPORTED_FROM]

    def _read_end(self) -> SearchEnd | None:
        stored = self.study.user_attrs.get(study_table.ENDED)
        return SearchEnd.of(stored) if stored else None

    def begin_epoch(self, after: int = 0) -> int:
        """Count one more driver; its number fences what older ones left behind.

        Args:
            after: it is larger than that, where a study that was restored from a copy knows only of earlier ones.
        """
        self.epoch = max(self.epoch, after) + 1
        self.study.set_user_attr(study_table.EPOCH, self.epoch)
        return self.epoch

    def note(self, notes: tuple[str, ...]) -> None:
        """Keep what the user should know about the data."""
        self.study.set_user_attr(study_table.NOTES, list(notes))

    @property
    def spent(self) -> Spent:
        """What counts against the budget; times as of the last `keep_spent`."""
        attributes = self.study.user_attrs
        seconds, gpu_seconds = (float(attributes.get(name, 0.0)) for name in (study_table.LIVED, study_table.GPU))
        return Spent(self.recorded, seconds, gpu_seconds)

    def keep_spent(self, seconds: float, gpu_seconds: float) -> None:
        """Keep the times; see `Spent`."""
        self.study.set_user_attr(study_table.LIVED, seconds)
        self.study.set_user_attr(study_table.GPU, gpu_seconds)

    def keep_budget(self, budget: Budget) -> None:
        """Keep a budget that has grown; nothing where it has not."""
        self.search = self.search.model_copy(update={"budget": budget})
        kept = self.study.user_attrs[study_table.SEARCH]
        if Budget.model_validate(kept["budget"]) != budget:
            self.study.set_user_attr(study_table.SEARCH, {**kept, "budget": budget.model_dump(mode="json")})

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
        """Trials that were started and never told; how one ended that a driver knew when it died is told here."""
        found = []
        for number, lora in self.configurations.items():
            trial = self.view.trial(number)
            if trial.state is TrialState.RUNNING and study_table.RESULT in trial.user_attrs:
                self.tell(number, Report.from_json(trial.user_attrs[study_table.RESULT]))
            elif trial.state is TrialState.RUNNING:
                found.append((number, lora))
        return found

    def keep_starts(self, starts: Sequence[Start]) -> None:
        """Keep what is to be tried first. Only the first list counts, so a search that goes on never gets another."""
        if study_table.STARTS not in self.study.user_attrs:
            self.study.set_user_attr(study_table.STARTS, [start.as_json() for start in starts])
            self._take_up_starts()

    def plan(self, search: SearchFile, replicates: Sequence[LoraConfiguration], unfinished: int) -> None:
        """Keep which replicates come next, and a budget that is just enough for them.

        Args:
            search: of the replicates, whose setting may have changed since it began.
            replicates: to be tried after all that is recorded.
            unfinished: trials that come before them, because an earlier driver left them.
        """
        trials = max(1, self.recorded + unfinished + len(replicates))
        self.search = search.model_copy(update={"budget": search.budget.model_copy(update={"trials": trials})})
        self.study.set_user_attr(study_table.SEARCH, self.search.model_dump(mode="json"))
        parameters = self.search.space.parameters()
        values = [{name: value_of(lora, name, one) for name, one in parameters.items()} for lora in replicates]
        self._starts = [Start("replicate", params, own=True) for params in values]

    def _take_up_starts(self) -> None:
        """Those that no trial has yet: a driver may have died between any two of them."""
        kept = [Start(**raw) for raw in self.study.user_attrs.get(study_table.STARTS, ())]
        self._baseline = next((start.fingerprint for start in kept if start.label == BASELINE), "")
        self._starts = [
            start for start in kept if self._configuration(FixedTrial(start.params)).fingerprint not in self.known
        ]

    def is_baseline(self, number: int) -> bool:
        """Whether a trial is the user's own recipe."""
        return bool(self._baseline) and self.configurations[number].fingerprint == self._baseline

    @property
    def warmed(self) -> bool:
        """True where the results of earlier searches are in the study."""
        return study_table.WARMED in self.study.user_attrs

    def keep_observations(self, observations: Sequence[Observation]) -> None:
        """Add results of earlier searches, each once however often a driver dies in between."""
        names = [objective.name for objective in self.search.objective_list]
        there = {trial.user_attrs.get(study_table.IMPORTED_FROM) for trial in self.view.trials}
        for seen in observations:
            if seen.source in there:
                continue
            fixed = FixedTrial(seen.params)
            self._configuration(fixed)  # which asks for every parameter, and so notes its distribution
            attributes = {
                study_table.CONFIGURATION: seen.lora.model_dump(mode="json"),
                study_table.OUTCOME: Outcome.IMPORTED.stored,
                study_table.RESULT: replace(seen.report, outcome=Outcome.IMPORTED).as_json(),
                study_table.IMPORTED_FROM: seen.source,
                study_table.REPEATABLE: seen.repeatable,
            }
            values = [seen.report.measurements[name] for name in names]
            self._add(
                create_trial(
                    params=fixed.params, distributions=fixed.distributions, values=values, user_attrs=attributes
                )
            )
            self._remember_imported(attributes)
        self.study.set_user_attr(study_table.WARMED, len(observations))

    def add_complete(self, params: Mapping[str, Any], report: Report) -> int:
        """Add a trial that somebody else trained; its number.

        Args:
            params: its values under the names of the space.
            report: what it measured: every objective, and that it is complete.
        """
        fixed = FixedTrial(dict(params))
        lora = self._configuration(fixed)  # which asks for every parameter, and so notes its distribution
        attributes = {
            study_table.CONFIGURATION: lora.model_dump(mode="json"),
            study_table.OUTCOME: Outcome.COMPLETE.stored,
            study_table.RESULT: report.as_json(),
        }
        values = [report.measurements[objective.name] for objective in self.search.objective_list]
        number = self._add(
            create_trial(params=fixed.params, distributions=fixed.distributions, values=values, user_attrs=attributes)
        )
        self.recorded += 1
        return self._began(number, lora)[0]

    def close(self) -> None:
        """Leave the file to others: with the last connection gone, all is in the database itself."""
        if isinstance(self.storage, RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()
        if isinstance(self.storage, PostgresStorage):
            self.storage.give_back()

    def ask(self) -> tuple[int, LoraConfiguration] | None:
        """A new configuration that no trial has and that is not known to break a limit.

        Start points come first, then what the sampler proposes; where that is known already, uniform draws.

        Returns:
            None where the space has no more to give.
        """
        while self._starts:
            start = self._starts.pop(0)
            lora = self._configuration(FixedTrial(start.params))
            if lora.fingerprint not in self.known and (start.own or not self._not_again(lora)):
                return self._ask_for(start.params)
        if self.search.confirms is not None:
            return None  # nobody searches there
        most = REPEATS_OF_GRID if self.search.sampler == "grid" else REPEATS_BEFORE_RANDOM
        for _ in range(most if self.end is None else 0):
            trial = self.view.propose()
            lora = self._configuration(trial)
            if not self._not_again(lora):
                return self._take(trial, lora)
            self.view.refuse(trial, self.known.get(lora.fingerprint))
        return self._ask_for_a_draw()

    def _configuration(self, trial: Trial | FixedTrial | UniformDraw) -> LoraConfiguration:
        return self._canonical(self.search.space.ask(trial, self.search.training.defaults()))

    def _not_again(self, lora: LoraConfiguration) -> str:
        """Why a configuration is not run; empty where it is."""
        if lora.fingerprint in self.known:
            return f"the same as trial {self.known[lora.fingerprint]}"
        if lora.fingerprint in self.imported:
            return f"the same as {self.imported[lora.fingerprint]}, with the same seed"
        return self._breaks(lora)

    def _take(self, proposal: Trial, lora: LoraConfiguration) -> tuple[int, LoraConfiguration]:
        """Write a proposal as a running trial."""
        set_so_far = self.view.proposed(proposal)
        attributes = {study_table.CONFIGURATION: lora.model_dump(mode="json")}
        number = self._create(
            create_trial(
                state=TrialState.RUNNING,
                params=set_so_far.params,
                distributions=set_so_far.distributions,
                user_attrs=attributes,
                system_attrs=set_so_far.system_attrs,
            )
        )
        self.view.take(proposal, number, attributes)
        return self._began(number, lora)

    def _ask_for(self, params: Mapping[str, Any]) -> tuple[int, LoraConfiguration]:
        """A running trial with these values."""
        fixed = FixedTrial(dict(params))
        lora = self._configuration(fixed)  # which asks for every parameter, and so notes its distribution
        running = create_trial(
            state=TrialState.RUNNING,
            params=fixed.params,
            distributions=fixed.distributions,
            user_attrs={study_table.CONFIGURATION: lora.model_dump(mode="json")},
            system_attrs={"fixed_params": fixed.params},  # as Optuna marks what no sampler proposed
        )
        return self._began(self._add(running), lora)

    def _began(self, number: int, lora: LoraConfiguration) -> tuple[int, LoraConfiguration]:
        self.known[lora.fingerprint] = number
        self.configurations[number] = lora
        return number, lora

    def _add(self, trial: FrozenTrial) -> int:
        """A trial that the sampler did not propose; its number."""
        number = self._create(trial)
        self.view.add(number, trial)
        return number

    def _create(self, trial: FrozenTrial) -> int:
        """Written in one transaction: there is all of it, or nothing.

        `Study.ask` and `Study.enqueue_trial` would leave one without a configuration where a driver dies in between.
        """
        trial_id = self.storage.create_new_trial(self.study_id, trial)
        number = self.storage.get_trial_number_from_id(trial_id)
        self._ids[number] = trial_id
        return number

    def _ask_for_a_draw(self) -> tuple[int, LoraConfiguration] | None:
        size, continuous = self.search.space.size()
        draws = DRAWS if continuous else min(MOST_DRAWS, max(DRAWS, DRAWS_PER_POINT * size))
        generator = random.Random(self.search.seed + len(self.known))  # noqa: S311  # a search, no secret
        for _ in range(draws if self.end is None else 0):
            draw = UniformDraw(generator)
            if not self._not_again(self._configuration(draw)):
                return self._ask_for(draw.params)
        if self.end is None:
            self.end = SearchEnd.SPACE_EXHAUSTED
            self.study.set_user_attr(study_table.ENDED, self.end.stored)
        return None

    def started(self, number: int) -> None:
        """Note which epoch a trial belongs to."""
        self._set(number, study_table.EPOCH, self.epoch)

    def keep_execution(self, number: int, execution: Execution) -> None:
        """Keep how a trial is executed: whoever goes on with it does the same."""
        self._set(number, study_table.EXECUTION, execution.model_dump())

    def keep_standalone(self, number: int, measured: Mapping[str, Any]) -> None:
        """Keep what a trial measured alone, beside what was told of it; empty where that failed: it is not tried again.

        What the sampler knows stays as it was told.
        """
        self.study.set_user_attr(f"{study_table.STANDALONE}{number}", dict(measured))

    def newest_rung(self, number: int) -> int:
        """Training rows of the newest rung that is stored; 0 where there is none."""
        reports = study_table.rungs(self.view.trial(number).user_attrs)
        return int(reports[-1]["rows"]) if reports else 0

    def ends(self, number: int) -> dict[str, int]:
        """How often a trial that is to be run again was lost, by kind (search/retries.py)."""
        return self._ends.get(number, {})

    def count_end(self, number: int, kind: str) -> None:
        """A trial was lost in this way, and is not told because it is run again."""
        ends = {**self.ends(number), kind: self.ends(number).get(kind, 0) + 1}
        self._set(number, study_table.ENDS, ends)
        self._ends[number] = ends

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
        if self.view.trial(number).state.is_finished():
            return
        self._set(number, study_table.RESULT, report.as_json())  # first: with it `running` knows how the trial ended
        self._set(number, study_table.OUTCOME, outcome.stored)
        reached("after_outcome_before_tell")
        self.storage.set_trial_state_values(self._ids[number], state, values)
        self.view.end(number, state, values)
        self.recorded += outcome.counts
        reached("after_tell_before_mlflow")

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._ids[number], key, value)
        self.view.set(number, key, value)


def _place(path: Path | None, confirms: str | None, *, create: bool) -> StudyPlace | None:
    """Where the study is, or goes: that of replicates to the one whose they are. None: it stays in memory."""
    if path is None:
        return None
    original = path.parent.parent / confirms / path.name if confirms else None
    return new_place(path, original) if create else place_of(path)


def _storage(place: StudyPlace | None) -> BaseStorage:
    if place is None:
        return InMemoryStorage()
    return PostgresStorage(place) if place.url else sqlite_storage(place.file)
