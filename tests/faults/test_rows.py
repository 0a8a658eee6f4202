"""Whole searches of toy trials under faults, with real processes and real signals; `make faults` runs them.

The rows are those of a fault matrix: F1 killed driver, F4 ended driver, F7 killed worker and F31 two drivers stand in
tests/search/test_run.py and run with `make test`, F26 and F39 too; F2, F3, F24 stand in test_points.py, F27 and F37 in
test_retries.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_support import Verdict, read_witness, verdict
from network_link import Link
from object_stores import BUCKET, s3_server
from servers import PASSWORD, Postgres, free_port, started_postgres, why_no_postgres
from support import TINY_LLAMA

from lorafront.search.copies import fetch
from lorafront.search.database import reading
from lorafront.search.doctor_report import examined
from lorafront.search.object_store import storage
from lorafront.search.paths import RootPaths
from lorafront.search.study_table import StudyTable, read_study
from lorafront.trainables import heartbeat
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.trial import TrialFolder
from lorafront.trainables.witness import START

pytestmark = pytest.mark.faults
RUNGS = (8, 16, 32)
SECONDS = 200  # on a machine that others load too


class Search:
    """A search of four slow toy trials and the processes that drive it."""

    def __init__(self, root: Path, text_file: Path, engine: str = "toy") -> None:
        self.root = root
        self.engine = engine
        self.within: list[str] = []  # a command that runs the driver
        self.data: dict[str, Any] = {
            "name": "s",
            "model": str(TINY_LLAMA),
            "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
            "space": {"rank": [2, 4, 8, 16], "modules": "attention", "quantization": "bf16", "bias": "none"},
            "training": {"rows": 32, "rungs": 3, "batch_size": 4},
            "budget": {"trials": 4},
        }

    def start(self, fault: str = "before_train:slow", command: str = "run") -> subprocess.Popen[str]:
        file = self.root / "search.yaml"
        file.write_text(json.dumps(self.data))
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "FAULT_AT": fault,
            "FAULT_ONCE": str(self.root / "once"),
            "LORAFRONT_WITNESS": str(self.root / "witness.jsonl"),
        }
        return subprocess.Popen(
            [*self.within, sys.executable, "-m", "lorafront.search.cli", command,
             str(file) if command == "run" else "s", "--root", str(self.root), "--engine", self.engine],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip

    def end(self, fault: str = "", command: str = "run") -> tuple[int, str]:
        """Run to the end; (exit code, output)."""
        with self.start(fault, command) as process:
            output, _ = process.communicate(timeout=SECONDS)
        return process.returncode, output

    def resumed(self) -> StudyTable:
        """Resume to the end, which has to be a good one."""
        code, output = self.end(command="resume")
        assert code == 0, output
        return self.table

    @property
    def table(self) -> StudyTable:
        return read_study(RootPaths(self.root).search("s").study_db)

    def verdict(self) -> Verdict:
        return verdict(self.root, rungs=RUNGS)

    def findings(self) -> list[str]:
        return [str(finding) for finding in examined(RootPaths(self.root), "s")[0]]

    def folder(self, number: int) -> TrialFolder:
        return RootPaths(self.root).search("s").trial(number, self.table.trials[number].epoch)


@pytest.fixture
def search(tmp_path: Path, text_file: Path) -> Search:
    return Search(tmp_path, text_file)


@pytest.fixture
def packed(tmp_path: Path, text_file: Path) -> Search:
    """Four at once in one worker."""
    search = Search(tmp_path, text_file, "toy-packed")
    search.data["resources"] = {"slots": 4, "max_concurrent": 1}
    return search


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return
    pytest.fail(f"{words!r} never came:\n{''.join(seen)}")


def wait_for(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    pytest.fail("it never happened")


def worker_of(search: Search) -> psutil.Process:
    """A process that trains now."""

    def living() -> psutil.Process | None:
        for trial in search.table.running:
            sign = heartbeat.read(search.folder(trial.number).path)
            if sign is not None and (process := sign.process()) is not None:
                return process
        return None

    return wait_for(living)


def assert_whole(search: Search) -> None:
    """Nothing lost, nothing done twice, nothing left over."""
    assert search.verdict().problems == ()
    assert search.findings() == []


@pytest.mark.parametrize("point", ["before_tell", "after_tell_before_mlflow", "mid_mlflow"])
def test_a_driver_killed_at_a_point_is_resumed(search: Search, point: str) -> None:
    """F2, F3, F14: killed before or after a result is told, or in the middle of a run, each result counts once."""
    assert search.end(f"before_train:slow,{point}:kill:2")[0] == -signal.SIGKILL
    search.resumed()
    assert_whole(search)


@pytest.mark.parametrize(("point", "again"), [("mid_ckpt_write", 1), ("after_result_rename", 0)])
def test_a_worker_killed_at_a_point_loses_nothing(search: Search, point: str, again: int) -> None:
    """F7, F24: a worker that dies while it writes costs no budget; where its result stands, nothing is run again."""
    code, output = search.end(f"{point}:kill:2")
    assert code == 0, output
    assert sum(sum(ends.values()) for ends in kept_ends(search).values()) == again
    assert_whole(search)


@pytest.mark.parametrize(("point", "again"), [("mid_ckpt_write", 4), ("after_result_rename", 3)])
def test_a_worker_with_a_pack_killed_at_a_point_loses_nothing(packed: Search, point: str, again: int) -> None:
    """F7, F24: all that it had go on where they were, each counts the loss, and what had a result is not run again."""
    code, output = packed.end(f"{point}:kill:2")
    assert code == 0, output
    found = sum(sum(ends.values()) for ends in kept_ends(packed).values())
    assert found in {again, again - 1}  # one of two results stood at the kill, or both
    assert_whole(packed)


def test_a_pack_without_memory_goes_on_smaller(packed: Search) -> None:
    """F27: half of it waits until there is room; nobody has failed, and nothing is trained twice."""
    code, output = packed.end("before_train:oom:3")
    assert code == 0, output
    assert "paused" in output
    assert kept_ends(packed) == {}
    assert [trial.outcome for trial in packed.table.counted] == [Outcome.COMPLETE] * 4
    assert packed.verdict().restarts == 2
    assert_whole(packed)


def test_a_hung_pack_is_ended_and_all_of_it_runs_again(packed: Search) -> None:
    """F8: one silent worker is killed once, and each of its trials has hung."""
    packed.data["resources"] |= {"hang_minutes": 0.1}
    with packed.start() as driver:
        read_until(driver, "at 8 of 32 rows")
        stopped = worker_of(packed)
        stopped.suspend()
        read_until(driver, "made no progress for 6 s; its worker was ended")
        output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 0, output
    assert {kind.split("@")[0] for ends in kept_ends(packed).values() for kind in ends} == {"timeout"}
    assert len(kept_ends(packed)) == 4
    assert_whole(packed)


def test_an_interrupted_pack_is_resumed(packed: Search) -> None:
    """F5: all of it saves within the time, and goes on under its numbers."""
    with packed.start() as driver:
        read_until(driver, "at 16 of 32 rows")
        driver.send_signal(signal.SIGINT)
        output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 5, output
    packed.resumed()
    assert_whole(packed)


def kept_ends(search: Search) -> dict[int, dict[str, int]]:
    query = "SELECT number, value_json FROM trial_user_attributes JOIN trials USING (trial_id) WHERE key = 'ends'"
    with contextlib.closing(sqlite3.connect(RootPaths(search.root).search("s").study_db)) as database:
        return {number: json.loads(value) for number, value in database.execute(query)}


@pytest.mark.parametrize("signals", [1, 2])
def test_an_interrupted_driver_says_how_to_go_on(search: Search, signals: int) -> None:
    """F5, F6: Ctrl-C once ends the driver within its time with the command that goes on, twice at once; both resume."""
    with search.start() as driver:
        read_until(driver, "at 16 of 32 rows")
        start = time.monotonic()
        for _ in range(signals):
            driver.send_signal(signal.SIGINT)
            time.sleep(0.2)
        output, _ = driver.communicate(timeout=60)
        assert time.monotonic() - start < 30
    assert driver.returncode in ({5} if signals == 1 else {5, 130}), output
    if signals == 1:
        assert "lorafront resume s" in output
    search.resumed()
    assert_whole(search)


def test_a_hung_worker_is_ended_and_its_trial_runs_again(search: Search) -> None:
    """F8: a stopped worker is found by its silence and killed; its trial goes on and the budget is spent exactly."""
    search.data["resources"] = {"hang_minutes": 0.1}
    with search.start() as driver:
        read_until(driver, "at 8 of 32 rows")
        stopped = worker_of(search)
        stopped.suspend()
        read_until(driver, "made no progress for 6 s; its worker was ended")
        output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 0, output
    assert not stopped.is_running()
    assert [trial.outcome for trial in search.table.counted] == [Outcome.COMPLETE] * 4
    assert {kind.split("@")[0] for ends in kept_ends(search).values() for kind in ends} == {"timeout"}
    assert_whole(search)


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_search_whose_ray_dies_ends_and_says_how_to_go_on(search: Search, victim: str) -> None:
    """F9, F10: within a minute, with all of its processes, and nothing is lost."""
    with search.start() as driver:
        read_until(driver, "at 8 of 32 rows")
        there = psutil.Process(driver.pid).children(recursive=True)
        next(process for process in there if process.name() == victim).kill()
        output, _ = driver.communicate(timeout=90)
    assert driver.returncode not in (0, None), output
    assert "lorafront resume s" in output
    _, alive = psutil.wait_procs(there, timeout=10)
    assert not alive
    search.resumed()
    assert_whole(search)


def test_a_server_that_never_answers_delays_nobody(search: Search) -> None:
    """F13: an MLflow server that accepts and never answers holds up no trial, and the end says what lacks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        search.data["tracking"] = {"uri": f"http://127.0.0.1:{server.getsockname()[1]}"}
        code, output = search.end()
    assert code == 0, output
    assert "lorafront mlflow-sync s" in output
    assert search.verdict().problems == ()


def test_a_locked_study_is_waited_for(search: Search) -> None:
    """F18: while another process holds the database, nothing fails; the writes come when it lets go."""
    with search.start() as driver:
        read_until(driver, "trial 0 starts")
        database = sqlite3.connect(RootPaths(search.root).search("s").study_db, timeout=30, isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(5)
        database.execute("COMMIT")
        database.close()
        output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 0, output
    assert_whole(search)


@pytest.fixture
def small_disk(search: Search) -> Iterator[Path]:
    """A file system of four megabytes under the search's root."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(search.root)], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield search.root
    subprocess.run(["umount", "--lazy", str(search.root)], check=True)


def test_a_full_disk_stops_the_search_and_fails_no_trial(search: Search, small_disk: Path) -> None:
    """F19, F20: with no room for checkpoints or the study the driver says so and ends; with room again it goes on."""
    search.data["tracking"] = {"uri": "http://127.0.0.1:9"}  # its store would not fit anyway
    ballast = small_disk / "ballast"
    with search.start() as driver:
        read_until(driver, "at 8 of 32 rows")
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 5, output
    assert "lorafront resume s" in output
    assert "disk" in output or "space" in output
    ballast.unlink()
    table = search.resumed()
    assert [trial.outcome for trial in table.counted] == [Outcome.COMPLETE] * 4
    assert search.verdict().problems == ()


def test_a_place_that_cannot_be_written_is_refused_at_once(search: Search, small_disk: Path) -> None:
    """F21: on a read-only file system nothing starts, and the message names the folder."""
    file = search.root.parent / "search.yaml"
    file.write_text(json.dumps(search.data))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "lorafront.search.cli", "run", str(file), "--root", str(small_disk)],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"cannot write below {small_disk}" in done.stderr


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_checkpoint_is_passed_over(search: Search, damage: str) -> None:
    """F23: after a bit flip or a cut in its newest checkpoint a trial goes on from the one before, and ends whole."""
    with search.start("before_train:slow,after_ckpt_rename:kill:2") as driver:  # a worker, with two checkpoints
        read_until(driver, "will be run again")
        driver.kill()
        driver.wait()
    (number,) = kept_ends(search)
    file = search.folder(number).checkpoint(16) / "toy.json"
    raw = file.read_bytes()
    file.write_bytes(bytes([raw[0] ^ 1]) + raw[1:] if damage == "flip" else raw[: len(raw) // 2])
    table = search.resumed()
    assert table.trials[number].outcome is Outcome.COMPLETE
    record = read_witness(search.root / "witness.jsonl")
    assert [line.rows for line in record if line.number == number and line.event == START][-1] == 8
    assert_whole(search)


def test_a_cut_study_is_never_started_over(search: Search) -> None:
    """F22: with half of its study gone a search is refused with the path, and the file is left as it is."""
    search.data["budget"] = {"trials": 1}
    assert search.end()[0] == 0
    study = RootPaths(search.root).search("s").study_db
    with contextlib.closing(sqlite3.connect(study)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the write-ahead log mends the cut, as it should
    study.write_bytes(study.read_bytes()[: study.stat().st_size // 2])
    before = study.read_bytes()
    code, output = search.end(command="resume")
    assert code == 6
    assert str(study) in output
    assert study.read_bytes() == before


def test_a_worker_back_from_the_dead_changes_nothing(search: Search) -> None:
    """F30: a stopped worker of a killed driver is ended by the next one, and what it had left to say is not heard."""
    with search.start() as driver:
        read_until(driver, "at 8 of 32 rows")
        zombie = worker_of(search)
        zombie.suspend()
        driver.kill()
        driver.wait()
    search.resumed()
    with contextlib.suppress(psutil.NoSuchProcess):
        zombie.resume()
        zombie.wait(5)
    assert not zombie.is_running()
    assert_whole(search)


def test_resuming_three_times_changes_nothing(search: Search) -> None:
    """F35, F36: resuming a finished search leaves every row as it is, and no two drivers proposed one configuration."""
    with search.start() as driver:
        read_until(driver, "finished at full fidelity")
        driver.kill()
        driver.wait()
    first = search.resumed()
    for _ in range(2):
        assert search.resumed().trials == first.trials
    assert_whole(search)


def test_clocks_that_jump_back_mislead_nobody(search: Search) -> None:
    """F34: with every file's time turned around between two drivers, a trial still goes on from its last checkpoint."""
    with search.start() as driver:
        read_until(driver, "at 16 of 32 rows")
        driver.kill()
        driver.wait()
    for age, file in enumerate(sorted((search.root / "s").rglob("*"), key=lambda path: path.stat().st_mtime)):
        os.utime(file, (1e9 - age, 1e9 - age))
    search.resumed()
    assert_whole(search)


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_database_that_restarts_costs_no_trial(search: Search, postgres: Postgres, how: str) -> None:
    """F15, F16: a PostgreSQL that is restarted, or dies and is back after three seconds, is waited for."""
    with search.start() as driver:
        read_until(driver, "at 16 of 32 rows")
        postgres.do(how)
        time.sleep(3)
        postgres.start()
        output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 0, output
    assert_whole(search)


@pytest.fixture
def link() -> Iterator[Link]:
    """A network of two machines: this one, and a namespace."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    found = Link(f"lf{os.getpid()}")
    yield found
    found.remove()


def test_a_network_that_fails_for_a_while_costs_no_trial(
    search: Search, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F32: a driver whose cable to the database is out for twenty seconds goes on when it is back."""
    if why := why_no_postgres():
        pytest.skip(why)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with started_postgres(link.here) as server:
        monkeypatch.setenv("LORAFRONT_DATABASE", server.url())
        search.within = link.within
        with search.start() as driver:
            read_until(driver, "at 16 of 32 rows")
            link.down()
            time.sleep(20)
            link.up()
            output, _ = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 0, output
        assert_whole(search)


def test_drivers_killed_on_a_database_are_resumed(search: Search, postgres: Postgres) -> None:
    """F1, F16: with driver and database both dead, all is there when both are back."""
    with search.start() as driver:
        read_until(driver, "finished at full fidelity")
        driver.kill()
        postgres.do("crash")
        driver.wait()
    postgres.start()
    search.resumed()
    assert_whole(search)


def test_no_secret_of_the_environment_is_kept(
    search: Search, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords and tokens that a driver was given stand in no file, no database row, no run and no line of output."""
    secrets = {name: f"planted-{name}" for name in ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD")}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    code, output = search.end()
    assert code == 0, output
    everything = [output, *(file.read_bytes().decode(errors="replace") for file in files_below(search.root))]
    with reading(RootPaths(search.root).search("s").study_db) as read:
        tables = ("study_user_attributes", "study_system_attributes", "trial_user_attributes", "trial_params")
        everything += [str(read(f"SELECT * FROM {table}")) for table in tables]
    assert any(str(search.table.trials[0].lora.rank) in text for text in everything)  # it looks where things are
    for secret in (PASSWORD, *secrets.values()):
        assert not any(secret in text for text in everything)


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name != "witness.jsonl")


def test_runs_that_a_server_missed_are_written_when_it_returns(search: Search) -> None:
    """F12, F14: a tracking server that is killed and comes back on the same store has one run per trial, all ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = mlflow_server(search.root, port)
    try:
        search.data["tracking"] = {"uri": f"http://127.0.0.1:{port}"}
        with search.start() as driver:
            read_until(driver, "at 8 of 32 rows")
            end_group(server)
            output, _ = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 0, output
        server = mlflow_server(search.root, port)
        assert search.end(command="resume")[0] == 0
        assert_whole(search)
    finally:
        end_group(server)


def mlflow_server(root: Path, port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{root}/server.db",
         "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=root,
    )  # fmt: skip

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    wait_for(answers, 60)
    return server


def end_group(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def copied_trials(folder: Path) -> dict[int, dict[str, float]]:
    """What was measured of the trials that are complete in the copy, and whose checkpoints are there."""
    table, paths = copied_to(folder), RootPaths(folder).search("s")
    done = [trial for trial in table.complete if trial.last is not None] if table else []
    there = {trial.number: paths.trial(trial.number, trial.epoch) for trial in done}
    return {
        trial.number: dict(trial.reported)
        for trial in done
        if trial.last is not None and there[trial.number].checkpoint(trial.last.rows).is_dir()
    }


def copied_to(folder: Path) -> StudyTable | None:
    """The study as its copy has it."""
    shutil.rmtree(folder, ignore_errors=True)
    fetch(RootPaths(folder), "s")
    paths = RootPaths(folder).search("s")
    return read_study(paths.study_db) if paths.has_study() else None


@pytest.mark.parametrize("where", ["a file", "postgres"])
def test_a_search_goes_on_where_its_machine_and_disk_are_lost(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, where: str
) -> None:
    """What was copied as finished stays as it was, under its number; the rest is trained, and nothing counts twice."""
    lost, found = Search(tmp_path / "lost", text_file), Search(tmp_path / "found", text_file)
    if where == "postgres":
        request.getfixturevalue("postgres")
    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LORAFRONT_STORAGE", f"s3://{BUCKET}/{where.rsplit(maxsplit=1)[-1]}")
        for one in (lost, found):
            one.root.mkdir()
            one.data["budget"], one.data["early_stopping"] = {"trials": 10}, "off"
        with lost.start() as driver:
            end = time.monotonic() + 150
            while len(before := copied_trials(tmp_path / "look")) < 2:
                assert time.monotonic() < end
                assert driver.poll() is None
                time.sleep(2)
            driver.kill()
        shutil.move(lost.root, tmp_path / "gone")  # workers may still write there
        table = found.resumed()
    assert len(table.complete) == len(table.counted) == 10
    assert {trial.number: trial.reported for trial in table.complete if trial.number in before} == before
    assert len({trial.lora.fingerprint for trial in table.complete}) == 10
    # PostgreSQL knows of trials whose checkpoints were still to be copied: these are named.
    wrong = [finding for finding in found.findings() if "MLflow" not in finding]
    lacking = {int(finding.split()[1]) for finding in wrong if "cannot be exported" in finding}
    assert len(lacking) == len(wrong)
    assert not lacking & before.keys()
    assert where == "postgres" or not wrong


def test_a_store_that_goes_away_delays_nothing_and_is_told(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ends as it would have; what lacks is copied when it is resumed and the store is there again."""
    search, port = Search(tmp_path, text_file), free_port()
    with s3_server(port) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LORAFRONT_STORAGE", f"s3://{BUCKET}/that-goes-away")
        driver = search.start()
        read_until(driver, "at 8 of 32 rows")
    with driver:
        output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    assert "not all is copied to s3://" in output
    assert "lorafront resume s" in output
    store = storage()
    assert store is not None
    with s3_server(port):
        search.resumed()
        names = store.find("s/trials")
        copy = copied_to(tmp_path / "look")
    assert copy is not None
    assert copy.complete == search.table.complete
    assert {name.split("/")[0] for name in names if name.endswith("result.json")} == {
        f"{trial.number:05d}" for trial in copy.counted
    }
