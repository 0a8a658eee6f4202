"""A real Ray cluster on one machine: `ray start` for each node, all of whose processes can be killed at once."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

# A node that is gone is noticed within seconds.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 1000,
          "health_check_failure_threshold": 3}  # fmt: skip


class RayNode:
    """The processes of one `ray start`."""

    def __init__(self, options: list[str], environment: dict[str, str], within: Sequence[str] = ()) -> None:
        """Start it and wait until it is up."""
        start = "from ray.scripts.scripts import main; main()"
        command = [*within, sys.executable, "-c", start, "start", "--block", "--disable-usage-stats", *options]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        end = time.monotonic() + 120
        while "Ray runtime started" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.2)

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            me = psutil.Process(self.process.pid)
            return [*me.children(recursive=True), me]
        return []

    def kill(self) -> None:
        """As a machine that loses its power."""
        there = self.processes()
        for process in there:  # stopped first: a raylet that sees its child die would tell others
            with contextlib.suppress(psutil.Error):
                process.suspend()
        for process in there:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        self.log.close()


class RayNodes:
    """A head without cores, and workers."""

    def __init__(self, variables: dict[str, str], address: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lf-", dir="/tmp"))
        self.folder.chmod(0o700)
        with socket.create_server((address, 0)) as free:
            self.address = f"{address}:{free.getsockname()[1]}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {**os.environ, **token, **variables}
        port = self.address.rpartition(":")[2]
        system = ["--system-config", json.dumps(HEALTH)]
        self.head = RayNode(
            ["--head", "--port", port, "--node-ip-address", address, "--num-cpus", "0", "--include-dashboard=false",
             "--temp-dir", str(self.folder), *system], self.environment,
        )  # fmt: skip
        self.workers: list[RayNode] = []

    def add(self, cpus: int = 1, *options: str, within: Sequence[str] = ()) -> RayNode:
        own = ["--address", self.address, "--num-cpus", str(cpus), *options]
        self.workers.append(RayNode(own, self.environment, within))
        return self.workers[-1]

    @property
    def driver(self) -> dict[str, str]:
        """What a driver has in its environment."""
        return {**self.environment, "LORAFRONT_RAY": self.address}

    def lorafront(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """A command of a user who has the token."""
        return subprocess.run(
            [sys.executable, "-m", "lorafront.search.cli", *arguments], env={**self.driver, **changed},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def end(self) -> None:
        for node in [*self.workers, self.head]:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def nodes(variables: dict[str, str], address: str = "127.0.0.1") -> Iterator[RayNodes]:
    cluster = RayNodes(variables, address)
    try:
        yield cluster
    finally:
        cluster.end()
