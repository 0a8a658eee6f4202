"""What tests of faults share: a driver in this process without Ray, processes that are to be killed, the checker."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray and MLflow

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lorafront.search import optuna_searcher, plot, run  # noqa: F401  # plot: imported once, before the forks
from lorafront.search.nothing_lost import Verdict, judge, read_witness
from lorafront.search.ownership import owned
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.progress import Silent
from lorafront.search.ray_trainable import JOIN, REPORTS
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import read_study
from lorafront.search.trial_folders import adopt
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables import fault_points, witness
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report, Trial

RUNGS = (8, 16, 32)
TRIALS = 3
FINISHED = "FINISHED"


def search_file(**changes: Any) -> SearchFile:
    return parse_search({"name": "s", "model": "m", "data": {"path": "d"}, "budget": {"trials": TRIALS}, **changes})


def drive(root: Path, fault: str = "") -> None:
    """Drive a search of toy trials to its end in this process: study, searcher, trials and files are the real ones.

    Args:
        root: where the search stands; one that is there is resumed.
        fault: what happens at which point.
    """
    os.environ[witness.VARIABLE] = str(root / "witness.jsonl")
    paths = RootPaths(root).search("s")
    paths.folder.mkdir(parents=True, exist_ok=True)
    with owned(paths):
        ledger = StudyLedger(paths.study_db, search_file(), create=not paths.has_study())
        unfinished = run._reconcile(ledger, paths)
        begun = {trial.number: trial.epoch for trial in read_study(paths.study_db).running if trial.epoch}
        epoch = ledger.begin_epoch()
        fault_points.arm(fault)

        def dispatch(number: int, lora: LoraConfiguration, *_: object) -> dict[str, Any]:
            folder = paths.trial(number, epoch)
            if begun.get(number, epoch) != epoch:
                adopt(paths.trial(number, begun[number]).path, folder.path)
            return {"number": number, "trial": Trial(lambda: ToySession(lora), RUNGS, folder)}

        workplace = optuna_searcher.Workplace(
            dispatch,
            recover=lambda number: paths.trial(number, epoch).read_reports(),
            set_aside=lambda number: paths.trial(number, epoch).set_result_aside(),
        )
        searcher = optuna_searcher.OptunaSearcher(ledger, workplace, Silent(), unfinished=unfinished)
        _run_all(searcher)
        fault_points.arm(fault if fault.startswith("before_front") else "")
        run.write_front(read_study(paths.study_db), paths)
        fault_points.arm("")
        if searcher.halted:
            sys.exit(5)


def _run_all(searcher: optuna_searcher.OptunaSearcher) -> None:
    count = 0
    while isinstance(config := searcher.suggest(str(count)), dict):
        (told,) = config[JOIN]
        while searcher.works(str(count)):
            report = told["trial"].next_rung()
            (told,) = searcher.hear(str(count), said({told["number"]: report})).get(JOIN, [told])
        searcher.on_trial_complete(str(count))
        count += 1
    assert config == FINISHED


def said(reports: dict[int, Report]) -> dict[str, str]:
    """What a worker says of its trials, as Ray Tune hands it on."""
    return {REPORTS: json.dumps({number: report.as_json() for number, report in reports.items()})}


class Forks:
    """Runs `drive` in processes that are made to be killed.

    One process imports Ray and Optuna once, has no threads, and forks for each run: a tenth of a second, not five.
    """

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": python_path(Path(__file__).parent)}
        command = [sys.executable, "-c", "import fault_support; fault_support.serve()"]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def drive(self, root: Path, fault: str = "") -> int:
        """The exit code of a driver, negative for a signal."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([str(root), fault]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate()


def serve() -> None:
    """Fork and drive for every line of the standard input."""
    for line in sys.stdin:
        root, fault = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # the answers are the parent's
            drive(Path(root), fault)
            sys.exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def verdict(root: Path, name: str = "s", rungs: tuple[int, ...] = RUNGS) -> Verdict:
    table = read_study(SearchPaths(root / name).study_db)
    return judge(read_witness(root / "witness.jsonl"), table, rungs)


def python_path(folder: Path) -> str:
    """For a process of its own that imports from a folder, and all else as this one does."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


KILLED = -signal.SIGKILL
