"""Asks the nodes of a Ray cluster what they have, and keeps looking: nodes come and go while a search runs.

Each node answers by itself, in a task that takes none of its cores; what follows from the answers is `search/nodes.py`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search.nodes import ACCELERATOR, Facts, Node, devices_of, findings_of
from lorafront.search.repeating import repeating
from lorafront.trainables.checkpoint import write_text

if TYPE_CHECKING:
    from lorafront.search.paths import RootPaths
    from lorafront.search.placement import Devices, Seat
    from lorafront.trainables.heartbeat import Sign

EQUAL = ("lorafront", "ray", "torch", "transformers", "peft", "bitsandbytes", "safetensors")  # everywhere
ANSWER_SECONDS = 60.0  # a node that is slow has to import lorafront first
SEEN_SECONDS = 5.0  # storage over a network shows new files later
LOOK_SECONDS = 3.0  # between two looks at which nodes there are
CONNECT_SECONDS = 2.0  # in which a node that lives takes a connection
SILENT_SECONDS = 60.0  # before a node that did not answer is asked again: meanwhile deaths are noticed in time
END_SECONDS = 30.0  # for a worker on another node to be ended
PROBE = ".lorafront-node-"


def examine(root: str, token: str) -> Facts:
    """What the node says that this runs on.

    Args:
        root: of the searches, which has to be the driver's.
        token: name of a file that the driver left there; an answer is left beside it.
    """
    from lorafront.search.devices import free_memory

    gpus, capability = gpus_here()
    return Facts(
        gpus=gpus,
        capability=capability,
        memory=free_memory(),
        disk=shutil.disk_usage(root).free if Path(root).is_dir() else 0,
        versions=versions_here(),
        ahead=time.time(),
        guarded=os.environ.get("RAY_AUTH_MODE") == "token",
        root=_root_problem(Path(root), token),
    )


def versions_here() -> dict[str, str]:
    """Of what has to be equal on all nodes."""
    found = {"python": platform.python_version()}
    for package in EQUAL:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def gpus_here() -> tuple[tuple[tuple[int, int], ...], float]:
    """Total and free bytes of each GPU of this machine, and the least capability, by NVML; none without its driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        found = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        capabilities = [pynvml.nvmlDeviceGetCudaComputeCapability(handle) for handle in handles]
    except pynvml.NVMLError:
        return (), 0.0
    least = min((major + minor / 10 for major, minor in capabilities), default=0.0)
    return tuple((int(memory.total), int(memory.free)) for memory in found), least


def _root_problem(root: Path, token: str) -> str:
    question = root / f"{PROBE}{token}"
    end = time.monotonic() + SEEN_SECONDS
    while not question.exists():
        if time.monotonic() > end:
            return f"{root} is not the folder that the driver has under that name" if root.exists() else f"no {root}"
        time.sleep(0.1)
    try:
        write_text(root / f"{PROBE}{token}-{uuid.uuid4().hex}", os.uname().nodename)
    except OSError as error:
        return f"{root} cannot be written ({error.strerror or error})"
    return ""


def living() -> list[Node]:
    """The nodes that Ray says live, before anybody asked them."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has, gpus = node["Resources"], int(node["Resources"].get("GPU", 0))
        kinds = [name.removeprefix(ACCELERATOR) for name in has if name.startswith(ACCELERATOR)]
        lent = gpus > 0 and free.get(node["NodeID"], {}).get("GPU", 0) < gpus
        kind = kinds[0] if kinds else ""
        found.append(Node(node["NodeID"], node["NodeManagerAddress"], int(has.get("CPU", 0)), gpus, kind, lent))
    return found


def asked(nodes: Sequence[Node], root: RootPaths) -> list[Node]:
    """The same nodes with what each says of itself.

    Args:
        nodes: that live.
        root: which is there, and can be written.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    if not nodes:
        return []
    folder = root.root.absolute()
    with _question(folder) as token:
        task: Any = ray.remote(num_cpus=0, max_retries=0)(examine)
        start = time.time()
        answers = [
            task.options(scheduling_strategy=On(node.id, soft=False)).remote(str(folder), token) for node in nodes
        ]
        ray.wait(answers, num_returns=len(answers), timeout=ANSWER_SECONDS)
        return [_answered(node, answer, start) for node, answer in zip(nodes, answers, strict=True)]


def _answered(node: Node, answer: Any, start: float) -> Node:
    import ray

    try:
        facts = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        with contextlib.suppress(Exception):
            ray.cancel(answer)
        return replace(node, problem=f"nothing in {ANSWER_SECONDS:.0f} s")
    except Exception as error:  # noqa: BLE001  # whatever is wrong with that node
        return replace(node, problem=str(error).strip().splitlines()[-1])
    # It looked at its clock between the question and now.
    now = time.time()
    ahead = facts.ahead - now if facts.ahead > now else min(0.0, facts.ahead - start)
    return replace(node, facts=replace(facts, ahead=ahead))


@contextlib.contextmanager
def _question(folder: Path) -> Iterator[str]:
    """A file by which nodes see that their folder is this one; it and their answers are gone afterwards."""
    token = uuid.uuid4().hex
    write_text(folder / f"{PROBE}{token}", "")
    try:
        yield token
    finally:
        for file in folder.glob(f"{PROBE}{token}*"):
            file.unlink(missing_ok=True)


class Watch:
    """Looks again and again, in a thread, which nodes there are, and asks new ones."""

    def __init__(
        self, nodes: Sequence[Node], root: RootPaths, say: Callable[[str], None], *, joined: bool, pretended: bool
    ) -> None:
        """Look at nothing yet.

        Args:
            nodes: as they were asked before.
            root: of the searches.
            say: hears of who comes and goes.
            joined: it is a cluster, whose nodes are asked before they get trials.
            pretended: their GPUs are only that, so there are always as many.
        """
        self._nodes = list(nodes)
        self._unfit: set[str] = set()
        self._root = root
        self._say = say
        self._joined = joined
        self._pretended = pretended
        self._changed = False
        self._silent: dict[str, float] = {}  # nodes that did not answer, and when they are asked again

    @property
    def nodes(self) -> list[Node]:
        """Those that live and trials can run on, as of the last look."""
        return self._nodes

    def homes(self, seat: Seat, cpus: int) -> frozenset[str] | None:
        """Ids of the nodes where a worker could sit so, with so many cores; None where Ray is our own."""
        return frozenset(node.id for node in self._nodes if node.has(seat, cpus)) if self._joined else None

    def new_gpus(self, cpus: int = 1) -> list[Devices] | None:
        """The GPUs that there are now beside so many cores; None where no node came or went since this was asked."""
        changed, self._changed = self._changed, False
        return devices_of(self._nodes, cpus) if changed and not self._pretended else None

    def has_lost(self, sign: Sign | None) -> bool:
        """Whether the node is gone, or cut off, on which a worker left that sign; Ray notices that later.

        Of a worker that had not come forward yet nobody knows where it was: on whichever node is gone, if any is.
        """
        import ray

        where = {sign.node} if sign is not None and sign.node else {node.id for node in self._nodes}
        there = {node["NodeID"] for node in ray.nodes() if node["NodeID"] in where and node["Alive"] and _listens(node)}
        return where != there

    def look(self) -> None:
        """Once."""
        now, known = living(), {node.id: node for node in self._nodes}
        there = {node.id for node in now}
        wait = {one for one, until in self._silent.items() if until > time.monotonic()}
        new = [node for node in now if node.id not in {*known, *self._unfit, *wait}]
        for node in self._nodes:
            if node.id not in there:
                self._say(f"{node} is gone; its trials go on elsewhere")
        if not known.keys() <= there:  # before others are asked, which can take a minute
            self._nodes = [node for node in self._nodes if node.id in there]
            self._changed = True
        answered = asked(new, self._root)
        until = time.monotonic() + SILENT_SECONDS
        self._silent |= {node.id: until for node in answered if node.facts is None}
        came = [node for node in answered if node.facts is not None and self._is_fit(node)]
        if came:
            self._nodes = self._nodes + came
            self._changed = True

    def _is_fit(self, node: Node) -> bool:
        found = findings_of(node, versions_here(), pretended=self._pretended)
        wrong = [str(finding) for finding in found if finding.damage]
        if wrong:
            self._unfit.add(node.id)
        self._say("\n".join([f"{node} has come" + (", and gets no trials:" if wrong else ""), *wrong]))
        return not wrong

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look while the block runs."""

        def look() -> None:
            with contextlib.suppress(Exception):  # the next look may do
                self.look()

        with repeating("nodes", LOOK_SECONDS, look):
            yield


def _listens(node: dict[str, Any]) -> bool:
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), CONNECT_SECONDS):
            return True
    except OSError:
        return False


def end_elsewhere(sign: Sign) -> bool:
    """End a worker on the node that its heartbeat names; False where that does not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    from lorafront.search.watchdog import end_worker

    with contextlib.suppress(Exception):  # a node that is gone has no worker
        task: Any = ray.remote(num_cpus=0, max_retries=0)(end_worker)
        ray.get(task.options(scheduling_strategy=On(sign.node, soft=False)).remote(sign), timeout=END_SECONDS)
        return True
    return False
