"""A Ray of our own on this machine, and how many trials it has room for."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorafront.search.placement import Devices
    from lorafront.search.search_file import SearchFile

SOCKET_ROOM = 20  # characters of a temporary folder; Ray puts sockets below it, whose names have a limit of 107


class RayCluster:
    """A Ray that listens on loopback only, while a `with` block runs; one that is there already is used.

    It starts and ends in a thread, so that its user can import, check and write files meanwhile: that is several
    seconds of waiting. The thread lives as long as Ray does, because the kernel ends Ray's processes with the thread
    that began them.
    """

    def __init__(self, devices: Sequence[Devices] = ()) -> None:
        """Args: devices: GPUs that are only pretended; none leaves Ray to count those that there are."""
        self._gpus = sum(one.count for one in devices) or None

    def __enter__(self) -> Self:
        """Begin to start."""
        import ray
        from ray import tune  # noqa: F401  # here and not in the thread: two that import can meet half a module

        short = "/tmp" if len(tempfile.gettempdir()) > SOCKET_ROOM and os.path.isdir("/tmp") else None  # noqa: S108, PTH112
        self._scratch = Path(tempfile.mkdtemp(prefix="lf-", dir=short))
        self._up, self._over = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread = None if ray.is_initialized() else threading.Thread(target=self._live, name="ray", daemon=True)
        if self._thread is not None:
            self._thread.start()
        return self

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

    def leave(self) -> None:
        """Begin to end: nobody needs it any more."""
        self._over.set()

    def __exit__(self, *_: object) -> None:
        """End, and wait until all of its processes are gone."""
        self.leave()
        if self._thread is not None:
            self._thread.join()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _live(self) -> None:
        import ray

        try:
            _start(self._scratch / "ray", self._gpus)
        except BaseException as error:  # noqa: BLE001  # raised by whoever waits
            self._failure = error
        self._up.set()
        self._over.wait()
        ray.shutdown()


def _start(folder: Path, gpus: int | None) -> None:
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
    )


def workers(search: SearchFile, seats: int | None) -> int:
    """How many trials run at once at most: as many as there are cores and seats for, `max_concurrent` at most.

    Args:
        search: its resources.
        seats: on devices; None where trials need none.
    """
    import ray

    room = int(ray.cluster_resources().get("CPU", 0) // search.resources.cpus_per_trial)
    return max(1, min(room, seats or room, search.resources.max_concurrent or room))
