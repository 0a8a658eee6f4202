"""A Ray head with a job server, as a cluster has it: started by `ray start`, killed with all that it started.

All of it listens on loopback. Told 127.0.0.1, `ray start` (2.60) takes an address that other machines reach, and then
listens on all; not so where it is told that this system can have no cluster of several machines.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

START_SECONDS = 90


def why_none() -> str:
    """Why there cannot be one here; empty where there can."""
    if not (Path(sys.executable).parent / "ray").is_file() or find_spec("aiohttp_cors") is None:
        return "needs ray[default]"
    return "" if shutil.which("lorafront", path=str(Path(sys.executable).parent)) else "needs lorafront's script"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            pytest.fail("it never happened")
        time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


class Head:
    """A head, and a root on the storage of its cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.token = secrets.token_hex(32)
        self.gcs, self.server, self._client, self._agent = free_ports(4)
        self.url = f"http://127.0.0.1:{self.server}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LORAFRONT_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "LORAFRONT_ROOT": str(self.root),
            "LORAFRONT_WITNESS": str(self.root / "witness.jsonl"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": f"127.0.0.1:{self.gcs}",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start(self, **more: str) -> None:
        """Args: more: of its environment."""
        command = [
            "ray", "start", "--head", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-log-monitor=false",
            f"--port={self.gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.server}",
            f"--ray-client-server-port={self._client}", f"--dashboard-agent-listen-port={self._agent}",
            "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.folder / 'r'}",
        ]  # fmt: skip
        log = self.folder / "start.log"
        with log.open("w") as stream:
            done = subprocess.run(
                command, env={**self.environment, **more}, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                cwd=self.folder, check=False, timeout=START_SECONDS,
            )  # fmt: skip
        assert done.returncode == 0, log.read_text()

    def kill(self) -> None:
        """SIGKILL for everything that it started, as if its machine had lost power."""
        while found := self.processes():
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=5)

    def processes(self) -> list[psutil.Process]:
        """Ray changes the names and the environments of some, so these are found by who started them."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("LORAFRONT_ROOT") == str(self.root):
                    found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        return [process for process in found.values() if is_alive(process)]

    def sockets(self) -> set[str]:
        """Addresses that its processes listen on."""
        found = set()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                listening = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
                found |= {one.laddr.ip for one in listening}
        return found

    def here(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `lorafront` on the head itself."""
        return self._run(arguments, self.environment, self.folder)

    def laptop(
        self, *arguments: str, folder: Path | None = None, url: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `lorafront … --address` on a machine that knows the token and nothing else of the cluster."""
        at = (*arguments, "--address", url or self.url)
        return self._run(at, self.laptop_environment(**more), folder or self.folder)

    def laptop_environment(self, **more: str) -> dict[str, str]:
        foreign = ("LORAFRONT_", "RAY_", "HOME")
        known = {name: value for name, value in self.environment.items() if not name.startswith(foreign)}
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {**known, "HOME": str(home), "RAY_AUTH_TOKEN": self.token, **more}

    def _run(
        self, arguments: tuple[str, ...], environment: dict[str, str], folder: Path
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lorafront.search.cli", *arguments]
        return subprocess.run(
            command, env={"COLUMNS": "120", **environment}, cwd=folder, text=True, capture_output=True, check=False,
            stdin=subprocess.DEVNULL, timeout=200,
        )  # fmt: skip


@contextmanager
def head() -> Iterator[Head]:
    """One, killed at the end. Ray puts sockets in its folder, whose names have a limit of 107 characters."""
    with tempfile.TemporaryDirectory(prefix="lf-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = Head(Path(folder))
        found.start()
        try:
            yield found
        finally:
            found.kill()
