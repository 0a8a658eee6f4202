"""docker/slurm.sh runs a search on a cluster of its own, and leaves nothing; srun is one that starts things here."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from support import PROJECT, TINY_LLAMA

pytestmark = pytest.mark.faults
SRUN = """#!/bin/sh
# Without its options, of which the one has no value and the others have one.
while :; do case $1 in --overlap) shift ;; --*) shift 2 ;; *) exec "$@" ;; esac; done
"""
SCONTROL = """#!/bin/sh
echo localhost
"""


def free_number() -> int:
    """Of a job, whose ports are free."""
    while True:
        number = random.randrange(10_000)
        try:
            for base in (20_000, 30_000):
                socket.create_server(("127.0.0.1", base + number)).close()
        except OSError:
            continue
        return number


def in_session(leader: int) -> list[psutil.Process]:
    """The processes that it began, wherever they hang now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found


def test_a_job_runs_a_search_on_its_nodes(text_file: Path) -> None:
    """And takes its token and its processes with it."""
    folder = Path(tempfile.mkdtemp(prefix="lf-", dir="/tmp"))
    number = free_number()
    try:
        (folder / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        data = {
            "name": "s", "model": str(TINY_LLAMA), "sampler": "random", "early_stopping": "off",
            "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
            "training": {"rows": 32, "rungs": 1, "batch_size": 4}, "budget": {"trials": 2},
        }  # fmt: skip
        (folder / "search.yaml").write_text(json.dumps(data))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LORAFRONT_"))}
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), kept["PATH"]])
        slurm = {
            "SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": "localhost", "SLURM_SUBMIT_DIR": str(PROJECT),
            "SLURM_CPUS_PER_TASK": "1", "LORAFRONT_ROOT": str(folder / "root"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }  # fmt: skip
        (folder / "root").mkdir(mode=0o700)
        command = [str(PROJECT / "docker" / "slurm.sh"), "run", str(folder / "search.yaml"), "--engine", "toy"]
        with (folder / "log").open("w") as log:
            job = subprocess.Popen(
                command, env={**kept, **slurm, "PATH": path}, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
        try:
            assert job.wait(240) == 0, (folder / "log").read_text()
        finally:
            left = in_session(job.pid)
            _, alive = psutil.wait_procs(left, timeout=60)
            if alive:
                os.killpg(job.pid, signal.SIGKILL)
        assert not alive, left
        assert "2 trials recorded" in (folder / "log").read_text()
        assert not list((folder / "root").glob(".slurm-*"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)
