"""Wires a search together: checks, study, Ray Tune, MLflow, files at the end.

`run_search` starts a new search, `resume_search` goes on with one; both return the study as it stands when the driver
is done. The driver is the only writer of the study and of MLflow.
"""

from __future__ import annotations

from lorafront.search.database import check_database

from lorafront.search.environment import heavy_imports  # isort: skip  # before Ray and MLflow

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search import comparison, mlflow_tracker, requests
from lorafront.search.budget import TIMES, limit_reached
from lorafront.search.confirmation import following
from lorafront.search.copies import copied, fetch, refuse_copied
from lorafront.search.front import as_json, front_of
from lorafront.search.interruption import Interruption
from lorafront.search.ownership import owned
from lorafront.search.paths import RootPaths, SearchPaths, check_name
from lorafront.search.progress import Observer, Silent, last_line
from lorafront.search.ray_cluster import RayCluster, one_for_each_core
from lorafront.search.read_only import refuse_imported
from lorafront.search.report_files import keep_report, tell_original
from lorafront.search.search_file import Budget, Confirm, SearchFile
from lorafront.search.stopping import Never, Rungs, Sparing, StoppingRule
from lorafront.search.study_table import StudyTable, read_study
from lorafront.search.trial_folders import sweep_finished
from lorafront.search.watchdog import Watchdog, end_leftovers
from lorafront.spaces.errors import Incomplete, InvalidInput, Problem, SearchExists
from lorafront.spaces.objectives import minimized
from lorafront.trainables.checkpoint import write_json, write_text
from lorafront.trainables.fault_points import reached
from lorafront.trainables.outcome import Outcome, classify

if TYPE_CHECKING:
    from lorafront.search.placement import Devices
    from lorafront.search.prepared import Prepared
    from lorafront.search.study import StudyLedger
    from lorafront.spaces.lora import LoraConfiguration


def run_search(
    search: SearchFile,
    root: RootPaths,
    observer: Observer | None = None,
    *,
    text: str | None = None,
    near: Path | None = None,
    engine: str = "process",
    devices: Sequence[Devices] = (),
) -> StudyTable:
    """Run a new search to its end.

    Args:
        search: the validated file.
        root: where searches stand.
        observer: hears of every trial; none is silence.
        text: the file as the user wrote it; none writes the resolved one.
        near: folder of the search file, where its paths may start; none is the current folder.
        engine: `process` is what the file says; `toy` is a run without torch (`slow-toy`: one that lasts), one trial
            in each worker, `toy-packed` and `slow-toy-packed` in packs.
        devices: to place trials on as if they were there; none is what there is.

    Raises:
        InvalidInput: the search cannot work; nothing was written.
        SearchExists: the name is taken.
        Incomplete: it was interrupted; `resume_search` goes on.
    """
    paths = root.search(search.name)
    cluster = RayCluster(devices, imports=_imports(engine, search, devices))
    with claimed(paths), interruptible(paths) as interruption, cluster:
        check_database()
        refuse_copied(paths.name)
        with heavy_imports("transformers"):
            from lorafront.search.preflight import check

        prepared = check(search, root, near or Path.cwd(), devices=devices, nodes=cluster.look(root))
        tracking = _tracking(prepared.search, root)
        write_text(paths.search_yaml, text or search.model_dump_json(indent=2, exclude_none=True))
        prepared.store()
        return _drive(prepared, paths, observer or Silent(), tracking, engine, cluster, interruption, create=True)


def resume_search(
    name: str,
    root: RootPaths,
    observer: Observer | None = None,
    *,
    budget: Budget | None = None,
    confirm: Confirm | None = None,
    engine: str = "process",
    devices: Sequence[Devices] = (),
) -> StudyTable:
    """Go on with a search until its budget is spent; trials that were running keep their numbers.

    Args:
        name: of the search.
        root: where searches stand.
        observer: hears of every trial; none is silence.
        budget: a larger one than it has (`budget.extended`); none leaves it.
        confirm: of the replicates of another search, how many and for how long; none leaves it.
        engine: as for `run_search`.
        devices: as for `run_search`.

    Raises:
        SearchNotFound: there is none of that name.
        SearchOwned: its driver is alive.
        Incomplete: it was interrupted again.
    """
    with contextlib.suppress(ValueError):  # no name; what follows says so
        fetch(root, check_name(name))
    paths = root.existing(name)
    with contextlib.ExitStack() as stack:
        stack.enter_context(owned(paths))  # before all else, so that a second driver is refused at once
        requests.forget_stops(paths)  # before anything that takes time, in which somebody may ask again
        interruption = stack.enter_context(interruptible(paths))
        earlier = read_study(paths.study_db)
        refuse_imported(earlier.search, "resume")
        if earlier.search.confirms is not None:
            fetch(root, earlier.search.confirms)
        imports = _imports(engine, earlier.search, devices)
        cluster = stack.enter_context(RayCluster(devices, imports=imports))
        with heavy_imports("transformers"):
            from lorafront.search.preflight import check

        # Before the check, which looks at how much memory is free.
        end_leftovers(paths, {trial.number: trial.epoch for trial in earlier.running})
        changed = {"budget": budget or earlier.search.budget, "confirm": confirm or earlier.search.confirm}
        if confirm is not None:
            changed["budget"] = earlier.search.budget.model_copy(update={"hours": confirm.hours})
        search = earlier.search.model_copy(update=changed)
        nodes = cluster.look(root)
        prepared = check(search, root, paths.folder, warm=not earlier.warmed, devices=devices, nodes=nodes)
        prepared.store()
        tracking = _tracking(prepared.search, root)
        return _drive(prepared, paths, observer or Silent(), tracking, engine, cluster, interruption, create=False)


def _imports(engine: str, search: SearchFile, devices: Sequence[Devices]) -> bool:
    """Whether the processes that Ray starts in advance will all be workers that need torch."""
    return engine == "process" and not devices and one_for_each_core(search)


@contextlib.contextmanager
def interruptible(paths: SearchPaths) -> Iterator[Interruption]:
    """Hear signals while the block runs; what they interrupt can be resumed once there is a study."""
    interruption = Interruption(paths.name)
    try:
        with interruption:
            yield interruption
    except KeyboardInterrupt:
        begun = paths.has_study()
        raise Incomplete(f"{interruption.why}; {interruption.advice if begun else 'nothing was begun'}") from None


def _tracking(search: SearchFile, root: RootPaths) -> mlflow_tracker.Tracking:
    tracking = mlflow_tracker.open_tracking(search, root)
    if tracking.problem and search.tracking.required:
        raise InvalidInput([Problem(("tracking", "uri"), tracking.problem)])
    return tracking


def refuse_existing(paths: SearchPaths) -> None:
    """Raise where the name is taken: by a search, by a driver that is just setting one up, or by other files.

    Raises:
        SearchExists: there is a search, or a folder that is none.
        SearchOwned: another driver is alive.
    """
    if paths.driver_lock.exists():
        with owned(paths):
            pass
    if paths.has_study():
        raise SearchExists(
            f"search {paths.name!r} exists already in {paths.folder}; `lorafront resume {paths.name}` goes on with it, "
            "or choose another name"
        )
    if not paths.is_unused():
        raise SearchExists(f"{paths.folder} is there and is no search; choose another name or move it away")


@contextlib.contextmanager
def claimed(paths: SearchPaths) -> Iterator[None]:
    """Own a new name while the block runs; where the block fails before there is a study, nothing is left behind."""
    refuse_existing(paths)
    new_root = not paths.folder.parent.exists()
    root = RootPaths(paths.folder.parent)
    root.check_writable()
    root.make()
    paths.folder.mkdir(mode=0o700, exist_ok=True)
    with owned(paths):
        try:
            yield
        finally:
            if not paths.has_study():
                shutil.rmtree(paths.folder, ignore_errors=True)
                if new_root:
                    with contextlib.suppress(OSError):  # somebody else's search may have come into it meanwhile
                        paths.folder.parent.rmdir()


def _drive(
    prepared: Prepared,
    paths: SearchPaths,
    observer: Observer,
    tracking: mlflow_tracker.Tracking,
    engine: str,
    cluster: RayCluster,
    interruption: Interruption,
    *,
    create: bool,
) -> StudyTable:
    with heavy_imports("optuna"):
        from lorafront.search.study import StudyLedger

    ledger = StudyLedger(
        paths.study_db,
        prepared.search,
        create=create,
        canonical=prepared.canonical,
        breaks=prepared.breaks,
    )
    with contextlib.closing(ledger):
        return _driven(prepared, paths, ledger, observer, tracking, engine, cluster, interruption)


def _driven(
    prepared: Prepared,
    paths: SearchPaths,
    ledger: StudyLedger,
    observer: Observer,
    tracking: mlflow_tracker.Tracking,
    engine: str,
    cluster: RayCluster,
    interruption: Interruption,
) -> StudyTable:
    ledger.keep_budget(prepared.search.budget)
    ledger.keep_data(prepared.token_file.name, prepared.rungs, prepared.search.code_digests())
    for name, measured in prepared.references().items():
        ledger.note_reference(name, measured)
    if not ledger.warmed:
        ledger.keep_observations(prepared.warm.observations)
    ledger.keep_starts(prepared.starts.points)
    unfinished = _reconcile(ledger, paths)
    _planned(prepared, prepared.search, paths, ledger, len(unfinished))
    spent = bool(limit_reached(ledger.search.budget, ledger.spent)) or (ledger.end is not None and not unfinished)
    if not spent:
        ledger.begin_epoch(after=paths.newest_epoch())
        ledger.note(prepared.notes)
    observer.begun(ledger.search, prepared.rungs, ledger.recorded)
    try:
        for note in prepared.notes:
            observer.said(note)
        if tracking.problem:
            observer.said(f"{tracking.problem}; its runs are written when it answers again")
        with (
            copied(paths, observer.said),
            mlflow_tracker.following(tracking, paths, observer.said, interruption.patience),
        ):
            try:
                while not spent:
                    stopped = _tune(prepared, paths, ledger, observer, unfinished, engine, cluster, interruption)
                    unfinished, spent = [], not _planned(prepared, ledger.search, paths, ledger, 0)
                    _next_round(observer, ledger.search, interruption, stopped=stopped and not spent, over=spent)
            finally:
                cluster.leave()  # while the front is written and MLflow hears the rest
            table = read_study(paths.study_db)
            sweep_finished(paths, table)
            write_front(table, paths)
            keep_report(table, paths, observer.said)
        if table.search.confirms is not None:
            tell_original(table.search.confirms, paths, observer.said, interruption.patience)
    except OSError as error:
        if classify(error) is not Outcome.DISK_FULL:
            raise
        raise Incomplete(f"{error}; make room and go on with: lorafront resume {paths.name}") from error
    finally:
        observer.ended()
    return table


def _next_round(
    observer: Observer, search: SearchFile, interruption: Interruption, *, stopped: bool, over: bool
) -> None:
    """Say that there are more replicates to train, or that somebody asked to stop before them."""
    if stopped:
        raise Incomplete(f"stopped; {interruption.advice}")
    if not over:
        observer.extended(search)


def _planned(prepared: Prepared, search: SearchFile, paths: SearchPaths, ledger: StudyLedger, unfinished: int) -> bool:
    """Of a search that confirms another: keep which replicates come next; False without any, or time for them."""
    if search.confirms is None or search.confirm is None:
        return False
    table = read_study(RootPaths(paths.folder.parent).existing(search.confirms).study_db)
    own, confirm = read_study(paths.study_db), search.confirm
    compares = confirm.baselines
    more = comparison.following(table, own, confirm) if compares else following(table, own, confirm.seeds)
    for trial in table.complete:
        for lora in more if trial.execution is not None else ():
            if lora.with_seed(None) == trial.lora and trial.execution is not None:
                prepared.keep_execution(lora, trial.execution)  # a replicate runs as its original did
    ledger.plan(search, more, unfinished)
    return bool(more) and not limit_reached(ledger.search.budget, ledger.spent, TIMES)


def _reconcile(ledger: StudyLedger, paths: SearchPaths) -> list[tuple[int, LoraConfiguration]]:
    """Tell what finished while no driver was listening; return what has to be run again.

    A result file is durable before anyone hears of it, so a trial whose driver died is told from its file.
    """
    from lorafront.search.retries import again

    unfinished = []
    epochs = {trial.number: trial.epoch for trial in read_study(paths.study_db).running}
    for number, lora in ledger.running():
        folder = paths.trial(number, epochs.get(number, 0))
        folder.sweep()
        reports = folder.read_reports()
        if reports and (counted := again(ledger, number, reports[-1], reports[-1].rows)):
            folder.set_result_aside()
            ledger.count_end(number, counted)
            reports = []
        if reports:
            for report in filter(lambda report: report.at_rung, reports):
                ledger.record_rung(number, report)
            ledger.tell(number, reports[-1])
        else:
            unfinished.append((number, lora))
    return unfinished


def _tune(
    prepared: Prepared,
    paths: SearchPaths,
    ledger: StudyLedger,
    observer: Observer,
    unfinished: list[tuple[int, LoraConfiguration]],
    engine: str,
    cluster: RayCluster,
    interruption: Interruption,
) -> bool:
    """Try what the study proposes until its budget is spent; True where somebody asked to stop before."""
    from ray.tune import TuneError

    from lorafront.search.cluster import Watch, end_elsewhere, living
    from lorafront.search.control import Control
    from lorafront.search.optuna_searcher import OptunaSearcher
    from lorafront.search.pareto_scheduler import ParetoScheduler
    from lorafront.search.ray_control import RayControl
    from lorafront.search.workplace import workplace

    search = prepared.search
    watchdog = Watchdog(search.resources.hang_minutes * 60, end_elsewhere=end_elsewhere)
    control = Control(paths, ledger, observer, interruption)
    scratch = cluster.wait()
    watch = Watch(
        cluster.nodes or living(), RootPaths(paths.folder.parent), observer.said, joined=bool(cluster.nodes),
        pretended=cluster.pretends,
    )  # fmt: skip
    searcher = OptunaSearcher(
        ledger,
        replace(workplace(prepared, paths, ledger, watchdog, engine, watch), ready=cluster.ready),
        observer,
        unfinished=unfinished,
        rule=make_rule(ledger, read_study(paths.study_db)),
        steering=control,
    )
    tuner = _tuner(searcher, ParetoScheduler(searcher), RayControl(control, searcher), scratch)
    interruption.install()  # again, where Ray took the signals
    go_on = f"go on with: lorafront resume {paths.name}"
    try:
        with (
            interruption.noted(),
            watchdog.watching(observer.said),
            watch.looking() if cluster.nodes else contextlib.nullcontext(),
            cluster.watched(interruption.break_off),
        ):
            tuner.fit()
    except (TuneError, RuntimeError) as error:  # Ray itself broke
        raise Incomplete(f"the search stopped: {last_line(str(error))}; mend that and {go_on}") from error
    finally:
        control.keep()
    if searcher.halted:
        raise Incomplete(f"the search stopped: {searcher.halted}; mend that and {go_on}")
    control.conclude()
    if ledger.end is not None:
        observer.said(f"{ledger.end.value}; the search ends before its budget")
    return control.stopping


def _tuner(searcher: Any, scheduler: Any, stopper: Any, scratch: Path) -> Any:
    """Ray Tune, told to keep nothing that anybody would read.

    It starts no lost trial again: the searcher does, which counts the attempts in the study. How many run at once says
    the searcher too, since nodes come and go.
    """
    from ray import tune
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig

    from lorafront.search.ray_trainable import RESOURCES, TrialTrainable

    return tune.Tuner(
        tune.with_resources(TrialTrainable, lambda config: config[RESOURCES]),
        tune_config=TuneConfig(
            metric="training_iteration",
            mode="max",
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=False,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            stop=stopper,
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


def make_rule(ledger: StudyLedger, table: StudyTable) -> StoppingRule:
    """The stopping rule that the search names, told of all rungs so far; a baseline is trained to the end."""
    rule = _rule(ledger, table)
    return rule if ledger.search.baseline is None else Sparing(rule, ledger.is_baseline)


def _rule(ledger: StudyLedger, table: StudyTable) -> StoppingRule:
    search = ledger.search
    if search.early_stopping == "model":
        from lorafront.search.model_stopping import Model

        return Model(search, lambda: ledger.view.trials)  # reads what it needs by itself
    rule = Rungs() if search.early_stopping == "rungs" else Never()
    for trial in table.trials:
        for report in trial.rungs:
            values = minimized(report.measurements, search.objective_list)
            if len(values) == len(search.objective_list):
                rule.stops(trial.number, report.rows, values)
    return rule


def write_front(table: StudyTable, paths: SearchPaths) -> None:
    """Write `front.json` and `front.png`; the same study gives the same JSON."""
    from lorafront.search.plot import plot_front

    members = front_of(table)
    reached("before_front_rename")
    write_json(paths.front_json, as_json(members, table.search.objective_list))
    if table.complete:
        plot_front(table, paths.front_png)
