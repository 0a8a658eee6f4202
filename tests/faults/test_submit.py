"""Searches that are submitted to a Ray cluster: a real head with a job server and a token, and a laptop that leaves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_support import verdict
from ray_head import Head, free_ports, head, wait_for, why_none
from support import TINY_LLAMA

from lorafront.search.paths import RootPaths
from lorafront.search.study_table import StudyTable, read_study
from lorafront.search.submitted import TRIES, Record, Submitted
from lorafront.spaces.errors import StateUnreadable
from lorafront.trainables.outcome import Outcome

pytestmark = [pytest.mark.faults, pytest.mark.skipif(bool(why_none()), reason=why_none()), pytest.mark.timeout(900)]
RUNGS = (8, 16, 32)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head() as found:
        yield found


@pytest.fixture
def own_cluster() -> Iterator[Head]:
    """One to be killed."""
    with head() as found:
        yield found


@pytest.fixture
def laptop(tmp_path: Path, text_file: Path) -> Path:
    """A folder with data of its own."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/text.txt").write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def search_file(folder: Path, name: str, trials: int = 4) -> str:
    data: dict[str, Any] = {
        "name": name,
        "model": str(TINY_LLAMA),
        "data": {"path": "../data/text.txt", "max_length": 32, "train_rows": 64, "eval_rows": 8},
        "space": {"rank": [2, 4, 8, 16], "modules": "attention", "quantization": "bf16", "bias": "none"},
        "training": {"rows": 32, "rungs": 3, "batch_size": 4},
        "budget": {"trials": trials},
        "early_stopping": "off",
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(data))
    return file.name


def table(on: Head, name: str) -> StudyTable:
    return read_study(RootPaths(on.root).search(name).study_db)


def record(on: Head, name: str) -> Record:
    return Submitted(RootPaths(on.root), name).read()


def has_ended(on: Head, name: str, trials: int) -> Callable[[], bool]:
    """So many of its trials."""

    def ended() -> bool:
        with contextlib.suppress(StateUnreadable):  # it is just being set up
            return RootPaths(on.root).search(name).has_study() and len(table(on, name).counted) >= trials
        return False

    return ended


def test_nothing_listens_elsewhere(cluster: Head) -> None:
    """A head as these tests start it is reached from this machine alone."""
    assert {address.removeprefix("::ffff:") for address in cluster.sockets()} == {"127.0.0.1"}


def test_a_search_needs_no_laptop(cluster: Head, laptop: Path) -> None:
    """Its driver goes on once the command that submitted it is gone; others look at it as if they were there."""
    done = cluster.laptop("submit", search_file(laptop, "s"), "--engine", "slow-toy", folder=laptop)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"lorafront status s --address {cluster.url}" in done.stdout
    wait_for(lambda: record(cluster, "s").done)
    assert verdict(cluster.root).problems == ()
    assert {trial.outcome for trial in table(cluster, "s").trials} == {Outcome.COMPLETE}
    for command in (["list"], ["status", "s"], ["pareto", "s", "--json"], ["pareto", "t"]):
        there, here = cluster.laptop(*command), cluster.here(*command)
        assert (there.stdout, there.stderr, there.returncode) == (here.stdout, here.stderr, here.returncode), command
    log = cluster.laptop("logs", "s")
    assert "4 trials recorded" in log.stdout
    again = cluster.laptop("submit", search_file(laptop, "s"), folder=laptop)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_a_search_is_stopped_and_goes_on(cluster: Head, laptop: Path) -> None:
    """`stop` reaches the driver, which does not come back by itself; `resume` starts another one."""
    file = search_file(laptop, "stopped", 40)
    first = cluster.laptop("submit", file, "--engine", "slow-toy", "--json", folder=laptop)
    assert json.loads(first.stdout) == {"search": "stopped", "job": "lorafront-stopped-1"}
    second = cluster.laptop("submit", file, "--engine", "slow-toy", folder=laptop)
    assert (second.returncode, second.stdout) == (3, "")
    assert "is being run by job lorafront-stopped-1" in second.stderr
    wait_for(has_ended(cluster, "stopped", 1))
    assert cluster.laptop("stop", "stopped").stdout.startswith("stopped stops: no new trials")
    followed = cluster.laptop("logs", "stopped", "--follow")
    assert followed.returncode == 5
    assert "stopped as `lorafront stop` asked" in followed.stdout
    assert len(table(cluster, "stopped").counted) < 40
    assert "stopped was stopped" in cluster.here("resume", "--submitted").stdout
    assert cluster.laptop("resume", "stopped").stdout == "stopped goes on as job lorafront-stopped-2\n"
    assert cluster.laptop("logs", "stopped", "--follow").returncode == 0
    assert len(table(cluster, "stopped").counted) == 40


def test_a_cluster_that_refuses_is_one_line(cluster: Head, laptop: Path) -> None:
    """A wrong token, none, no job server, and a file that is wrong; nothing was sent."""
    file = search_file(laptop, "never")
    for token in ("0" * 64, ""):
        refused = cluster.laptop("submit", file, folder=laptop, RAY_AUTH_TOKEN=token)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == (
            f"{cluster.url} refuses the token: give the cluster's in RAY_AUTH_TOKEN, or its file in "
            "RAY_AUTH_TOKEN_PATH\n"
        )
    (port,) = free_ports(1)
    away = cluster.laptop("list", url=f"http://127.0.0.1:{port}")
    assert (away.returncode, away.stdout, away.stderr.count("\n")) == (2, "", 1)
    assert "does not answer" in away.stderr
    other = cluster.laptop("list", url=f"http://127.0.0.1:{cluster.gcs}")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "it does not speak HTTP" in other.stderr
    assert not Submitted(RootPaths(cluster.root), "never").is_there


def test_a_search_survives_its_head(own_cluster: Head, laptop: Path) -> None:
    """Its machine loses power in the middle, again and again: the search comes back by itself until that is hopeless.

    Whoever then goes on with it gets all of it: nothing is lost and nothing is done twice.
    """
    done = own_cluster.laptop("submit", search_file(laptop, "s", 40), "--engine", "slow-toy", folder=laptop)
    assert done.returncode == 0, done.stderr
    wait_for(has_ended(own_cluster, "s", 3))
    for left in reversed(range(TRIES)):
        own_cluster.kill()
        own_cluster.start()
        assert own_cluster.here("resume", "--submitted").stdout == (
            f"s goes on as job lorafront-s-1; {left} more tries without anything new\n"
        )
    own_cluster.kill()
    assert 3 <= len(table(own_cluster, "s").counted) < 40
    own_cluster.start()
    assert "does not come back by itself" in own_cluster.here("resume", "--submitted").stdout
    assert own_cluster.laptop("resume", "s").stdout == "s goes on as job lorafront-s-1\n"
    wait_for(lambda: record(own_cluster, "s").done)
    assert verdict(own_cluster.root, rungs=RUNGS).problems == ()
    assert len(table(own_cluster, "s").counted) == 40
    assert own_cluster.here("resume", "--submitted").stdout == "s is done\n"


def test_a_search_comes_back_by_itself(own_cluster: Head, laptop: Path) -> None:
    """A head that is started again once finishes the search without anybody's help."""
    done = own_cluster.laptop("submit", search_file(laptop, "s", 40), "--engine", "slow-toy", folder=laptop)
    assert done.returncode == 0, done.stderr
    wait_for(has_ended(own_cluster, "s", 3))
    own_cluster.kill()
    own_cluster.start()
    assert "s goes on as job lorafront-s-1" in own_cluster.here("resume", "--submitted").stdout
    assert own_cluster.here("resume", "--submitted").stdout == "s is being run by job lorafront-s-1\n"
    wait_for(lambda: record(own_cluster, "s").done)
    assert verdict(own_cluster.root, rungs=RUNGS).problems == ()
    assert len(table(own_cluster, "s").counted) == 40
