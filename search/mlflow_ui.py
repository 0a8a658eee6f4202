"""MLflow's own UI on the store of a root, on loopback."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from lorafront.search.paths import RootPaths
from lorafront.spaces.errors import InvalidInput, SearchNotFound

HOST = "127.0.0.1"


def serve(root: RootPaths, port: int, say: Callable[[str], None]) -> None:
    """Become the UI's server, until it is interrupted.

    Raises:
        SearchNotFound: no search has written to MLflow here.
        InvalidInput: the port is taken.
    """
    if not root.mlflow_db.is_file():
        raise SearchNotFound(f"no MLflow store under {root.root.resolve()}; run a search first")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InvalidInput(f"port {port} is in use; choose another with --port") from error
    say(f"MLflow UI: http://{HOST}:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root.mlflow_db.absolute()}"]
    command += ["--default-artifact-root", root.mlflow_artifacts.absolute().as_uri()]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606  # this process becomes the server, so that signals reach it
