"""MLflow as a view of the study: one parent run per search, one child run per trial.

One thread of the driver projects the study into runs; live logging, catching up after an outage and `mlflow-sync` are
the same code. Runs are found by tags and values are sent with the study's own steps and times, so sending again changes
nothing. Nothing here can stop or delay a trial.
"""

from __future__ import annotations

from lorafront.search.environment import heavy_imports  # isort: skip  # before MLflow

import contextlib
import os
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search import budget, mlflow_columns
from lorafront.search.front import front_of
from lorafront.search.mlflow_columns import Columns, Value, millis
from lorafront.search.mlflow_note import note
from lorafront.search.mlflow_views import view_tags
from lorafront.search.ownership import owned
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.search_file import SearchFile
from lorafront.search.study_table import StudyTable, TrialRecord, read_study
from lorafront.search.tables import front_csv
from lorafront.spaces.errors import SearchOwned
from lorafront.spaces.parameters import describe
from lorafront.trainables.checkpoint import ASIDE
from lorafront.trainables.fault_points import reached

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PROBE_SECONDS = 5
CYCLE_SECONDS = 2.0
RETRY_SECONDS = 20.0
GOODBYE_SECONDS = 60.0  # the last projection may take so long before the driver leaves it to `mlflow-sync`
SEARCH_TAG, TRIAL_TAG, UID_TAG = "lorafront.search", "lorafront.trial", "lorafront.uid"
LOST_TAG, PARENT_TAG = "lorafront.lost", "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # what the UI shows as the description


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
    return Tracking(uri, source, None, unreachable(uri))


def shown(uri: str) -> str:
    """The address without the user and password that an environment variable may carry."""
    return re.sub(r"://[^/@]*@", "://…@", uri)


def unreachable(uri: str) -> str:
    """Why no server answers there, in words; empty where one does, or the address is no server's."""
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
            away = unreachable(tracking.uri) if tracking.uri.startswith("http") else ""
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


def catch_up(
    paths: SearchPaths,
    say: Callable[[str], None],
    patience: Callable[[float], float] = lambda seconds: seconds,
) -> None:
    """Bring the runs of a search that nobody drives up to date; says what kept it from that. As `following`."""
    tracking = open_tracking(read_study(paths.study_db).search, RootPaths(paths.folder.parent))
    with contextlib.suppress(SearchOwned), owned(paths), following(tracking, paths, say, patience):
        pass  # a driver of its own does the same


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
    _experiment: str = ""
    _parent: str = ""
    _runs: dict[int, str] = field(default_factory=dict)
    _sent: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    _there: dict[int, Run] = field(default_factory=dict)  # as they were found

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

    def _find_experiment(self, client: MlflowClient, search: SearchFile) -> str:
        tags = view_tags(search)
        experiment = client.get_experiment_by_name(search.name)
        if experiment is None:
            tags |= {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on the table of runs
            return str(client.create_experiment(search.name, self.tracking.artifacts, tags))
        for name, value in tags.items():
            if experiment.tags.get(name) != value:
                client.set_experiment_tag(experiment.experiment_id, name, value)
        return str(experiment.experiment_id)

    def _find_runs(self, client: MlflowClient, table: StudyTable) -> None:
        experiment_id = self._experiment = self._find_experiment(client, table.search)
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
                    self._there[int(number)] = run
            token = page.token
            if not token:
                break
        self._parent = parent or self._new_parent(client, table)
        client.update_run(self._parent, status="RUNNING")

    def _new_parent(self, client: MlflowClient, table: StudyTable) -> str:
        search = table.search
        started = millis(table.trials[0].started) if table.trials else None
        run = client.create_run(
            self._experiment,
            start_time=started,
            run_name=search.name,
            tags={SEARCH_TAG: search.name, UID_TAG: table.uid, NOTE: note(table, self.paths, self._experiment)},
        )
        facts = {  # what may grow, the budget, is a tag: a parameter is for ever
            "model": search.model.name, "task": search.task, "data": search.data.path, "format": search.data.format,
            "objectives": ", ".join(objective.name for objective in search.objective_list),
            "constraints": ", ".join(map(str, search.limits)) or "none",
            "seed": search.seed,
        }  # fmt: skip
        space = {f"space.{name}": describe(value) for name, value in search.space.parameters().items()}
        params = {key: str(value)[:6000] for key, value in {**facts, **space}.items()}
        _log(client, run.info.run_id, Columns((), params, {}))
        client.log_artifact(run.info.run_id, str(self.paths.search_yaml))
        return str(run.info.run_id)

    def _send(self, client: MlflowClient, trial: TrialRecord, table: StudyTable, *, pareto: bool) -> None:
        found = self._there.pop(trial.number, None)
        if found is not None and found.info.start_time != millis(trial.started):
            self._retire(client, found, trial.number)
            found = None
        if trial.number not in self._runs:
            self._runs[trial.number] = self._new_child(client, trial, table)
            reached("mid_mlflow")
        run_id = self._runs[trial.number]
        columns = mlflow_columns.columns_of(trial, table, pareto=pareto)
        status = "RUNNING" if trial.ended is None else _status(trial)
        if found is not None and found.info.status == status and columns.stand_in(found.data):
            return  # of 500 trials that another driver has sent, sending them again takes half a minute
        _log(client, run_id, columns)  # the same again is no change; a run that was cut short gets the rest now
        if trial.ended is not None:
            client.set_terminated(run_id, status, end_time=millis(trial.ended))

    def _retire(self, client: MlflowClient, run: Run, number: int) -> None:
        """Leave a run to itself whose trial was lost, with a study that was restored from an older copy."""
        client.set_tag(run.info.run_id, LOST_TAG, str(number))
        for tag in {UID_TAG, TRIAL_TAG, PARENT_TAG, "pareto"} & run.data.tags.keys():
            client.delete_tag(run.info.run_id, tag)
        del self._runs[number]

    def _new_child(self, client: MlflowClient, trial: TrialRecord, table: StudyTable) -> str:
        run = client.create_run(
            self._experiment,
            start_time=millis(trial.started),
            run_name=f"{trial.number} {trial.lora.label}",
            tags={
                PARENT_TAG: self._parent,
                SEARCH_TAG: table.search.name,
                UID_TAG: table.uid,
                TRIAL_TAG: str(trial.number),
            },
        )
        return str(run.info.run_id)

    def _end(self, client: MlflowClient, table: StudyTable) -> None:
        from lorafront.search.confirm import confirmation_of

        confirmed = confirmation_of(table, RootPaths(self.paths.folder.parent))
        if confirmed is not None:
            for entry in confirmed.entries:
                _log(client, self._runs[entry.trial.number], mlflow_columns.confirmed_columns(entry, confirmed))
        members = front_of(table)
        now = max((millis(trial.ended) for trial in table.trials if trial.ended), default=0)
        counts = {"trials": len(table.counted), "trials_complete": len(table.complete), "front_size": len(members)}
        numbers = tuple(Value(name, value, now, 0) for name, value in counts.items())
        spent = budget.shown(table.search.budget, table.spent)
        _log(
            client,
            self._parent,
            Columns(numbers, {}, {"budget": spent, NOTE: note(table, self.paths, self._experiment, confirmed)}),
        )
        client.log_text(self._parent, front_csv(table), "front.csv")
        report = self.paths.report_html
        for file in (self.paths.front_json, self.paths.front_png, report, report.with_suffix(".md")):
            if file.is_file():
                client.log_artifact(self._parent, str(file))
        status = "KILLED" if table.running and not table.over else "FINISHED"
        client.set_terminated(self._parent, status, end_time=now or None)  # not when somebody looked again


def _log(client: MlflowClient, run_id: str, columns: Columns) -> None:
    """All at once; tags come last, so whoever finds them finds all."""
    from mlflow.entities import Metric, Param, RunTag

    client.log_batch(
        run_id,
        metrics=[Metric(one.name, one.value, one.time, one.step) for one in columns.metrics],
        params=[Param(name, value) for name, value in columns.params.items()],
        tags=[RunTag(name, value) for name, value in columns.tags.items()],
    )


def _status(trial: TrialRecord) -> str:
    if trial.state == "COMPLETE":
        return "FINISHED"
    return "KILLED" if trial.state == "PRUNED" else "FAILED"
