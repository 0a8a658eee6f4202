"""A real PostgreSQL on the loopback interface, by the script that the project ships."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import PROJECT

PASSWORD = "planted:it's secret"
RUNS_PASSWORD = "another planted one"
CONNECTIONS = 20


class Postgres:
    """A server that can be stopped, crashed and started again."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        """Start it in a new folder."""
        self._address = address
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._folder = folder
        self.start()

    def url(self, user: str = "lorafront") -> str:
        return f"postgresql://{user}@{self._address}:{self.port}/lorafront"

    def pid(self) -> int:
        return int((self._folder / "data" / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        self.do("start")

    def do(self, command: str) -> None:
        secrets = {"STUDIES_PASSWORD": PASSWORD, "RUNS_PASSWORD": RUNS_PASSWORD, "MAX_CONNECTIONS": str(CONNECTIONS)}
        secrets["LISTEN"] = self._address
        script = [str(PROJECT / "docker" / "postgres.sh"), command, str(self._folder), str(self.port)]
        subprocess.run(script, check=True, env={**os.environ, **secrets}, timeout=120, cwd="/")


def why_none() -> str:
    """What is missing for a server; empty where nothing is."""
    there = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")] or shutil.which("initdb")
    return "" if there else "no PostgreSQL is installed"


@contextmanager
def served(address: str = "127.0.0.1") -> Iterator[Postgres]:
    """A server while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="lf-pg-"))
    folder.chmod(0o755)  # the server runs as a user of its own
    server = Postgres(folder / "server", address)
    try:
        yield server
    finally:
        server.do("crash")
        shutil.rmtree(folder)
