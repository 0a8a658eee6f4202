"""A Ray of our own on this machine, and how many trials it has room for."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import contextlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorafront.search.search_file import SearchFile

SOCKET_ROOM = 20  # characters of a temporary folder; Ray puts sockets below it, whose names have a limit of 107


@contextlib.contextmanager
def ray_cluster() -> Iterator[Callable[[], Path]]:
    """A Ray that listens on loopback only, while the block runs; one that is there already is used.

    It starts in a thread, so that the block can import and check meanwhile: that is several seconds of waiting. The
    thread lives as long as Ray does, because the kernel ends Ray's processes with the thread that began them.

    Yields:
        Waits until Ray is up, and gives a private scratch folder for what Ray Tune writes and nobody reads. Raises
        what the start raised.
    """
    import ray
    from ray import tune  # noqa: F401  # here and not in the thread: two threads that import can meet half a module

    short = "/tmp" if len(tempfile.gettempdir()) > SOCKET_ROOM and os.path.isdir("/tmp") else None  # noqa: S108, PTH112
    scratch = Path(tempfile.mkdtemp(prefix="lf-", dir=short))
    up, over = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def live() -> None:
        try:
            _start(scratch / "ray")
        except BaseException as error:  # noqa: BLE001  # raised by whoever waits for Ray
            failures.append(error)
        up.set()
        over.wait()
        ray.shutdown()

    def wait() -> Path:
        up.wait()
        if failures:
            raise failures[0]
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong with a trial is told by the observer
        return scratch / "tune"

    own = None if ray.is_initialized() else threading.Thread(target=live, name="ray", daemon=True)
    try:
        if own is None:
            up.set()
        else:
            own.start()
        yield wait
    finally:
        over.set()
        if own is not None:
            own.join()
        shutil.rmtree(scratch, ignore_errors=True)


def _start(folder: Path) -> None:
    import ray

    ray.init(
        address="local",  # whatever RAY_ADDRESS says: a search in one process tree is what was asked for
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        _temp_dir=str(folder),
        _node_ip_address="127.0.0.1",
    )


def resources_per_trial(search: SearchFile) -> dict[str, float]:
    """What Ray reserves for one trial: CPU cores, and GPUs where there are any."""
    import torch

    resources: dict[str, float] = {"cpu": search.resources.cpus_per_trial}
    if torch.cuda.is_available():
        resources["gpu"] = 1.0 if search.resources.gpus_per_trial is None else search.resources.gpus_per_trial
    return resources


def workers(search: SearchFile) -> int:
    """How many trials run at once: as many as Ray's resources hold, `max_concurrent` at most."""
    import ray

    total, each = ray.cluster_resources(), resources_per_trial(search)
    room = int(total.get("CPU", 0) // each["cpu"])
    if "gpu" in each:
        per_gpu = 1 // each["gpu"]  # shares do not reach across GPUs
        fit = total.get("GPU", 0) * per_gpu if per_gpu else total.get("GPU", 0) // each["gpu"]
        room = min(room, int(fit))
    return max(1, min(room, search.resources.max_concurrent or room))
