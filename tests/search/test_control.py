"""Stopping, going on and extending: requests, orders, signals and budgets, through whole searches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import TINY_LLAMA

from lorafront.search import interruption
from lorafront.search.budget import extended
from lorafront.search.control import Control
from lorafront.search.interruption import SECOND_SIGNAL, Interruption
from lorafront.search.ownership import owned
from lorafront.search.paths import RootPaths
from lorafront.search.progress import Silent
from lorafront.search.requests import Request, forget_stops, post, send, take
from lorafront.search.run import resume_search, run_search
from lorafront.search.search_file import SearchFile, parse_search
from lorafront.search.study import StudyLedger
from lorafront.search.study_table import TrialRecord, read_study
from lorafront.spaces.errors import Incomplete, InvalidInput
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.toy import ToySession
from lorafront.trainables.trial import Report

RUNGS = (20, 100, 180)  # the last two take twenty steps each, a second of the slow toy


def search_data(name: str, text_file: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": str(TINY_LLAMA),
        "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
        "space": {"rank": [2, 4, 8, 16], "modules": ["query+value", "attention"], "bias": "none"},
        "training": {"rows": RUNGS[-1], "rungs": list(RUNGS), "batch_size": 4},
        "budget": {"trials": 5},
        "early_stopping": "off",  # every trial is to be seen at its end
        **changes,
    }


def search_for(name: str, text_file: Path, **changes: Any) -> SearchFile:
    return parse_search(search_data(name, text_file, **changes))


@dataclass
class Acting(Silent):
    """Does something once, when a trial reports; keeps what was said."""

    when: Callable[[int, Report], bool]
    act: Callable[[], object]
    done: bool = False
    heard: list[str] = field(default_factory=list)

    def reported(self, number: int, report: Report) -> None:
        if not self.done and self.when(number, report):
            self.done = True
            self.act()

    def said(self, message: str) -> None:
        self.heard.append(message)


def at_first_rung(_: int, report: Report) -> bool:
    return report.rows == RUNGS[0]


def as_uninterrupted(trial: TrialRecord) -> bool:
    """True where a trial's rungs are those that the toy reports when nobody stops it."""
    session = ToySession(trial.lora)
    expected = []
    for rows in RUNGS:
        session.train(rows)
        expected.append((rows, session.evaluate()["perplexity"]))
    return [(report.rows, report.measurements["perplexity"]) for report in trial.rungs] == expected


@pytest.mark.parametrize("packed", ["", pytest.param("-packed", marks=pytest.mark.slow)])
def test_stop_waits_for_the_rungs_and_resume_goes_on(
    ray_session: None, text_file: Path, tmp_path: Path, packed: str
) -> None:
    """After `stop` what runs ends at a rung and is kept; `resume` finishes it under its number, to the same values."""
    root = RootPaths(tmp_path)
    paths = root.search("drain")
    observer = Acting(at_first_rung, lambda: post(paths, Request(kind="stop")))
    with pytest.raises(Incomplete, match="stopped as `lorafront stop` asked; go on with: lorafront resume drain"):
        run_search(search_for("drain", text_file), root, observer, engine=f"slow-toy{packed}")
    stopped = read_study(paths.study_db)
    assert stopped.running
    assert len(stopped.trials) < 5
    for trial in stopped.running:
        rows = [rows for rows, _ in paths.trial(trial.number, 1).checkpoints()]
        assert set(rows) <= set(RUNGS)
        assert [report.rows for report in trial.rungs][-1:] == rows[:1]
    after = resume_search("drain", root, engine=f"toy{packed}")
    assert [trial.outcome for trial in after.trials] == [Outcome.COMPLETE] * 5
    assert all(map(as_uninterrupted, after.trials))
    assert [trial.lora for trial in after.trials[: len(stopped.trials)]] == [trial.lora for trial in stopped.trials]


@pytest.mark.parametrize("packed", ["", pytest.param("-packed", marks=pytest.mark.slow)])
def test_stop_now_saves_between_rungs_and_extend_goes_on(
    ray_session: None, text_file: Path, tmp_path: Path, packed: str
) -> None:
    """After `stop --now` what runs is saved in the middle of a rung; extended, exactly so many more trials run."""
    root = RootPaths(tmp_path)
    paths = root.search("now")
    later = threading.Timer(0.4, post, (paths, Request(kind="stop", now=True)))  # a rung lasts a second
    observer = Acting(at_first_rung, later.start)
    with pytest.raises(Incomplete):
        run_search(search_for("now", text_file), root, observer, engine=f"slow-toy{packed}")
    stopped = read_study(paths.study_db)
    saved = {rows for trial in stopped.running for rows, _ in paths.trial(trial.number, 1).checkpoints()}
    assert saved - set(RUNGS)
    assert stopped.seconds > 0
    assert stopped.gpu_seconds > 0
    budget = extended(stopped.search.budget, {"trials": 2}, stopped.spent)
    after = resume_search("now", root, engine=f"toy{packed}", budget=budget)
    assert [trial.number for trial in after.counted] == list(range(7))
    assert all(map(as_uninterrupted, after.trials))
    assert after.seconds > stopped.seconds
    assert resume_search("now", root, engine="toy").trials == after.trials


def test_one_trial_alone_is_cancelled(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """`stop --trial` ends that trial at its next rung with its values and a reason; it counts, and the others go on."""
    root = RootPaths(tmp_path)
    paths = root.search("cancel")
    observer = Acting(
        lambda number, _: number == 1,
        lambda: post(paths, Request(kind="cancel", trial=1)),
    )
    table = run_search(search_for("cancel", text_file), root, observer, engine="slow-toy")
    outcomes = [trial.outcome for trial in table.counted]
    assert outcomes == [Outcome.COMPLETE, Outcome.CANCELLED, *[Outcome.COMPLETE] * 3]
    cancelled = table.trials[1]
    assert cancelled.state == "PRUNED"
    assert [report.rows for report in cancelled.rungs] in ([20], [20, 100])
    assert cancelled.measurements["perplexity"] > 1


def test_a_running_search_is_extended(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """With the last trial of the budget handed out, `extend` still reaches the driver, and all of them run."""
    root = RootPaths(tmp_path)
    paths = root.search("extended")
    search = search_for("extended", text_file, budget={"trials": 2})
    grown = search.budget.model_copy(update={"trials": 4})
    observer = Acting(
        lambda number, _: number == 1,
        lambda: [post(paths, Request(kind="extend", budget=grown)) for _ in range(2)],
    )
    table = run_search(search, root, observer, engine="slow-toy")
    assert [trial.outcome for trial in table.counted] == [Outcome.COMPLETE] * 4
    assert table.search.budget == grown
    assert list(paths.control.glob("request-*")) == []


def test_a_budget_of_time_ends_the_search(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """When the GPU hours are spent the search ends by itself, keeps what runs, and goes on when there are more."""
    root = RootPaths(tmp_path)
    observer = Acting(lambda *_: False, lambda: None)
    search = search_for("hours", text_file, budget={"trials": 4, "gpu_hours": 2.5 / 3600})
    table = run_search(search, root, observer, engine="slow-toy")
    assert table.over.startswith("gpu_hours (")
    assert len(table.counted) < 4
    assert table.running
    assert any(
        "no GPU on this machine: budget.gpu_hours counts the hours of workers" in said for said in observer.heard
    )
    assert any("the budget is spent: gpu_hours" in said for said in observer.heard)
    assert resume_search("hours", root, engine="toy").trials == table.trials
    with pytest.raises(InvalidInput, match=r"budget\.gpu_hours"):
        extended(table.search.budget, {"trials": 1}, table.spent)
    after = resume_search(
        "hours", root, engine="toy", budget=extended(table.search.budget, {"gpu_hours": 1}, table.spent)
    )
    assert [trial.outcome for trial in after.counted] == [Outcome.COMPLETE] * 4
    assert all(map(as_uninterrupted, after.trials))


TOY_DRIVER = """
import sys
from pathlib import Path
from lorafront.search import RootPaths, read_search_file, run_search
from lorafront.search.progress import PlainLines
from lorafront.spaces.errors import LorafrontError
try:
    run_search(read_search_file(Path(sys.argv[1])), RootPaths(Path(sys.argv[2])), PlainLines(print), engine="slow-toy")
except LorafrontError as error:
    print(error)
    sys.exit(error.exit_code)
"""
REAL_DRIVER = """
import sys
from lorafront.search.cli import main
sys.argv = ["lorafront", "run", sys.argv[1], "--root", sys.argv[2]]
main()
"""


def start(code: str, root: Path, data: dict[str, Any]) -> subprocess.Popen[str]:
    """A driver in a process group of its own, as under a shell."""
    file = root / "search.yaml"
    file.write_text(json.dumps(data))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(root)], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def wait_for_line(driver: subprocess.Popen[str], words: str) -> None:
    assert driver.stdout is not None
    seen = []
    for line in driver.stdout:
        seen.append(line)
        if words in line:
            return
    pytest.fail(f"{words!r} never came:\n{''.join(seen)}")


@pytest.mark.faults
def test_an_interrupted_trial_has_the_losses_of_an_uninterrupted_one(
    ray_session: None, text_file: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of a rung: exit within 30 s with the command that goes on, to the same last digit."""
    from lorafront.search.preflight import check
    from lorafront.trainables.frozen_base import BaseCache
    from lorafront.trainables.peft_session import open_session

    root = RootPaths(tmp_path)
    paths = root.search("cut")

    def between_rungs() -> list[int]:
        """Trials whose newest checkpoint is not that of a rung."""
        folders = {number: paths.trial(number, 1).checkpoints() for number in range(2)}
        return [number for number, found in folders.items() if found and found[0][0] not in {16, 1008}]

    space = {"rank": [2, 4, 8], "modules": "attention", "quantization": "bf16", "bias": "none", "dropout": 0.1}
    training = {"rows": 1008, "rungs": [16, 1008], "batch_size": 4, "checkpoint_minutes": 0.01}
    data = search_data("cut", text_file, space=space, training=training, budget={"trials": 2}, engine="process")
    with start(REAL_DRIVER, tmp_path, data) as driver:
        wait_for_line(driver, "at 16 of 1008 rows")
        while not between_rungs():
            time.sleep(0.05)
        begun = time.monotonic()
        os.killpg(driver.pid, signal.SIGINT)
        output, _ = driver.communicate(timeout=60)
        assert time.monotonic() - begun < 30
        assert driver.returncode == 5, output
    assert "go on with: lorafront resume cut" in output
    interrupted = between_rungs()
    assert interrupted
    after = resume_search("cut", root)
    prepared = check(after.search, root, paths.folder)
    for number in interrupted:
        trial = after.trials[number]
        session = open_session(prepared.trial(trial.lora), BaseCache())
        for report in trial.rungs:
            session.train(report.rows)
            expected = session.evaluate()
            assert report.measurements["train_loss"] == expected["train_loss"]
            assert report.measurements["eval_loss"] == expected["eval_loss"]
        session.close()
        assert [report.rows for report in trial.rungs] == [16, 1008]


@pytest.mark.faults
def test_a_second_signal_ends_the_driver_at_once(ray_session: None, text_file: Path, tmp_path: Path) -> None:
    """Two signals within a moment end the process without ado, and the search can be resumed."""
    with start(TOY_DRIVER, tmp_path, search_data("twice", text_file)) as driver:
        wait_for_line(driver, f"at {RUNGS[0]} of")
        driver.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(5) == SECOND_SIGNAL
    table = resume_search("twice", RootPaths(tmp_path), engine="toy")
    assert [trial.outcome for trial in table.counted] == [Outcome.COMPLETE] * 5
    assert all(map(as_uninterrupted, table.trials))


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_a_signal_before_the_first_trial_leaves_nothing(text_file: Path, tmp_path: Path, seconds: float) -> None:
    """Ended while libraries load and Ray starts, a search leaves with 5, without a process or a folder of its name."""
    with start(TOY_DRIVER, tmp_path, search_data("early", text_file)) as driver:
        while not (tmp_path / "early" / "driver.lock").exists():
            assert driver.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(30) == Incomplete.exit_code
    assert not (tmp_path / "early").exists()
    assert not psutil.wait_procs(started, timeout=10)[1]


def test_the_first_signal_is_noted_while_trials_run_and_raised_elsewhere() -> None:
    """Inside `noted` the first signal waits for the loop; outside it interrupts; the second one leaves with 130."""
    left: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with Interruption("toy", left.append) as heard:
        with heard.noted():
            signal.raise_signal(signal.SIGTERM)
        assert heard.heard
        assert heard.patience(60) < 25
        signal.raise_signal(signal.SIGINT)
    assert left == [SECOND_SIGNAL]
    assert signal.getsignal(signal.SIGTERM) is before
    with Interruption("toy", left.append), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_whatever_hangs_the_grace_ends(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A driver that has not left when the grace is over is ended as resumable, with the command that goes on."""
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.05)
    left: list[int] = []
    with Interruption("toy", left.append) as heard, heard.noted():
        signal.raise_signal(signal.SIGINT)
        deadline = time.monotonic() + 10
        while not left and time.monotonic() < deadline:
            time.sleep(0.01)
    assert left == [Incomplete.exit_code]
    assert "interrupted; go on with: lorafront resume toy" in capfd.readouterr().err


def test_hours_are_those_of_all_drivers(tmp_path: Path) -> None:
    """A driver that goes on counts the time that earlier ones have lived, and stops once it is spent."""
    search = parse_search({"name": "n", "model": "m", "data": {"path": "d"}, "budget": {"trials": 9, "hours": 1}})
    paths = RootPaths(tmp_path).search("n")
    paths.folder.mkdir()
    now = [0.0]

    def drive(ledger: StudyLedger) -> Control:
        ledger.begin_epoch()
        return Control(paths, ledger, Silent(), Interruption("n"), clock=lambda: now[0])

    first = drive(StudyLedger(paths.study_db, search, create=True))
    now[0] = 3000.0
    first.poll()
    assert not first.stopping
    now[0] = 9000.0  # nobody drives
    second = drive(StudyLedger(paths.study_db, search, create=False))
    second.attempt_began(0, 0.5)
    now[0] = 9590.0
    second.poll()
    assert not second.stopping
    now[0] = 9600.0
    second.poll()
    assert second.stopping
    assert paths.orders(2).now.exists()
    second.conclude()  # a spent budget is an end, not an interruption
    second.keep()
    table = read_study(paths.study_db)
    assert (table.seconds, table.gpu_seconds) == (3600.0, 300.0)
    assert table.over == "hours (1 of 1)"


def test_a_request_is_sent_to_a_living_driver_only(tmp_path: Path) -> None:
    """Whoever asks learns whether a driver took it; one that died first, or was never there, leaves nothing behind."""
    paths = RootPaths(tmp_path).search("n")
    paths.folder.mkdir()
    request = Request(kind="cancel", trial=3)
    assert send(paths, request) is False
    with ThreadPoolExecutor() as pool:
        with owned(paths):
            answer = pool.submit(send, paths, request)
            taken: list[Request] = []
            while not taken:
                taken = list(take(paths))
            assert answer.result(10) is True
            unheard = pool.submit(send, paths, request)
            while not list(paths.control.iterdir()):
                time.sleep(0.01)
        assert unheard.result(10) is False
    assert taken == [request]
    assert list(paths.control.iterdir()) == []


def test_what_a_dead_driver_was_asked_is_forgotten(tmp_path: Path) -> None:
    """The next driver does not stop because an earlier one should have; a larger budget stays asked for."""
    paths = RootPaths(tmp_path).search("n")
    search = parse_search({"name": "n", "model": "m", "data": {"path": "d"}})
    extend = Request(kind="extend", budget=search.budget)
    orders = paths.orders(1)
    orders.give(orders.now)
    orders.give(orders.cancelled(3))
    for request in (Request(kind="stop"), extend, Request(kind="stop", now=True)):
        post(paths, request)
    (paths.control / "request-0.json").write_text("{")
    forget_stops(paths)
    assert not orders.path.exists()
    assert paths.orders(2).cancelled(3).exists()  # for good, whoever drives
    orders.cancelled(3).unlink()
    assert list(take(paths)) == [extend]
    post(paths, Request(kind="stop"))
    (paths.control / "request-0.json").write_text('{"kind": "explode"}')
    assert [request.kind for request in take(paths)] == ["stop"]
    assert list(paths.control.iterdir()) == []
