"""A Ray of our own: its first workers, and who can reach it. A process of its own for each: there is one Ray in one."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

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


LISTENS = """
import os
import psutil
from pathlib import Path
from lorafront.search.ray_cluster import RayCluster

with RayCluster() as cluster:
    cluster.wait()
    import ray

    own = ray.remote(lambda: [os.getpid(), os.environ.get("RAY_AUTH_TOKEN")])
    _, theirs = ray.get(own.remote())
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                print(connection.laddr.ip)
    print("token", len(theirs), theirs == os.environ["RAY_AUTH_TOKEN"], Path.home().joinpath(".ray").exists())
"""


def test_it_can_be_reached_from_this_machine_and_with_its_token_alone(tmp_path: Path) -> None:
    """All of its processes listen on loopback, and ask for a token that stands in no file."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    found = subprocess.run(
        [sys.executable, "-c", LISTENS], check=True, capture_output=True, text=True, timeout=300,
        env={**environment, "HOME": str(tmp_path)},
    ).stdout.split("\n")  # fmt: skip
    *addresses, told, _ = found
    assert len(addresses) >= 4
    assert all(ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback for address in addresses)
    assert told == "token 64 True False"
