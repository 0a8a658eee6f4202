"""What follows from what the nodes of a cluster say of themselves."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lorafront.search.cluster import PROBE, Watch, examine, versions_here
from lorafront.search.nodes import Facts, Node, devices_of, findings, lacks_bfloat16, least_memory, room
from lorafront.search.paths import RootPaths
from lorafront.search.placement import ANYWHERE, Seat
from lorafront.spaces.sizes import GIB
from lorafront.trainables import heartbeat
from lorafront.trainables.heartbeat import Sign

VERSIONS = {"lorafront": "1", "torch": "2"}
GOOD = Facts(memory=8 * GIB, disk=100 * GIB, versions=VERSIONS, guarded=True)
HEAD = Node("aaaaaaaaaa", "10.0.0.1", 0, facts=GOOD)
CPU = Node("bbbbbbbbbb", "10.0.0.2", 8, facts=GOOD)
GPUS = replace(GOOD, gpus=((80 * GIB, 70 * GIB), (80 * GIB, 79 * GIB)), capability=9.0)
LARGE = Node("cccccccccc", "10.0.0.3", 16, 2, "H100", facts=GPUS)


def test_each_type_of_gpu_is_as_large_as_the_smallest_of_it() -> None:
    """What is free counts, or all of it where Ray has lent parts out already; other nodes have none."""
    assert [(d.name, d.count, d.bytes, d.are_gpus) for d in devices_of([HEAD, CPU, LARGE])] == [
        ("H100", 2, 70 * GIB, True)
    ]
    lent, small = replace(LARGE, lent=True), replace(LARGE, kind="L4", gpus=1, facts=replace(GPUS, gpus=((24, 20),)))
    assert {d.name: (d.count, d.bytes) for d in devices_of([lent, small])} == {"H100": (2, 80 * GIB), "L4": (1, 20)}


def test_cores_count_node_by_node() -> None:
    """A trial's cores are those of one node, and where it needs a GPU those of nodes that have some."""
    assert room([HEAD, CPU, LARGE], 5, gpus=False) == 1 + 3
    assert room([HEAD, CPU, LARGE], 5, gpus=True) == 3
    assert least_memory([replace(HEAD, facts=replace(GOOD, memory=1)), CPU]) == 8 * GIB


def test_a_worker_may_be_where_its_cores_and_its_kind_of_gpu_are(tmp_path: Path) -> None:
    """A head without cores is no place for it; a Ray of our own decides by itself."""
    there = Watch([HEAD, CPU, LARGE], RootPaths(tmp_path), print, joined=True, pretended=False)
    (gpus,) = devices_of([LARGE])
    assert there.homes(ANYWHERE, 8) == {CPU.id, LARGE.id}
    assert there.homes(ANYWHERE, 9) == there.homes(Seat(8, gpus, 0), 1) == {LARGE.id}
    assert there.homes(Seat(3 * 16, gpus, 0), 1) == there.homes(Seat(8, replace(gpus, name="L4"), 0), 1) == frozenset()
    assert Watch([CPU], RootPaths(tmp_path), print, joined=False, pretended=False).homes(ANYWHERE, 1) is None


def test_a_whole_cluster_gives_no_finding() -> None:
    """A head without cores is none either, as long as another node has some."""
    assert list(findings([HEAD, CPU, LARGE], VERSIONS)) == []


@pytest.mark.parametrize(
    ("nodes", "words", "damage"),
    [
        ([HEAD], "no node has CPU cores", True),
        ([CPU, replace(LARGE, facts=None, problem="no module lorafront")], "does not answer: no module", True),
        ([replace(CPU, facts=replace(GOOD, versions={**VERSIONS, "torch": "3"}))], "torch 3, this one 2", True),
        ([replace(CPU, facts=replace(GOOD, versions={}))], "lorafront none, this one 1", True),
        ([replace(CPU, facts=replace(GOOD, root="no /runs"))], "no /runs", True),
        ([replace(CPU, facts=replace(GOOD, disk=GIB))], "1.00 GiB free", False),
        ([replace(LARGE, facts=GOOD)], "2 GPUs for Ray, and NVIDIA's driver shows none", True),
        ([replace(CPU, facts=replace(GOOD, ahead=-61.0))], "61 s behind", False),
    ],
)
def test_what_is_wrong_is_named_with_the_node_and_what_mends_it(nodes: list[Node], words: str, damage: bool) -> None:
    """What no search would start with is told from what is only worth knowing."""
    found = list(findings(nodes, VERSIONS))
    assert words in " ".join(finding.what for finding in found)
    assert [finding.damage for finding in found][-1] is damage
    assert all(finding.fix for finding in found)


def test_a_gpu_that_is_too_old_for_bfloat16_is_named() -> None:
    """For that quantization alone."""
    old = replace(LARGE, facts=replace(GPUS, capability=7.5))
    assert "10.0.0.3" in lacks_bfloat16([LARGE, old], "bf16")
    assert lacks_bfloat16([LARGE, old], "nf4") == lacks_bfloat16([LARGE, HEAD], "bf16") == ""


def test_a_node_sees_whether_its_root_is_the_drivers(tmp_path: Path) -> None:
    """By a file that the driver left there; it leaves an answer beside it."""
    (tmp_path / f"{PROBE}token").touch()
    before = time.time()
    facts = examine(str(tmp_path), "token")
    assert facts.root == ""
    assert len(list(tmp_path.glob(f"{PROBE}token-*"))) == 1
    assert facts.versions == versions_here()
    assert before <= facts.ahead <= time.time()
    assert facts.memory > 0
    assert facts.disk > 0
    assert "not the folder" in examine(str(tmp_path), "another").root
    assert examine(str(tmp_path / "none"), "token").root == f"no {tmp_path / 'none'}"


def test_gpus_that_are_only_pretended_are_always_as_many(tmp_path: Path) -> None:
    """What a node says of its own is no news then."""
    watch = Watch([LARGE], RootPaths(tmp_path), print, joined=True, pretended=True)
    watch._changed = True
    assert watch.new_gpus() is None
    watch = Watch([LARGE], RootPaths(tmp_path), print, joined=True, pretended=False)
    assert watch.new_gpus() is None
    watch._changed = True
    assert [one.count for one in watch.new_gpus() or []] == [2]
    assert watch.new_gpus() is None


def test_a_process_of_another_machine_is_not_looked_for_here(tmp_path: Path) -> None:
    """Its number may be anybody's here."""
    heartbeat.begin(tmp_path)
    own = heartbeat.read(tmp_path)
    heartbeat.end(tmp_path)
    assert own is not None
    assert own.pid == os.getpid()
    assert not own.is_elsewhere
    assert own.process() is not None
    other = Sign(own.pid, own.started, own.beat, place="another machine")
    assert other.is_elsewhere
    assert other.process() is None
