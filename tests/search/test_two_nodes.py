"""A search on two nodes whose GPUs differ in size. A process of its own: the tests' Ray is one node."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fault_support import python_path
from support import TINY_LLAMA

from lorafront.search.paths import RootPaths
from lorafront.search.placement import Devices
from lorafront.search.progress import Silent
from lorafront.search.run import run_search
from lorafront.search.search_file import parse_search
from lorafront.spaces.sizes import MIB

SMALL, LARGE = Devices("small", 9 * MIB, are_gpus=True), Devices("large", 14 * MIB, are_gpus=True)
SPACE = {
    "rank": [4, 64], "modules": "attention", "quantization": ["bf16", "nf4"], "dropout": 0.0, "bias": "none",
    "alpha": {"ratio": 1}, "learning_rate": 1e-3,
}  # fmt: skip


class Watch(Silent):
    """Notes which GPUs are taken, as Ray sees it, while each trial still has its worker."""

    def __init__(self, names: dict[str, str]) -> None:
        """Args: names: a node's id to its type of GPU."""
        self.names = names
        self.taken: list[tuple[str, list[str]]] = []

    def reported(self, number: int, report: Any) -> None:  # noqa: ARG002  # the observer's signature
        """At the end of a trial."""
        from ray._private.state import available_resources_per_node

        if report.outcome is not None:
            free = {self.names[node]: found.get("GPU", 0) for node, found in available_resources_per_node().items()}
            taken = [name for name, gpus in free.items() if not gpus]
            self.taken.append((report.measurements["device_type"], taken))


def search(text: str, root: str) -> None:
    """Run one and print what it did."""
    import ray
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**one, "resources": {"accelerator_type:small": 1}})
    cluster.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:large": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    names = {
        node["NodeID"]: key.partition(":")[2]
        for node in ray.nodes()
        for key in node["Resources"]
        if key.startswith("accelerator_type:")
    }
    file = parse_search(
        {
            "name": "two", "model": str(TINY_LLAMA), "space": SPACE, "sampler": "random", "early_stopping": "off",
            "data": {"path": text, "max_length": 32, "train_rows": 32, "eval_rows": 8},
            "training": {"rows": 16, "batch_size": 4, "rungs": 2}, "budget": {"trials": 4},
        }
    )  # fmt: skip
    watch = Watch(names)
    table = run_search(file, RootPaths(Path(root)), watch, engine="toy", devices=[SMALL, LARGE])
    trials = [(trial.lora.rank, trial.measurements["device_type"], trial.outcome.stored) for trial in table.complete]
    print(json.dumps({"trials": trials, "taken": watch.taken}))
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_trial_that_fits_only_the_larger_gpu_goes_to_its_node(text_file: Path, tmp_path: Path) -> None:
    """Ray puts it there, and the smaller ones on the other node."""
    command = [sys.executable, __file__, str(text_file), str(tmp_path)]
    paths = {**os.environ, "PYTHONPATH": python_path(Path(__file__).parents[1])}
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150, env=paths).stdout
    found = json.loads(told.strip().splitlines()[-1])
    assert sorted(found["trials"]) == [[4, "small", "complete"]] * 2 + [[64, "large", "complete"]] * 2
    assert len(found["taken"]) == 4
    for own, taken in found["taken"]:
        assert own in taken


if __name__ == "__main__":
    search(*sys.argv[1:])
