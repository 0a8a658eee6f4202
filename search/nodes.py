"""The nodes of a Ray cluster by what Ray and they themselves say: what trials get there, and what is wrong. Pure.

`search/cluster.py` asks them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lorafront.search.doctor import Finding
from lorafront.search.gpu_memory import CONTEXT
from lorafront.search.placement import Devices, Seat
from lorafront.spaces.sizes import GIB, size_text

BFLOAT16 = 8.0  # CUDA's capability from which on GPUs have it
SKEW = 5.0  # seconds between clocks from which on it is said
LEAST_DISK = 5 * GIB  # free, for checkpoints and results
ACCELERATOR = "accelerator_type:"  # before the type, in Ray's name of what a node has


@dataclass(frozen=True)
class Facts:
    """What a node says of itself.

    Attributes:
        gpus: total and free bytes of each, by NVML.
        capability: CUDA's, of the oldest of them; 0.0 without any.
        memory: free bytes of the machine, or of the container.
        disk: free bytes where the root is.
        versions: of what has to be equal everywhere, by package.
        ahead: seconds that its clock is ahead of the driver's, within half of the time that the answer took.
        guarded: whether Ray asks for a token there.
        root: why the root is not the driver's, in words; empty where it is.
    """

    gpus: tuple[tuple[int, int], ...] = ()
    capability: float = 0.0
    memory: int = 0
    disk: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    ahead: float = 0.0
    guarded: bool = False
    root: str = ""


@dataclass(frozen=True)
class Node:
    """One that lives.

    Attributes:
        id: Ray's.
        address: where it listens.
        cores: that Ray gives out there.
        gpus: likewise.
        kind: Ray's name of the type of its GPUs; empty where it has none.
        lent: whether parts of its GPUs are in use through Ray.
        facts: what it says; None where it does not answer.
        problem: why not.
    """

    id: str
    address: str
    cores: int
    gpus: int = 0
    kind: str = ""
    lent: bool = False
    facts: Facts | None = None
    problem: str = ""

    def has(self, seat: Seat, cpus: int) -> bool:
        """Whether it has such a seat, and so many cores."""
        return self.cores >= cpus and (
            not seat.devices.are_gpus or (self.gpus >= seat.gpus and self.device == seat.devices.name)
        )

    @property
    def device(self) -> str:
        """How placement names the type of its GPUs."""
        return self.kind or "GPU"

    def __str__(self) -> str:
        """As messages name it; a machine without a cluster has no id."""
        if not self.id:
            return "this machine"
        return f"node {self.address} ({self.id[:8]})"


def devices_of(nodes: Sequence[Node], cpus: int = 1) -> list[Devices]:
    """The GPUs that trials may have, by type: of each as much memory as the one with the least.

    What is in use through Ray is counted by Ray, so there all of the memory counts; else what is free.
    """
    counts: dict[str, int] = defaultdict(int)
    sizes: dict[str, list[int]] = defaultdict(list)
    for node in nodes:
        if node.gpus and node.cores >= cpus and node.facts is not None and node.facts.gpus:
            counts[node.device] += node.gpus
            # NVML names all of the machine's; Ray may have been given some, hardly those that others have filled.
            own = sorted(node.facts.gpus, key=lambda gpu: gpu[1], reverse=True)[: node.gpus]
            sizes[node.device] += [total if node.lent else free for total, free in own]
    return [Devices(name, min(sizes[name]), count, CONTEXT, are_gpus=True) for name, count in counts.items()]


def room(nodes: Sequence[Node], cores: int, *, gpus: bool) -> int:
    """How many trials have their cores at once.

    Args:
        nodes: that live.
        cores: of a trial.
        gpus: trials need one, so only nodes that have some count.
    """
    return sum(node.cores // cores for node in nodes if node.gpus or not gpus)


def least_memory(nodes: Sequence[Node]) -> int:
    """Bytes that the node with the least has, of those that take trials; 0 without any."""
    return min((node.facts.memory for node in nodes if node.cores and node.facts is not None), default=0)


def lacks_bfloat16(nodes: Sequence[Node], quantization: str) -> str:
    """Why some node cannot train in bfloat16, and what could be done; empty where all can, or none has to."""
    if quantization != "bf16":
        return ""
    old = (node for node in nodes if node.facts is not None and 0 < node.facts.capability < BFLOAT16)
    return next((f"the GPU of {node} has no bf16; use fp16, or start that node with --num-gpus=0" for node in old), "")


def findings(nodes: Sequence[Node], versions: dict[str, str], *, pretended: bool = False) -> Iterator[Finding]:
    """What keeps trials from running on each node, or makes them run badly, with what mends it.

    Args:
        nodes: that live.
        versions: of the driver.
        pretended: their GPUs are only that, and none is looked for.
    """
    if not any(node.cores for node in nodes):
        fix = "start a worker node: ray start --address=HEAD:PORT"
        yield Finding("no node has CPU cores for trials", fix, damage=True)
    for node in nodes:
        yield from findings_of(node, versions, pretended=pretended)


def findings_of(node: Node, versions: dict[str, str], *, pretended: bool = False) -> Iterator[Finding]:
    """As `findings`, of one node."""
    facts = node.facts
    if facts is None:
        fix = "give it the same installation, or end its Ray"
        yield Finding(f"{node} does not answer: {node.problem}", fix, damage=True)
        return
    for package, version in versions.items():
        other = facts.versions.get(package, "none")
        if other != version:
            what = f"{node} has {package} {other}, this one {version}"
            yield Finding(what, "use one image, or one lock file, on all nodes", damage=True)
    if facts.root:
        fix = "mount the same storage at the same path on every node, writable for the user that runs Ray"
        yield Finding(f"{node}: {facts.root}", fix, damage=True)
    elif facts.disk < LEAST_DISK:
        yield Finding(f"{node} has {size_text(facts.disk)} free where the root is", "make room there")
    if node.gpus and not facts.gpus and not pretended:
        what = f"{node} has {node.gpus} GPUs for Ray, and NVIDIA's driver shows none there"
        yield Finding(what, "give the container the GPUs, or start that node with --num-gpus=0", damage=True)
    if abs(facts.ahead) > SKEW:
        what = f"the clock of {node} is {abs(facts.ahead):.0f} s {'ahead of' if facts.ahead > 0 else 'behind'} this one"
        yield Finding(what, "let NTP set the clocks; nothing is lost by it, but times in logs do not fit together")
