"""The Ray that trials run on: one of our own on this machine, or a cluster that the driver joins."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from lorafront.search.nodes import Node, findings
from lorafront.search.repeating import repeating
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.sizes import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lorafront.search.paths import RootPaths
    from lorafront.search.placement import Devices
    from lorafront.search.search_file import SearchFile

ADDRESS = "LORAFRONT_RAY"  # of the cluster to join: HOST:PORT, or auto on one of its nodes
SOCKET_ROOM = 20  # characters of a temporary folder; Ray puts sockets below it, whose names have a limit of 107
IMPORTS = "lorafront.search.worker_imports"
READY = "LORAFRONT_READY"  # the folder in which each process that has imported them leaves a file
IMPORTED = GIB  # more than a process holds after them; half of that measured
CONNECT_SECONDS = 5.0  # in which the head of a cluster takes a connection
SHARE = 1 / 4  # of the free memory that all of them may take
LOOK_SECONDS = 1.0  # between two looks at whether Ray lives
DEAD_SECONDS = 3.0  # without a connection, after which a Ray of our own is dead
GONE_SECONDS = 30.0  # likewise a cluster, whose network may fail for a while; Ray ends the process after 60
PATIENCE = 60.0  # seconds for the imports; after them Ray starts processes that import by themselves


class RayCluster:
    """A Ray that listens on loopback only, while a `with` block runs; one that is there already, or named, is used.

    It starts and ends in a thread, so that its user can import, check and write files meanwhile: that is several
    seconds of waiting. The thread lives as long as Ray does, because the kernel ends Ray's processes with the thread
    that began them.
    """

    def __init__(self, devices: Sequence[Devices] = (), *, imports: bool = False) -> None:
        """Look at nothing yet.

        Args:
            devices: GPUs that are only pretended; none leaves Ray to count those that there are.
            imports: Ray starts a process for each core at once; whether they import already what a trial needs, while
                the driver is still checking the search.
        """
        self._gpus = sum(one.count for one in devices) or None
        self._address = os.environ.get(ADDRESS, "").strip()
        self._imports = imports and not self._address
        self.nodes: list[Node] = []  # of a cluster that was joined

    def __enter__(self) -> Self:
        """Begin to start."""
        import ray
        from ray import tune  # noqa: F401  # here and not in the thread: two that import can meet half a module

        short = "/tmp" if len(tempfile.gettempdir()) > SOCKET_ROOM and os.path.isdir("/tmp") else None  # noqa: S108, PTH112
        self._scratch = Path(tempfile.mkdtemp(prefix="lf-", dir=short))
        self._started = self._scratch / "started"
        self._started.mkdir()
        self._up, self._over = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread = None
        self._joined = contextlib.ExitStack()
        if self._address:
            self._joined.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            with self._joined as joined:
                joined.enter_context(_workers_as_started())
                joined.enter_context(_quiet())
                _join(self._address)
                joined.callback(ray.shutdown)  # of this driver alone
                self._joined = joined.pop_all()
        elif not ray.is_initialized():
            self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
            self._thread.start()
        return self

    @property
    def pretends(self) -> bool:
        """Whether its GPUs are only pretended."""
        return self._gpus is not None

    def asked(self, root: RootPaths) -> list[Node]:
        """Its nodes, with what each says of itself; see `look`."""
        from lorafront.search.cluster import asked, living

        return asked(living(), root)

    def look(self, root: RootPaths) -> list[Node]:
        """The nodes of a cluster that was joined, each asked what it has; none of a Ray of our own.

        Args:
            root: of the searches, which has to be the same folder on each.

        Raises:
            InvalidInput: what keeps trials from running there.
        """
        if self._address:
            from lorafront.search.cluster import versions_here

            self.nodes = self.asked(root)
            found = findings(self.nodes, versions_here(), pretended=self.pretends)
            wrong = [str(finding) for finding in found if finding.damage]
            if (self._gpus or 0) > (there := sum(node.gpus for node in self.nodes)):
                wrong.append(f"--devices pretends {self._gpus} GPUs, and the nodes were started with {there}")
            if wrong:
                raise InvalidInput("\n".join(wrong))
        return self.nodes

    def wait(self) -> Path:
        """Wait until Ray is up; raises what its start raised.

        Returns:
            A private scratch folder for what Ray Tune writes and nobody reads.
        """
        if self._thread is not None:
            self._up.wait()
        if self._failure is not None:
            raise self._failure
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong with a trial is told by the observer
        return self._scratch / "tune"

    def ready(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until the processes that were started in advance can take a trial; else Ray would start others.

        Args:
            given_up: asked meanwhile whether no trial will start after all.
        """
        import ray

        if not self._imports or self._thread is None:
            return
        end = time.monotonic() + PATIENCE
        cores = int(ray.cluster_resources().get("CPU", 0))
        while len(list(self._started.iterdir())) < cores and time.monotonic() < end and not given_up():
            time.sleep(0.05)
        self._imports = False  # what Ray starts later, it starts for a trial

    @contextlib.contextmanager
    def watched(self, died: Callable[[str], None]) -> Iterator[None]:
        """Look again and again, in a thread, whether Ray lives, while the block runs.

        Where it does not, its calls return nothing new for ever, or never return (2.60).

        Args:
            died: hears what of it is gone, with each look.
        """
        import ray

        own = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == own)
        seen = dict.fromkeys(
            (("its head", ray.get_runtime_context().gcs_address),
             ("its node here", f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")), time.monotonic(),
        )  # fmt: skip
        limit = GONE_SECONDS if self._address else DEAD_SECONDS

        def look() -> None:
            for part in seen:
                with contextlib.suppress(OSError):
                    _listening(part[1])
                    seen[part] = time.monotonic()
                if time.monotonic() - seen[part] > limit:
                    died(f"Ray has died ({part[0]})")

        with repeating("ray lives", LOOK_SECONDS, look):
            yield

    def leave(self) -> None:
        """Begin to end: nobody needs it any more."""
        self._over.set()

    def __exit__(self, *_: object) -> None:
        """End, and wait until all of its processes are gone."""
        self.leave()
        if self._thread is not None:
            self._thread.join()
        self._joined.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _live(self) -> None:
        import ray

        _with_a_token()
        with _workers_as_started(), _on_loopback(), _quiet(), _named(READY, self._started):
            try:
                _start(self._scratch / "ray", self._gpus, imports=self._imports)
            except BaseException as error:  # noqa: BLE001  # raised by whoever waits
                self._failure = error
            self._up.set()
            self._over.wait()
            ray.shutdown()


def _join(address: str) -> None:
    """Connect to a cluster.

    Raises:
        InvalidInput: there is none that would have us.
    """
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    found = None
    try:
        with contextlib.ExitStack() as meanwhile:
            try:
                found = _listening(canonicalize_bootstrap_address(address))
            except OSError:  # a cluster on loopback: Ray made an outer address of it
                meanwhile.enter_context(_on_loopback())
                found = canonicalize_bootstrap_address(address)
                _listening(found)
            ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"{ADDRESS}: no Ray at {found or address} lets this process in ({said})") from error


def _listening(address: str | None) -> str:
    """The address, where somebody takes a connection; Ray itself tries for ever where nobody does."""
    if address is None:
        raise ConnectionError("there is none on this machine")
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
        return address


def _start(folder: Path, gpus: int | None, *, imports: bool) -> None:
    import ray

    ray.init(
        address="local",  # whatever RAY_ADDRESS says: a search in one process tree is what was asked for
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        _temp_dir=str(folder),
        _node_ip_address="127.0.0.1",
        _system_config={"preload_python_modules": [IMPORTS]} if imports else None,
    )


def _with_a_token() -> None:
    """Who has no token of this process cannot talk to its Ray.

    Ray would make one by itself, in a file in the user's home that others can read (2.60).
    """
    if not any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray listens where it is told to.

    Told 127.0.0.1, it takes an address that other machines reach, and then listens on all (2.60).
    """
    from ray._private import services

    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray prints the last log lines of each node that dies to standard output, whatever it was told (2.60)."""
    from ray._private import worker

    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextlib.contextmanager
def _workers_as_started() -> Iterator[None]:
    """Ray Tune's actors get the processes that Ray has started already.

    Ray Tune gives its actors environment variables of their own (Ray 2.60); with such, Ray starts new processes for
    them and ends the others. On this machine they inherit those of the driver anyway.
    """
    from ray.tune.execution import class_cache

    own = [getattr(class_cache, name, set[str]()) for name in ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE")]
    before: list[Any] = [variables.copy() for variables in own]
    for variables in own:
        variables.clear()
    try:
        yield
    finally:
        for variables, kept in zip(own, before, strict=True):
            variables.update(kept)


@contextlib.contextmanager
def _named(variable: str, folder: Path) -> Iterator[None]:
    """The processes that start meanwhile inherit where a folder is."""
    os.environ[variable] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(variable, None)


def one_for_each_core(search: SearchFile) -> bool:
    """Whether as many workers are wanted as there are cores: no GPU to share, one core for each, and room for all."""
    gpus = any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "kfd", "dxg"))  # NVIDIA's, AMD's, Windows'
    cores, resources, trials = os.cpu_count() or 1, search.resources, search.budget.trials
    most = min(resources.max_concurrent or cores, trials or cores)
    room = cores * IMPORTED < psutil.virtual_memory().available * SHARE and resources.memory_per_worker is None
    return not gpus and resources.cpus_per_trial == 1 and most >= cores and room
