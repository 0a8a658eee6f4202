"""Searches on a Ray cluster whose nodes die, come, and are cut off: real `ray start` processes on one machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_support import Verdict, read_witness, verdict
from network_link import Link
from ray_nodes import RayNodes, nodes
from support import TINY_LLAMA

from lorafront.search.paths import RootPaths
from lorafront.search.study_table import StudyTable, read_study
from lorafront.trainables import heartbeat

pytestmark = pytest.mark.faults
RUNGS = (8, 16, 32)
SECONDS = 240


class Driven:
    """A search of slow toy trials whose driver has joined a cluster."""

    def __init__(self, root: Path, text_file: Path) -> None:
        self.root = root
        self.seen: list[str] = []
        self.within: list[str] = []  # a command that runs the driver
        self.process: subprocess.Popen[str] | None = None
        self.data: dict[str, Any] = {
            "name": "s",
            "model": str(TINY_LLAMA),
            "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
            "space": {"rank": [2, 4, 8, 16], "modules": "attention", "quantization": "bf16", "bias": "none"},
            "training": {"rows": 32, "rungs": 3, "batch_size": 4},
            "early_stopping": "off",
            "budget": {"trials": 6},
        }

    @property
    def variables(self) -> dict[str, str]:
        """Of the nodes: their workers leave a ledger, and are slow."""
        return {"FAULT_AT": "before_train:slow", "LORAFRONT_WITNESS": str(self.root / "witness.jsonl")}

    def start(self, cluster: RayNodes, command: str = "run", *options: str) -> None:
        file = self.root / "search.yaml"
        file.write_text(json.dumps(self.data))
        self.process = subprocess.Popen(
            [*self.within, sys.executable, "-m", "lorafront.search.cli", command,
             str(file) if command == "run" else "s", "--root", str(self.root), "--engine", "slow-toy", *options],
            env={**cluster.driver, "PYTHONUNBUFFERED": "1"},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, words: str) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(line)
            if words in line:
                return
        pytest.fail(f"{words!r} never came:\n{''.join(self.seen)}")

    def end(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout:
            self.seen += self.process.stdout.readlines()
        return self.process.wait(SECONDS)

    @property
    def said(self) -> str:
        return "".join(self.seen)

    @property
    def table(self) -> StudyTable:
        return read_study(RootPaths(self.root).search("s").study_db)

    def nodes(self) -> set[str]:
        """On which trials ran."""
        files = RootPaths(self.root).search("s").trials.glob("*/epoch-*/" + heartbeat.FILE)
        return {json.loads(file.read_text())["node"] for file in files}

    def verdict(self) -> Verdict:
        return verdict(self.root, rungs=RUNGS)


@pytest.fixture
def driven(tmp_path: Path, text_file: Path) -> Iterator[Driven]:
    search = Driven(tmp_path, text_file)
    yield search
    if search.process is not None and search.process.poll() is None:  # a test that failed
        search.process.kill()
        search.end()


@pytest.fixture
def cluster(driven: Driven) -> Iterator[RayNodes]:
    with nodes(driven.variables) as cluster:
        yield cluster


def test_trials_of_a_node_that_dies_go_on_on_one_that_comes(driven: Driven, cluster: RayNodes) -> None:
    """F11: from their last checkpoint, and it counts as no failure; the node that comes gets trials too."""
    driven.data["budget"] = {"trials": 12}  # enough are left when the node was asked
    first, _ = cluster.add(), cluster.add()
    driven.start(cluster)
    driven.until("at 8 of 32")
    first.kill()
    driven.until("goes on elsewhere: its node is gone")
    cluster.add()
    assert driven.end() == 0, driven.said
    assert driven.verdict().problems == ()
    assert "is gone; its trials go on elsewhere" in driven.said
    assert "has come" in driven.said
    assert "will be run again" not in driven.said
    assert len(driven.nodes()) >= 2
    assert [trial.outcome.stored for trial in driven.table.counted] == ["complete"] * 12


def test_a_node_that_comes_and_is_unfit_gets_no_trial(driven: Driven, cluster: RayNodes) -> None:
    """It is said why; the others go on, and the budget is not spent on trials that could only fail there."""
    driven.data["budget"] = {"trials": 10}
    cluster.add()
    driven.start(cluster)
    driven.until("at 8 of 32")
    cluster.add(4, "--num-gpus", "1")
    driven.until("has come, and gets no trials")
    driven.until("NVIDIA's driver shows none there")
    before = driven.nodes()
    assert driven.end() == 0, driven.said
    assert driven.nodes() == before
    assert [trial.outcome.stored for trial in driven.table.counted] == ["complete"] * 10


def test_a_killed_driver_leaves_no_worker_on_any_node_and_resume_finishes(driven: Driven, cluster: RayNodes) -> None:
    """F1 on a cluster: Ray ends the workers of a driver that died; nothing is lost or done twice."""
    worker = cluster.add(2)
    driven.start(cluster)
    driven.until("at 16 of 32")
    assert driven.process is not None
    driven.process.kill()
    driven.end()
    driven.start(cluster, "resume")
    assert driven.end() == 0, driven.said
    assert driven.verdict().problems == ()
    assert not [p for p in worker.processes() if p.status() != psutil.STATUS_ZOMBIE and "Trainable" in p.name()]


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_a_node_that_is_cut_off_trains_on_where_nobody_looks(driven: Driven) -> None:
    """F33: its trial is run elsewhere; what the old worker still writes to storage is not counted."""
    link = Link(f"lf{os.getpid()}")
    try:
        with nodes(driven.variables, link.here) as cluster:
            cluster.add(1, "--node-ip-address", link.there, within=link.within)
            driven.start(cluster)
            driven.until("at 8 of 32")
            link.down()
            driven.until("goes on elsewhere: its node is gone")
            cluster.add()
            assert driven.end() == 0, driven.said
    finally:
        link.remove()
    assert driven.verdict().problems == ()
    moved = driven.table.trials[0]
    epochs = {line.epoch for line in read_witness(driven.root / "witness.jsonl") if line.number == moved.number}
    assert len(epochs) == 2
    assert moved.epoch == max(epochs)


@pytest.mark.skipif(not shutil.which("faketime"), reason="faketime is not installed")
@pytest.mark.parametrize("jump", ["-26h", "+26h"])
def test_a_driver_whose_clock_is_wrong_goes_on_all_the_same(driven: Driven, cluster: RayNodes, jump: str) -> None:
    """F34: a day and two hours off that of the nodes, and of the drivers before and after it."""
    cluster.add(2)
    driven.start(cluster)
    driven.until("at 8 of 32")
    assert driven.process is not None
    driven.process.kill()
    driven.end()
    driven.within = ["faketime", "-f", jump]
    driven.start(cluster, "resume")
    driven.until("at 16 of 32")
    driven.process.kill()
    driven.end()
    driven.within = []
    driven.start(cluster, "resume")
    assert driven.end() == 0, driven.said
    assert driven.verdict().problems == ()
    assert [trial.outcome.stored for trial in driven.table.counted] == ["complete"] * 6


def test_a_cluster_is_checked_and_what_is_wrong_keeps_a_search_from_starting(driven: Driven, cluster: RayNodes) -> None:
    """Every node is named with what it has; a root that is another folder there is refused before the first trial."""
    cluster.add(2, "--num-gpus", "1")
    root = ["--root", str(driven.root)]
    found = json.loads(cluster.lorafront("cluster", "check", "--json", *root).stdout)
    assert sorted((node["cores"], node["gpus"]) for node in found["nodes"]) == [(0, 0), (2, 1)]
    assert all(node["facts"]["guarded"] for node in found["nodes"])
    (lacking,) = [finding for finding in found["findings"] if finding["damage"]]
    assert "1 GPUs for Ray, and NVIDIA's driver shows none there" in lacking["what"]
    told = cluster.lorafront("cluster", "check", *root)
    assert told.returncode == 2
    assert max(map(len, told.stdout.splitlines()[:6])) <= 80
    driven.start(cluster)
    assert driven.end() == 2
    assert "NVIDIA's driver shows none there" in driven.said
    assert not (driven.root / "s").exists()


def test_without_the_token_nobody_joins(driven: Driven, cluster: RayNodes) -> None:
    """Nor where no Ray listens; each in one line."""
    for changed in ({"RAY_AUTH_TOKEN": "0" * 64}, {"LORAFRONT_RAY": "127.0.0.1:9"}):
        refused = cluster.lorafront("cluster", "check", "--root", str(driven.root), **changed)
        assert refused.returncode == 2
        assert "lets this process in" in refused.stderr.strip().splitlines()[-1]


def test_a_worker_that_hangs_on_another_machine_is_ended_there(driven: Driven, cluster: RayNodes) -> None:
    """F8 on a cluster: by a task on its node."""
    worker = cluster.add(1)
    sleeper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"])
    (node,) = [
        one
        for one in json.loads(cluster.lorafront("cluster", "check", "--json", "--root", str(driven.root)).stdout)[
            "nodes"
        ]
        if one["cores"]
    ]
    script = (
        "import sys, ray, psutil; from lorafront.search.cluster import end_elsewhere; "
        "from lorafront.trainables.heartbeat import Sign; ray.init(address=sys.argv[1], log_to_driver=False); "
        "pid = int(sys.argv[2]); end_elsewhere(Sign(pid, psutil.Process(pid).create_time(), 0, '', sys.argv[3]))"
    )
    subprocess.run(
        [sys.executable, "-c", script, cluster.address, str(sleeper.pid), node["id"]],
        env=cluster.driver,
        check=True,
        timeout=120,
    )
    assert sleeper.wait(10) == -9
    assert worker.process.poll() is None
