"""`lorafront register`: a trial's adapter as a version of a model in MLflow's registry, attached to the trial's run."""

from __future__ import annotations

from lorafront.search.environment import heavy_imports  # isort: skip  # before MLflow

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorafront.search.confirm import confirmation_of
from lorafront.search.confirmation_report import how_sure
from lorafront.search.environment import DEFAULTS
from lorafront.search.export import checkpoint_of, chosen_trials
from lorafront.search.mlflow_model import AdapterModel
from lorafront.search.mlflow_tracker import SEARCH_TAG, TRIAL_TAG, UID_TAG, Tracking, open_tracking, shown
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.read_only import refuse_imported
from lorafront.search.recipes import facts
from lorafront.search.study_table import VRAM, read_study
from lorafront.spaces.errors import InvalidInput, StateUnreadable
from lorafront.trainables.checkpoint import read_manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ARTIFACT = "adapter"  # its name among the models of its run
NOT_IN_A_NAME = "/:'\""
PATIENCE = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # seconds: a server may take its time with gigabytes
THERE = "RESOURCE_ALREADY_EXISTS"


@dataclass(frozen=True)
class Registered:
    """A version of a model.

    Attributes:
        model: its name.
        version: its number.
        store: where.
        base: what MLflow's loader takes for the base, in words.
    """

    model: str
    version: int
    store: str
    base: str

    @property
    def uri(self) -> str:
        """As MLflow's loader takes it."""
        return f"models:/{self.model}/{self.version}"


def register(paths: SearchPaths, number: int, name: str) -> Registered:
    """Register the adapter of a trial.

    Args:
        paths: of the search.
        number: of a trial at full fidelity.
        name: of the model; further trials become further versions of it.

    Raises:
        InvalidInput: there is no such trial, it is registered under that name already, MLflow's loader has no place
            for such a model, or MLflow cannot be reached.
        StateUnreadable: its adapter is gone.
        CheckpointInvalid: its adapter was cut or changed.
    """
    table, root = read_study(paths.study_db), RootPaths(paths.folder.parent)
    refuse_imported(table.search, "register")
    (trial,) = chosen_trials(table, [number])
    if not name.strip() or set(NOT_IN_A_NAME) & set(name):
        raise InvalidInput(f"--as takes a name without slash, colon and quotes (got {name!r})")
    checkpoint = checkpoint_of(paths, trial)
    if not checkpoint.is_dir():
        raise StateUnreadable(f"trial {number} has no adapter any more: {checkpoint} is gone")
    read_manifest(checkpoint)
    model = AdapterModel(table, trial, checkpoint)
    if model.pipeline is None:
        raise InvalidInput(
            f"MLflow's loader makes a pipeline of transformers, which has none for {table.search.task}; "
            f"instead: lorafront export {paths.name} --trial {number} --out DIR"
        )
    tracking = open_tracking(table.search, root)
    if tracking.problem:
        raise InvalidInput(tracking.problem)
    confirmed = confirmation_of(table, root)
    told = [*facts(table, trial), *(how_sure(confirmed, number) if confirmed else ())]
    with heavy_imports("mlflow"):
        from mlflow.exceptions import MlflowException
    try:
        with _patient():
            return _register(model, tracking, name, "\n".join(f"- {line}" for line in told))
    except MlflowException as error:
        raise InvalidInput(f"MLflow at {shown(tracking.uri)}: {error.message}") from error


def _register(model: AdapterModel, tracking: Tracking, name: str, description: str) -> Registered:
    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri, tracking.uri)
    run = _run_of(client, model, tracking)
    _refuse_known(client, model, name)
    model_id = _saved(client, run) or _save(client, model, run)
    _create(client, name)
    # A server finds a model by its id; a store without one would look for it where this process logs to.
    by_id, place = f"models:/{model_id}", client.get_logged_model(model_id).artifact_location
    version = client.create_model_version(
        name,
        by_id if tracking.uri.startswith("http") else place,
        run.info.run_id,
        _tags(model),
        description=description,
        model_id=model_id,
    )
    return Registered(name, int(version.version), shown(tracking.uri), model.base)


def _tags(model: AdapterModel) -> dict[str, str]:
    """Of a version: whose it is, and what was measured."""
    table, trial = model.table, model.trial
    measured = dict.fromkeys([*(o.name for o in table.search.objective_list), VRAM, "peak_vram_source"])
    return {
        SEARCH_TAG: table.search.name, UID_TAG: table.uid, TRIAL_TAG: str(trial.number),
        "configuration": trial.lora.label,
        **{name: str(trial.measurements[name]) for name in measured if name in trial.measurements},
    }  # fmt: skip


def _run_of(client: MlflowClient, model: AdapterModel, tracking: Tracking) -> Run:
    """The run of a trial."""
    table, number = model.table, model.trial.number
    experiment = client.get_experiment_by_name(table.search.name)
    query = f"tags.`{UID_TAG}` = '{table.uid}' and tags.`{TRIAL_TAG}` = '{number}'"
    found = client.search_runs([experiment.experiment_id], query) if experiment is not None else ()
    for run in found:
        return run
    raise InvalidInput(
        f"MLflow at {shown(tracking.uri)} has no run of trial {number}; "
        f"write it with: lorafront mlflow-sync {table.search.name}"
    )


def _refuse_known(client: MlflowClient, model: AdapterModel, name: str) -> None:
    """Raise where the trial is a version of that model already."""
    own, query, token = _tags(model), f"name = '{name}'", None
    while True:
        page = client.search_model_versions(query, page_token=token)
        for version in page:
            if all(version.tags.get(tag) == own[tag] for tag in (UID_TAG, TRIAL_TAG)):
                raise InvalidInput(
                    f"trial {own[TRIAL_TAG]} of {own[SEARCH_TAG]} is version {version.version} of {name} already; "
                    "delete that one first, or choose another name"
                )
        token = page.token
        if not token:
            return


def _saved(client: MlflowClient, run: Run) -> str | None:
    """The model of a run that was saved for another name, or before a call that broke off."""
    for output in run.outputs.model_outputs if run.outputs else ():
        model = client.get_logged_model(output.model_id)
        if model.name == ARTIFACT and str(model.status) == "READY":
            return str(model.model_id)
    return None


def _save(client: MlflowClient, model: AdapterModel, run: Run) -> str:
    """Write the model among those of its run; returns its id. What MLflow does for a run that goes on."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    own, status = run.info.run_id, LoggedModelStatus.FAILED
    made = client.create_logged_model(run.info.experiment_id, ARTIFACT, own, _tags(model), run.data.params)
    try:
        client.log_outputs(own, [LoggedModelOutput(made.model_id, model.trial.last.rows if model.trial.last else 0)])
        with tempfile.TemporaryDirectory(prefix="lorafront-") as folder:
            described = Model(made.artifact_location, own, model_uuid=made.model_id, model_id=made.model_id)
            model.save(Path(folder) / ARTIFACT, described)
            client.log_model_artifacts(made.model_id, str(Path(folder) / ARTIFACT))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(made.model_id, status)
    return str(made.model_id)


def _create(client: MlflowClient, name: str) -> None:
    """The model, where it is not there yet."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != THERE:
            raise


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Wait for a server longer than a search may."""
    name, seconds = PATIENCE
    kept = os.environ[name]
    if kept == DEFAULTS[name]:
        os.environ[name] = seconds
    try:
        yield
    finally:
        os.environ[name] = kept
