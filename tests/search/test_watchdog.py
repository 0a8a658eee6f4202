"""The watchdog ends workers that have come to a stand, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lorafront.search.paths import SearchPaths
from lorafront.search.watchdog import Watchdog, end_leftovers
from lorafront.trainables import heartbeat


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def sign(folder: Path, process: subprocess.Popen[bytes], *, later: float = 0.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    started = psutil.Process(process.pid).create_time() + later
    (folder / heartbeat.FILE).write_text(json.dumps({"pid": process.pid, "started": started}))


def test_a_silent_worker_is_ended_and_said_once(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """After the limit without a change its process is killed, and whoever asks learns once that it was."""
    now = [0.0]
    watchdog = Watchdog(10, clock=lambda: now[0])
    watchdog.watch(3, tmp_path)
    sign(tmp_path, worker)
    assert watchdog.look() == []
    now[0] = 10.0
    assert watchdog.look() == []
    now[0] = 10.1
    assert watchdog.look() == [3]
    assert not psutil.pid_exists(worker.pid)
    assert watchdog.forget(3)
    assert not watchdog.forget(3)


def test_all_trials_of_a_silent_worker_are_named(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """One process is ended once, and each trial of its pack has hung."""
    now = [0.0]
    watchdog = Watchdog(10, clock=lambda: now[0])
    for number in (3, 4):
        watchdog.watch(number, tmp_path / str(number))
        sign(tmp_path / str(number), worker)
    assert watchdog.look() == []
    now[0] = 10.1
    assert watchdog.look() == [3, 4]
    assert [watchdog.forget(number) for number in (3, 4)] == [True, True]


def test_a_worker_that_comes_forward_is_left_alone(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Each change of the file starts the time anew, and a trial that has ended is no longer watched."""
    now = [0.0]
    watchdog = Watchdog(10, clock=lambda: now[0])
    watchdog.watch(3, tmp_path)
    sign(tmp_path, worker)
    for moment in (0.0, 8.0, 16.0, 24.0):
        now[0] = moment
        (tmp_path / heartbeat.FILE).touch()
        assert watchdog.look() == []
    assert not watchdog.forget(3)
    now[0] = 1000.0
    assert watchdog.look() == []
    assert worker.poll() is None


def test_a_worker_is_not_ended_for_a_trial_that_it_had_before(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A trial that is run again is watched from its new worker's first sign: the old one may be at another trial."""
    now = [0.0]
    watchdog = Watchdog(10, clock=lambda: now[0])
    sign(tmp_path, worker)
    watchdog.watch(3, tmp_path)
    for moment in (0.0, 100.0):
        now[0] = moment
        assert watchdog.look() == []
    assert worker.poll() is None


def test_another_process_of_the_same_id_is_not_ended(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A worker's id that belongs to a process of another start time names nobody."""
    paths = SearchPaths(tmp_path)
    sign(paths.trial(0, 1).path, worker, later=-100.0)
    assert end_leftovers(paths, {0: 1, 1: 1}) == []
    assert worker.poll() is None


def test_workers_of_an_older_driver_are_ended(worker: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A worker that outlived its driver, stopped or not, is killed before its trial goes on elsewhere."""
    paths = SearchPaths(tmp_path)
    sign(paths.trial(0, 1).path, worker)
    psutil.Process(worker.pid).suspend()
    assert end_leftovers(paths, {0: 1, 1: 1}) == [0]
    assert not psutil.pid_exists(worker.pid)


def test_a_beat_is_a_change_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sign of a process names it, and a beat after the pause between two changes it."""
    monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.0)
    heartbeat.begin(tmp_path)
    first = heartbeat.read(tmp_path)
    assert first is not None
    assert first.process() == psutil.Process()
    heartbeat.beat()
    second = heartbeat.read(tmp_path)
    assert second is not None
    assert second.beat > first.beat


def test_a_worker_elsewhere_that_could_not_be_ended_is_ended_later(tmp_path: Path) -> None:
    """Its machine did not answer; only then is it said that it was ended, and the trial is one that hung."""
    (tmp_path / heartbeat.FILE).write_text(
        json.dumps({"pid": 1, "started": 1.0, "beats": 3, "place": "x", "node": "n"})
    )
    now, answers = [0.0], iter([False, True])
    watchdog = Watchdog(10, clock=lambda: now[0], end_elsewhere=lambda sign: sign.node == "n" and next(answers))
    (folder := tmp_path / "trial").mkdir()
    watchdog.watch(7, folder)
    (tmp_path / heartbeat.FILE).rename(folder / heartbeat.FILE)
    ended = []
    for now[0] in (0, 11, 12, 23):
        ended.append(watchdog.look())
    assert ended == [[], [], [], [7]]
    assert watchdog.forget(7)
