"""Whether what a search has written fits together: the study, the trials' files, MLflow, the front. Changes nothing.

`examine` gives a finding for each thing that does not, with what mends it. The study is the source of truth, so most
findings are mended by a command; what is damaged for good is said as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorafront.search.database import reading
from lorafront.search.front import as_json, front_of
from lorafront.search.mlflow_reader import Run
from lorafront.search.paths import SearchPaths
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.errors import CheckpointInvalid, StateUnreadable
from lorafront.trainables.checkpoint import ASIDE, read_manifest
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import Report

STATES = {Outcome.COMPLETE: "COMPLETE", Outcome.STOPPED: "PRUNED", Outcome.DIVERGED: "PRUNED"}
STATUSES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit.

    Attributes:
        what: and where.
        fix: what the user can do.
        damage: True where something is lost, so that no command mends it.
    """

    what: str
    fix: str
    damage: bool = False

    def __str__(self) -> str:
        return f"{self.what}\n  fix: {self.fix}"


def examine(paths: SearchPaths, table: StudyTable, *, driven: bool) -> list[Finding]:
    """Compare the study with itself, with the trials' files and with the front's file.

    Args:
        paths: of the search.
        table: its study.
        driven: a process runs the search now, so what is unfinished is no finding.
    """
    finished = [trial for trial in table.trials if trial.result is not None]
    stored = _stored_values(paths.study_db)
    found = [*_study(paths.name, table)]
    for trial in finished:
        found += _values(trial, stored.get(trial.number, {}), [o.name for o in table.search.objective_list])
        found += _files(paths, trial)
    if not driven:
        found += _unfinished(paths, table.running)
        found += _strays(paths, table)
        found += _front_file(paths, table)
    return found


def _study(name: str, table: StudyTable) -> Iterator[Finding]:
    """States, outcomes, budget and repeats, within the study itself."""
    seen: dict[str, int] = {}
    for trial in table.trials:
        ended = trial.state not in {"RUNNING", "WAITING"}
        if ended and trial.outcome is None:
            yield Finding(
                f"trial {trial.number} is {trial.state} and nothing says how it ended",
                "something else than lorafront wrote to the study; restore it from a copy",
                damage=True,
            )
        elif trial.outcome is not None and STATES.get(trial.outcome, "FAIL") != trial.state:
            yield Finding(
                f"trial {trial.number} ended as {trial.outcome.stored} and is {trial.state}",
                "something else than lorafront wrote to the study; restore it from a copy",
                damage=True,
            )
        if trial.outcome is not None and trial.outcome.counts:
            first = seen.setdefault(trial.lora.fingerprint, trial.number)
            if first != trial.number:
                yield Finding(
                    f"trials {first} and {trial.number} are one configuration and count twice",
                    f"leave them; `lorafront resume {name}` will not run it a third time",
                    damage=True,
                )


def _values(trial: TrialRecord, stored: Mapping[int, float], names: list[str]) -> Iterator[Finding]:
    """What Optuna's samplers see against what the report says."""
    if trial.state != "COMPLETE":
        return
    for index, name in enumerate(names):
        if stored.get(index) != trial.reported.get(name):
            yield Finding(
                f"trial {trial.number}: {name} is {stored.get(index)} for the sampler and "
                f"{trial.reported.get(name)} in its report",
                "something else than lorafront wrote to the study; restore it from a copy",
                damage=True,
            )


def _files(paths: SearchPaths, trial: TrialRecord) -> Iterator[Finding]:
    """A finished trial's result file and last checkpoint."""
    folder = paths.trial(trial.number, trial.epoch)
    try:
        reports = folder.read_reports()
    except StateUnreadable as error:
        reports = []
        yield Finding(str(error), f"the study has the result; delete {folder.result}")
    if reports and trial.result is not None and not _same(reports[-1], trial.result):
        yield Finding(
            f"{folder.result} says other numbers than the study has for trial {trial.number}",
            f"the study counts; delete {folder.result}",
        )
    if trial.state != "COMPLETE" or trial.last is None:
        return
    checkpoint = folder.checkpoint(trial.last.rows)
    try:
        read_manifest(checkpoint)
    except CheckpointInvalid as error:
        yield Finding(
            f"trial {trial.number} cannot be exported: {error}",
            f"its numbers stand; restore {checkpoint} from a copy, or train the configuration in a search of its own",
            damage=True,
        )


def _same(written: Report, kept: Report) -> bool:
    told = kept.outcome is written.outcome or kept.outcome is Outcome.BAD_METRIC
    return told and kept.measurements == written.measurements


def _unfinished(paths: SearchPaths, running: Iterable[TrialRecord]) -> Iterator[Finding]:
    fix = f"lorafront resume {paths.name}"
    for trial in running:
        if paths.trial(trial.number, trial.epoch).result.is_file():
            yield Finding(f"trial {trial.number} finished and is not recorded: its driver died", fix)
        else:
            yield Finding(f"trial {trial.number} was interrupted", fix)


def _strays(paths: SearchPaths, table: StudyTable) -> Iterator[Finding]:
    """Folders that nothing refers to."""
    known = {trial.number for trial in table.trials}
    finished = {trial.number for trial in table.trials if trial.result is not None}
    for folder in sorted(paths.trials.glob("*")):
        if not folder.name.isdigit() or int(folder.name) not in known:
            yield Finding(f"{folder} belongs to no trial of the study", f"delete {folder}")
        elif int(folder.name) in finished:
            for aside in sorted(folder.rglob(f"*{ASIDE}*")):
                yield Finding(f"{aside} was left half-written by a worker that died", f"delete {aside}")


def _front_file(paths: SearchPaths, table: StudyTable) -> Iterator[Finding]:
    """`front.json` is written when a search ends, whichever way; a running one has none or an old one."""
    if not paths.front_json.is_file():
        return
    expected = as_json(front_of(table), table.search.objective_list)
    try:
        same = json.loads(paths.front_json.read_text(encoding="utf-8")) == json.loads(json.dumps(expected))
    except (OSError, ValueError):
        same = False
    if not same:
        yield Finding(f"{paths.front_json} is not the front of the study", f"lorafront resume {paths.name}")


def _stored_values(study: Path) -> dict[int, dict[int, float]]:
    """Objective values as Optuna stores them, by trial number and objective."""
    query = "SELECT number, objective, value FROM trial_values JOIN trials USING (trial_id) WHERE study_id = {study}"
    found: dict[int, dict[int, float]] = {}
    with reading(study) as read:
        for number, objective, value in read(query):
            found.setdefault(number, {})[objective] = value
    return found


def examine_runs(name: str, table: StudyTable, runs: Iterable[Run]) -> list[Finding]:
    """Compare the study with what MLflow has of it."""
    fix = f"lorafront mlflow-sync {name}"
    by_trial: dict[int | None, list[Run]] = {}
    for run in runs:
        by_trial.setdefault(run.trial, []).append(run)
    found = [
        Finding(
            f"MLflow has {len(own)} runs of {'the search' if number is None else f'trial {number}'}",
            "delete all but the newest in the UI",
        )
        for number, own in by_trial.items()
        if len(own) > 1
    ]
    if None not in by_trial:
        found.append(Finding("MLflow has no run of the search", fix))
    members = {trial.number for trial in front_of(table)}
    for trial in table.trials:
        if trial.result is None:
            continue
        own = by_trial.get(trial.number)
        wrong = _run_differs(trial, own[-1], member=trial.number in members) if own else "has no run in MLflow"
        if wrong:
            found.append(Finding(f"trial {trial.number} {wrong}", fix))
    return found


def _run_differs(trial: TrialRecord, run: Run, *, member: bool) -> str:
    """What is wrong with a finished trial's run; empty where nothing is."""
    if run.status != STATUSES[trial.state]:
        return f"ended as {trial.state}, its MLflow run is {run.status}"
    if trial.state != "COMPLETE":
        return ""
    for name, value in run.metrics.items():
        if name in trial.measurements and trial.measurements[name] != value:
            return f"has {name} {trial.measurements[name]}, its MLflow run {value}"
    if (run.tags.get("pareto") == "true") != member:
        return f"is {'' if member else 'not '}on the front, its MLflow run is tagged otherwise"
    return ""
