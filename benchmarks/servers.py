"""The servers of docker/compose.yaml as processes on this machine, started by the same scripts.

PostgreSQL, MLflow with its login, Ray's head and nodes: all on loopback, each can be killed and started again; and in
the place of versitygw, which no registry of Python has, moto's server of S3. For the tests and for the benchmarks that
need servers.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parent.parent
DOCKER = PROJECT / "docker"
PASSWORD = "planted:it's secret"  # noqa: S105  # all of them end with what they protect
RUNS_PASSWORD = "another planted one"  # noqa: S105
TOKEN = "planted-ray-token-of-the-tests"  # noqa: S105
MLFLOW_PASSWORD = "planted-tracking-login"  # noqa: S105
MLFLOW_KEY = "planted-secret-key"
STORE_KEYS = {"AWS_ACCESS_KEY_ID": "planted-store-key-id", "AWS_SECRET_ACCESS_KEY": "planted-store-secret"}
BUCKETS = ("mlflow", "lorafront")
CONNECTIONS = 20
SLOW = 180  # seconds, on a machine that others load too
HEAD, MLFLOW, STORE = "head", "mlflow", "store"


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Postgres:
    """A server that can be stopped, crashed and started again."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        """Start it in a new folder."""
        self._address = address
        self.port = free_port()
        self._folder = folder
        self.start()

    def url(self, user: str = "lorafront") -> str:
        """Of the studies."""
        return f"postgresql://{user}@{self._address}:{self.port}/lorafront"

    def pid(self) -> int:
        """Of its first process."""
        return int((self._folder / "data" / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        """Start what is there."""
        self.do("start")

    def do(self, command: str) -> None:
        """`start`, `stop` or `crash`."""
        secrets = {"STUDIES_PASSWORD": PASSWORD, "RUNS_PASSWORD": RUNS_PASSWORD, "MAX_CONNECTIONS": str(CONNECTIONS)}
        secrets["LISTEN"] = self._address
        script = [str(DOCKER / "postgres.sh"), command, str(self._folder), str(self.port)]
        subprocess.run(script, check=True, env={**os.environ, **secrets}, timeout=120, cwd="/")  # noqa: S603


@contextmanager
def started_postgres(address: str = "127.0.0.1") -> Iterator[Postgres]:
    """A PostgreSQL while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="lf-pg-"))
    folder.chmod(0o755)  # the server runs as a user of its own
    server = Postgres(folder / "server", address)
    try:
        yield server
    finally:
        server.do("crash")
        shutil.rmtree(folder)


def why_no_postgres() -> str:
    """What is missing for one; empty where nothing is."""
    there = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")] or shutil.which("initdb")
    return "" if there else "no PostgreSQL is installed"


def why_none() -> str:
    """What is missing for all of them; empty where nothing is."""
    needed = ("flask_wtf", "psycopg", "aiohttp_cors", "moto", "s3fs")
    missing = (name for name in needed if importlib.util.find_spec(name) is None)
    return why_no_postgres() or next((f"{name} is not installed" for name in missing), "")


class Servers:
    """The processes, and where they listen."""

    def __init__(self, folder: Path, postgres: Postgres, fault: str = "") -> None:
        """Remember what is there.

        Args:
            folder: with a short name, for what they write.
            postgres: that runs.
            fault: what happens to workers (trainables/fault_points.py).
        """
        self.folder = folder
        self.witness = folder / "witness.jsonl"  # what the workers note
        self._fault = fault
        self.postgres = postgres
        self.ray, self.jobs, self.mlflow = free_port(), free_port(), free_port()
        self.store = 0  # its port
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "token").write_text(TOKEN)

    def start_store(self) -> None:
        """For MLflow's artifacts and copies of searches; wait until its buckets are there."""
        self.store = free_port()
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.store)]
        self._run(STORE, command)
        self.until(STORE, lambda: answer(self._store_url)[0] > 0)
        for bucket in BUCKETS:
            self.s3().create_bucket(Bucket=bucket)

    def s3(self) -> Any:
        """A client of the store."""
        import boto3

        keys = {name.lower(): value for name, value in STORE_KEYS.items()}
        return boto3.client("s3", endpoint_url=self._store_url, region_name="us-east-1", **keys)

    @property
    def _store_url(self) -> str:
        return f"http://127.0.0.1:{self.store}"

    def start_mlflow(self) -> None:
        """On PostgreSQL, with its login; its artifacts in the store, where there is one."""
        artifacts = {"ARTIFACTS": str(self.folder / "artifacts")}
        if self.store:
            artifacts = {"ARTIFACTS": "s3://mlflow/artifacts", "MLFLOW_S3_ENDPOINT_URL": self._store_url, **STORE_KEYS}
        self._start(
            MLFLOW, "mlflow.sh", PORT=str(self.mlflow), WORKERS="1", **artifacts, RUNS_PASSWORD=RUNS_PASSWORD,
            DATABASE=f"postgresql+psycopg://mlflow@127.0.0.1:{self.postgres.port}/mlflow",
            MLFLOW_AUTH_ADMIN_PASSWORD=MLFLOW_PASSWORD, MLFLOW_FLASK_SERVER_SECRET_KEY=MLFLOW_KEY,
        )  # fmt: skip

    def start_head(self) -> None:
        """Ray's head, which takes no trials; wait until it is up."""
        self._start(
            HEAD, "head.sh", RAY_PORT=str(self.ray), DASHBOARD_PORT=str(self.jobs),
            RAY_FOLDER=str(self.folder / "ray"), RAY_AUTH_TOKEN_PATH=str(self.folder / "token"),
        )  # fmt: skip
        self.until(HEAD, lambda: self.nodes() == 1)

    def start_node(self, name: str, cores: int) -> None:
        """A node that trains; wait until it has joined: two of the same second take each other's files (Ray 2.60)."""
        before = len(self.log(name))  # of the node that had the name before
        self._start(
            name, "worker.sh", HEAD=f"127.0.0.1:{self.ray}", NODE_CPUS=str(cores), NODE_GPUS="0",
            RAY_AUTH_TOKEN_PATH=str(self.folder / "token"), LORAFRONT_WITNESS=str(self.witness), FAULT_AT=self._fault,
        )  # fmt: skip
        self.until(name, lambda: "Ray runtime started" in self.log(name)[before:])

    def until(self, name: str, done: Callable[[], bool]) -> None:
        """Wait for a process to be up."""
        end = time.monotonic() + SLOW
        while not done():
            if self.processes[name].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} does not come up:\n{self.log(name)}")
            time.sleep(0.5)

    def mlflow_is_up(self) -> bool:
        """Whether it answers."""
        return answer(f"http://127.0.0.1:{self.mlflow}/health")[0] == 200  # noqa: PLR2004  # OK

    def nodes(self) -> int:
        """How many live nodes Ray's server for jobs tells of."""
        url = f"http://127.0.0.1:{self.jobs}/nodes?view=summary"
        code, found = answer(url, Authorization=f"Bearer {TOKEN}")
        summary = found["data"]["summary"] if code == 200 else []  # noqa: PLR2004  # OK
        return sum(node["raylet"].get("state") == "ALIVE" for node in summary)

    def log(self, name: str) -> str:
        """What a process, and those before it, have said."""
        file = self.folder / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def driver(self, **more: str) -> dict[str, str]:
        """The environment of a search on all of it."""
        uri = f"http://127.0.0.1:{self.mlflow}"
        found = environment(
            LORAFRONT_RAY=f"127.0.0.1:{self.ray}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN,
            LORAFRONT_DATABASE=self.postgres.url(), PGPASSWORD=PASSWORD, LORAFRONT_ROOT=str(self.folder / "root"),
            MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_USERNAME="lorafront", MLFLOW_TRACKING_PASSWORD=MLFLOW_PASSWORD,
        )  # fmt: skip
        copies = {"LORAFRONT_STORAGE": "s3://lorafront/searches", "AWS_ENDPOINT_URL": self._store_url, **STORE_KEYS}
        return {**found, **(copies if self.store else {}), **more}

    def family(self, name: str) -> list[psutil.Process]:
        """The processes of one of them."""
        with suppress(psutil.Error):
            first = psutil.Process(self.processes[name].pid)
            return [*first.children(recursive=True), first]
        return []

    def kill(self, name: str) -> None:
        """As a machine that loses its power: all at once."""
        there = self.family(name)
        for signal_ in ("suspend", "kill"):  # stopped first: a parent that sees its child die would tell others
            for process in there:
                with suppress(psutil.Error):
                    getattr(process, signal_)()
        self.processes[name].wait()

    def end(self) -> None:
        """All but PostgreSQL, the last one first."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def _start(self, name: str, script: str, **settings: str) -> None:
        self._run(name, [str(DOCKER / script)], **settings)

    def _run(self, name: str, command: list[str], **settings: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603  # the project's own
                command, env=environment(**settings), stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            )  # fmt: skip


@contextmanager
def served(nodes: int, cores: int, fault: str = "", *, store: bool = False) -> Iterator[Servers]:
    """All of them while the block runs.

    Args:
        nodes: that train, called node1, node2, …
        cores: of each, as Ray counts them.
        fault: see `Servers`.
        store: one for artifacts and copies of searches.
    """
    with ExitStack() as over:
        folder = Path(tempfile.mkdtemp(prefix="lf-", dir="/tmp"))  # Ray's sockets need a short name
        over.callback(shutil.rmtree, folder, ignore_errors=True)
        found = Servers(folder, over.enter_context(started_postgres()), fault)
        over.callback(found.end)
        if store:
            found.start_store()
        found.start_mlflow()
        found.start_head()
        for number in range(1, nodes + 1):
            found.start_node(f"node{number}", cores)
        found.until(HEAD, lambda: found.nodes() == 1 + nodes)
        found.until(MLFLOW, found.mlflow_is_up)
        yield found


def environment(**more: str) -> dict[str, str]:
    """What a process gets that knows nothing of this one's Ray and servers."""
    ours = ("RAY_", "MLFLOW_", "LORAFRONT_", "PG", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", **more}


def answer(url: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, Any]:
    """Status and content; 0 while nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})  # noqa: S310  # http
    try:
        with urllib.request.urlopen(request, timeout=30) as found:  # noqa: S310  # http
            text = found.read()
            return found.status, json.loads(text) if text.startswith((b"{", b"[")) else text
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, None


def basic(password: str) -> str:
    """The header of a login at MLflow."""
    return "Basic " + base64.b64encode(f"lorafront:{password}".encode()).decode()
