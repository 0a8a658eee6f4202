"""MLflow as a view of the study: one parent run per search, one child run per trial.

One thread of the driver projects the study into runs; live logging, catching up after an outage and `mlflow-sync` are
the same code. Runs are found by tags and values are sent with the study's own steps and times, so sending again changes
nothing. Nothing here can stop or delay a trial.
"""

from __future__ import annotations

from lorafront.search.environment import heavy_imports  # isort: skip  # before MLflow

import contextlib
import math
import os
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search.baseline import baseline_of
from lorafront.search.front import front_of
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.search_file import SearchFile
from lorafront.search.study_table import StudyTable, TrialRecord, read_study
from lorafront.search.tables import front_csv, summary
from lorafront.spaces.parameters import describe
from lorafront.trainables.checkpoint import ASIDE
from lorafront.trainables.fault_points import reached

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 5
CYCLE_SECONDS = 2.0
RETRY_SECONDS = 20.0
GOODBYE_SECONDS = 60.0  # the last projection may take so long before the driver leaves it to `mlflow-sync`
SEARCH_TAG, TRIAL_TAG, UID_TAG = "lorafront.search", "lorafront.trial", "lorafront.uid"
# What a trial has one of; everything else that is a number is a curve over the rungs.
ONCE = frozenset(
    {"peak_vram_gb", "peak_reserved_gb", "process_memory_gb", "predicted_peak_vram_gb", "vram_error_percent",
     "trainable_params", "trainable_percent", "adapter_mb",
     "setup_seconds", "seconds_per_epoch"}
)  # fmt: skip

TAGS = ("engine", "engine_reason", "peak_vram_source")  # measurements in words


@dataclass(frozen=True)
class Tracking:
    """Where runs go.

    Attributes:
        uri: MLflow's tracking URI.
        source: who said so: `tracking.uri`, `MLFLOW_TRACKING_URI`, or the default.
        artifacts: where artifacts go; None leaves it to the server.
        problem: why it cannot be reached; empty where it can.
    """

    uri: str
    source: str
    artifacts: str | None
    problem: str = ""


def open_tracking(search: SearchFile, root: RootPaths) -> Tracking:
    """Decide where runs go, and ask a server whether it is there (five seconds at most)."""
    if search.tracking.uri:
        uri, source = search.tracking.uri, "tracking.uri"
    elif os.environ.get("MLFLOW_TRACKING_URI"):
        uri, source = os.environ["MLFLOW_TRACKING_URI"], "MLFLOW_TRACKING_URI"
    else:
        artifacts = (root.mlflow_artifacts / search.name).absolute().as_uri()
        return Tracking(f"sqlite:///{root.mlflow_db.absolute()}", "default", artifacts)
    return Tracking(uri, source, None, _unreachable(uri))


def shown(uri: str) -> str:
    """The address without the user and password that an environment variable may carry."""
    return re.sub(r"://[^/@]*@", "://…@", uri)


def _unreachable(uri: str) -> str:
    scheme = uri.split(":", 1)[0]
    if scheme not in {"http", "https"}:
        known = {"sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc"}
        if scheme.split("+")[0] in known:
            return ""
        return f"MLflow has no store for {shown(uri)}; give http(s)://, sqlite:/// or postgresql://"
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS):  # noqa: S310  # http(s) only
            return ""
    except urllib.error.HTTPError:
        return ""  # somebody answers; a server behind a login says 401
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"MLflow at {shown(uri)} cannot be reached ({getattr(error, 'reason', error)})"


@contextmanager
def following(
    tracking: Tracking,
    paths: SearchPaths,
    say: Callable[[str], None],
    patience: Callable[[float], float] = lambda seconds: seconds,
) -> Iterator[None]:
    """Project the study into MLflow while the block runs, and once more at its end; says if that one failed.

    `patience` shortens the seconds that the last projection may take.
    """
    stop = threading.Event()
    failures: list[str] = []
    thread = threading.Thread(target=_follow, args=(tracking, paths, stop, failures), name="mlflow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(patience(GOODBYE_SECONDS))
        if thread.is_alive() or failures:
            reason = failures[-1] if failures else "it takes too long"
            say(f"MLflow does not have all runs ({reason}); write them with: lorafront mlflow-sync {paths.name}")


def _follow(tracking: Tracking, paths: SearchPaths, stop: threading.Event, failures: list[str]) -> None:
    projection: Projection | None = None
    wait = CYCLE_SECONDS
    while True:
        last = stop.wait(wait)
        wait = CYCLE_SECONDS
        try:
            away = _unreachable(tracking.uri) if tracking.uri.startswith("http") else ""
            if away:
                failures[:], wait = [away], RETRY_SECONDS
            else:
                if projection is None:
                    with heavy_imports("mlflow"):
                        import mlflow  # noqa: F401
                    projection = Projection(tracking, paths)
                projection.update(read_study(paths.study_db), over=last)
                failures.clear()
        except Exception as error:  # noqa: BLE001  # a thread's outermost line: tracking must never end a search
            projection, wait = None, RETRY_SECONDS
            failures[:] = [f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"]
        if last:
            return


def sync(tracking: Tracking, paths: SearchPaths, step: Callable[[int, int], None] = lambda _done, _all: None) -> int:
    """Write all runs of a search, or bring them up to date. Returns the number of trials.

    `step` hears before each trial how many are done, of how many.

    Raises:
        MlflowException: the store refuses.
    """
    table = read_study(paths.study_db)
    Projection(tracking, paths).update(table, over=True, step=step)
    return len(table.trials)


def _create_store(uri: str) -> None:
    """Make a new SQLite store whole or not at all.

    MLflow lays out its tables in dozens of steps; a process that dies between two leaves a file that it never opens
    again.
    """
    from mlflow import MlflowClient

    db = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or db.exists():
        return
    db.parent.mkdir(parents=True, exist_ok=True)
    aside = db.with_name(f"{db.name}{ASIDE}{uuid.uuid4().hex[:8]}")
    try:
        MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another driver was faster
            db.hardlink_to(aside)
    finally:
        aside.unlink(missing_ok=True)


@dataclass
class Projection:
    """Runs of one search in one MLflow store."""

    tracking: Tracking
    paths: SearchPaths
    _parent: str = ""
    _runs: dict[int, str] = field(default_factory=dict)
    _sent: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def update(
        self, table: StudyTable, *, over: bool, step: Callable[[int, int], None] = lambda _done, _all: None
    ) -> None:
        """Send what is new. `over`: nobody drives the search any more, so the parent ends and gets its artifacts."""
        client = self._client()
        if not self._parent:
            self._find_runs(client, table)
        members = {trial.number for trial in front_of(table)}
        for index, trial in enumerate(table.trials):
            step(index, len(table.trials))
            seen = (trial.state, len(trial.rungs), trial.number in members, bool(trial.standalone))
            if self._sent.get(trial.number) != seen:
                self._send(client, trial, table, pareto=trial.number in members)
                self._sent[trial.number] = seen
        if over:
            self._end(client, table)

    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        if not self._parent:
            _create_store(self.tracking.uri)
        return MlflowClient(tracking_uri=self.tracking.uri)

    def _find_runs(self, client: MlflowClient, table: StudyTable) -> None:
        name = table.search.name
        experiment = client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else client.create_experiment(
                name,
                artifact_location=self.tracking.artifacts,
                tags={"mlflow.experimentKind": "custom_model_development"},  # the UI opens on the table of runs
            )
        )
        token = None
        parent = ""
        while True:
            page = client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{table.uid}'", page_token=token)
            for run in page:
                number = run.data.tags.get(TRIAL_TAG)
                if number is None:
                    parent = run.info.run_id
                else:
                    self._runs[int(number)] = run.info.run_id
            token = page.token
            if not token:
                break
        self._experiment = experiment_id
        self._parent = parent or self._new_parent(client, table)
        client.update_run(self._parent, status="RUNNING")

    def _new_parent(self, client: MlflowClient, table: StudyTable) -> str:
        from mlflow.entities import Param

        search = table.search
        started = _millis(table.trials[0].started) if table.trials else None
        run = client.create_run(
            self._experiment,
            start_time=started,
            run_name=search.name,
            tags={SEARCH_TAG: search.name, UID_TAG: table.uid},
        )
        facts = {
            "model": search.model.name, "task": search.task, "data": search.data.path, "format": search.data.format,
            "objectives": ", ".join(objective.name for objective in search.objective_list),
            "constraints": ", ".join(map(str, search.limits)) or "none",
            "budget.trials": search.budget.trials, "seed": search.seed,
        }  # fmt: skip
        space = {f"space.{name}": describe(value) for name, value in search.space.parameters().items()}
        params = [Param(key, str(value)[:6000]) for key, value in {**facts, **space}.items()]
        client.log_batch(run.info.run_id, params=params)
        client.log_artifact(run.info.run_id, str(self.paths.search_yaml))
        return str(run.info.run_id)

    def _send(self, client: MlflowClient, trial: TrialRecord, table: StudyTable, *, pareto: bool) -> None:
        from mlflow.entities import Param, RunTag

        if trial.number not in self._runs:
            self._runs[trial.number] = self._new_child(client, trial, table)
            reached("mid_mlflow")
        run_id = self._runs[trial.number]
        params = [Param(key, str(value)) for key, value in trial.lora.model_dump(mode="json").items()]
        tags = {"pareto": "true" if pareto else "false"} if trial.state == "COMPLETE" else {}
        if trial.outcome is not None:
            tags |= {"outcome": trial.outcome.value, "reason": trial.outcome.stored}
        if trial.result is not None and trial.result.error:
            tags["error"] = trial.result.error[-4000:]
        if trial is baseline_of(table):
            tags["baseline"] = "true"
        if trial.execution is not None:
            tags["execution"] = trial.execution.label
        tags |= {name: str(trial.measurements[name]) for name in TAGS if name in trial.measurements}
        client.log_batch(
            run_id,
            metrics=list(_metrics(trial)),
            params=params,  # the same again is no change; a run that was cut short gets them now
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        if trial.ended is not None:
            client.set_terminated(run_id, _status(trial), end_time=_millis(trial.ended))

    def _new_child(self, client: MlflowClient, trial: TrialRecord, table: StudyTable) -> str:
        run = client.create_run(
            self._experiment,
            start_time=_millis(trial.started),
            run_name=f"{trial.number} {trial.lora.label}",
            tags={
                "mlflow.parentRunId": self._parent,
                SEARCH_TAG: table.search.name,
                UID_TAG: table.uid,
                TRIAL_TAG: str(trial.number),
            },
        )
        return str(run.info.run_id)

    def _end(self, client: MlflowClient, table: StudyTable) -> None:
        from mlflow.entities import Metric

        members = front_of(table)
        now = max((_millis(trial.ended) for trial in table.trials if trial.ended), default=0)
        counts = {"trials": len(table.counted), "trials_complete": len(table.complete), "front_size": len(members)}
        client.log_batch(self._parent, metrics=[Metric(key, value, now, 0) for key, value in counts.items()])
        client.set_tag(self._parent, "mlflow.note.content", summary(table, markdown=True))
        client.log_text(self._parent, front_csv(table), "front.csv")
        report = self.paths.report_html
        for file in (self.paths.front_json, self.paths.front_png, report, report.with_suffix(".md")):
            if file.is_file():
                client.log_artifact(self._parent, str(file))
        client.set_terminated(self._parent, "KILLED" if table.running and not table.over else "FINISHED")


def _metrics(trial: TrialRecord) -> Iterator[Any]:
    """Every curve at its rows, and once what a trial has one of; finite numbers only."""
    from mlflow.entities import Metric

    for index, report in enumerate(trial.rungs):
        last = index == len(trial.rungs) - 1
        time = _millis(trial.started) + round(1000 * (report.measurements.get("train_seconds") or 0)) + index
        for name, value in report.measurements.items():
            once = name in ONCE or name.startswith("base_")
            if isinstance(value, (int, float)) and math.isfinite(value) and (last or not once):
                yield Metric(name, float(value), time, 0 if once else report.rows)
        if last:
            for name, value in trial.beside.items():
                if isinstance(value, (int, float)):
                    # Later by a moment: of two values of one step MLflow shows the newer one.
                    yield Metric(name, float(value), time + 1, 0)


def _status(trial: TrialRecord) -> str:
    if trial.state == "COMPLETE":
        return "FINISHED"
    return "KILLED" if trial.state == "PRUNED" else "FAILED"


def _millis(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
