"""The processes that Ray starts in advance are the first workers of a search. A process of its own: one Ray each."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from lorafront.search.ray_cluster import RayCluster

with RayCluster(imports=True) as cluster:
    cluster.wait()
    cluster.ready()
    started = {int(file.name) for file in cluster._started.iterdir()}
    import os, sys
    from ray.tune import Trainable
    from ray.tune.execution.class_cache import _ActorClassCache

    class Worker(Trainable):
        def step(self):
            return {"pid": os.getpid(), "imported": "lorafront.trainables.packed_engine" in sys.modules}

    import ray
    found = ray.get(_ActorClassCache().get(Worker).options(num_cpus=1).remote().train.remote())
    assert found["imported"]
    assert found["pid"] in started, (found["pid"], started)
"""


@pytest.mark.slow
def test_a_worker_is_a_process_that_has_imported_in_advance() -> None:
    """Else each search would wait for the imports again: Ray Tune asks for processes of its own."""
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
