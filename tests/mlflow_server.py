"""A real MLflow server on the loopback interface."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before MLflow

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Its address while the block runs; store (`server.db`) and artifacts lie in the folder."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    address = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"{address}/health", timeout=5):
                        break
                except OSError:
                    assert server.poll() is None, (folder / "server.log").read_text()
                    assert time.monotonic() < until, "the server does not answer"
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()
