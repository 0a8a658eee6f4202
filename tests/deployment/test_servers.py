"""The servers of docker/compose.yaml as processes on this machine, by the same scripts: PostgreSQL, MLflow, Ray.

All listens on loopback, nothing answers without its password or token, and a search runs on all of it.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers import (
    BUCKETS,
    DOCKER,
    HEAD,
    MLFLOW_KEY,
    MLFLOW_PASSWORD,
    PASSWORD,
    RUNS_PASSWORD,
    SLOW,
    STORE_KEYS,
    TOKEN,
    Servers,
    answer,
    basic,
    environment,
    served,
    why_none,
)
from support import TINY_LLAMA

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """All of them, started as compose.yaml starts them."""
    if why := why_none():
        pytest.skip(why)
    with served(nodes=2, cores=1, store=True) as found:
        yield found


def test_all_listens_on_loopback(servers: Servers) -> None:
    """Each process of each server."""
    begun = [psutil.Process(process.pid) for process in servers.processes.values()]
    begun += [psutil.Process(servers.postgres.pid())]
    listening = {
        (process.pid, connection.laddr.ip, connection.laddr.port)
        for root in begun
        for process in (root, *root.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    ports = {port for _, _, port in listening}
    assert {servers.ray, servers.jobs, servers.mlflow, servers.postgres.port} <= ports
    assert 10001 not in ports  # Ray's client
    assert len(ports) > 12
    assert all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for _, ip, _ in listening), listening


def test_mlflow_asks_for_its_password_and_knows_its_name(servers: Servers) -> None:
    """Also for a password that everybody knows, and for a name under which a browser was lured to it."""
    url = f"http://127.0.0.1:{servers.mlflow}/api/2.0/mlflow/experiments/search?max_results=5"
    assert answer(url)[0] == 401
    assert answer(url, Authorization=basic("password1234"))[0] == 401
    assert answer(url, Authorization=basic(MLFLOW_PASSWORD))[0] == 200
    assert answer(url, Authorization=basic(MLFLOW_PASSWORD), Host="attacker.example.org")[0] == 403


def test_ray_runs_no_job_without_its_token(servers: Servers) -> None:
    """Nor with another one."""
    url, job = f"http://127.0.0.1:{servers.jobs}/api/jobs/", {"entrypoint": f"touch {servers.folder / 'open'}"}
    assert answer(url, job)[0] == 401
    assert answer(url, job, Authorization="Bearer another-token-than-it")[0] in (401, 403)
    assert answer(url)[0] == 401
    assert answer(url, Authorization=f"Bearer {TOKEN}") == (200, drivers_of(servers))
    assert not (servers.folder / "open").exists()


def drivers_of(servers: Servers) -> Any:
    return answer(f"http://127.0.0.1:{servers.jobs}/api/jobs/", Authorization=f"Bearer {TOKEN}")[1]


@pytest.mark.parametrize("token", ["", "another-token-than-it"])
def test_a_driver_without_the_token_is_refused(servers: Servers, token: str) -> None:
    """It gets no connection."""
    connect = f"import ray; ray.init('127.0.0.1:{servers.ray}'); print('in')"
    # The variable: 127.0.0.1 is meant.
    wrong = servers.driver(RAY_AUTH_TOKEN=token, HOME=str(servers.folder), RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    ended = subprocess.run(
        [sys.executable, "-c", connect], env=wrong, capture_output=True, text=True, check=False, timeout=SLOW
    )
    assert ended.returncode != 0
    assert "in" not in ended.stdout.split()


def test_a_worker_with_another_token_does_not_join(servers: Servers) -> None:
    """It ends."""
    wrong = environment(HEAD=f"127.0.0.1:{servers.ray}", RAY_AUTH_TOKEN="another-token-than-it")
    ended = subprocess.run([str(DOCKER / "worker.sh")], env=wrong, capture_output=True, check=False, timeout=SLOW)
    assert ended.returncode != 0
    assert servers.nodes() == 3


def search_file(folder: Path, name: str, text_file: Path) -> Path:
    file = folder / f"{name}.yaml"
    data = {
        "name": name, "model": str(TINY_LLAMA), "sampler": "random", "early_stopping": "off",
        "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
        "space": {"rank": [2, 4, 8, 16], "modules": "attention", "quantization": "bf16", "bias": "none"},
        "training": {"rows": 32, "rungs": 2, "batch_size": 4}, "budget": {"trials": 4},
        "tracking": {"required": True},
    }  # fmt: skip
    file.write_text(json.dumps(data))
    return file


def lorafront(servers: Servers, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorafront.search.cli", *arguments], env=servers.driver(**more), text=True,
        capture_output=True, check=False, timeout=SLOW, cwd=servers.folder,
    )  # fmt: skip


def test_a_search_runs_on_all_of_it(servers: Servers, text_file: Path) -> None:
    """Trials on Ray's nodes, the study in PostgreSQL, runs in MLflow, its artifacts and copies of all in the store."""
    before = len(drivers_of(servers))
    file = search_file(servers.folder, "served", text_file)
    ended = lorafront(servers, "run", str(file), "--engine", "toy")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(drivers_of(servers)) == before + 1
    folder = servers.folder / "root" / "served"
    assert (folder / "study.json").exists()
    assert not (folder / "study.db").exists()
    status = json.loads(lorafront(servers, "status", "served", "--json").stdout)
    assert [trial["state"] for trial in status] == ["COMPLETE"] * 4

    mlflow = f"http://127.0.0.1:{servers.mlflow}/api/2.0/mlflow"
    login = basic(MLFLOW_PASSWORD)
    found = answer(f"{mlflow}/experiments/get-by-name?experiment_name=served", Authorization=login)[1]
    search = {"experiment_ids": [found["experiment"]["experiment_id"]]}
    runs = answer(f"{mlflow}/runs/search", search, Authorization=login)[1]["runs"]
    assert [run["info"]["status"] for run in runs] == ["FINISHED"] * 5  # a parent and its trials
    assert not (servers.folder / "root" / "mlflow.db").exists()
    assert any("/artifacts/" in name for name in stored(servers, "mlflow"))
    assert sum(name.endswith("/result.json") for name in stored(servers, "lorafront")) == 4

    there = {file.name for file in folder.glob("trials/*/*/ckpt-*")}
    shutil.rmtree(folder)
    ended = lorafront(servers, "resume", "served", "--engine", "toy")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert there == {file.name for file in folder.glob("trials/*/*/ckpt-*")} != set()
    assert lorafront(servers, "doctor", "served").returncode == 0


def stored(servers: Servers, bucket: str) -> dict[str, bytes]:
    """What is in a bucket of the store."""
    client = servers.s3()
    names = [one["Key"] for one in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {name: client.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names}


def test_the_wrong_password_of_the_database_starts_nothing(servers: Servers, text_file: Path) -> None:
    """And says which."""
    file = search_file(servers.folder, "refused", text_file)
    ended = lorafront(servers, "run", str(file), "--engine", "toy", PGPASSWORD="not the password")
    assert ended.returncode != 0
    assert "password authentication failed" in ended.stdout + ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr


def test_secrets_stand_in_no_file_of_a_cluster(servers: Servers) -> None:
    """Neither Ray's nor MLflow's, nor the search's; the last test but one, so that there is something to find."""
    planted = (PASSWORD, RUNS_PASSWORD, TOKEN, MLFLOW_PASSWORD, MLFLOW_KEY, STORE_KEYS["AWS_SECRET_ACCESS_KEY"])
    secrets = [secret.encode() for secret in planted]
    copies = [content for bucket in BUCKETS for content in stored(servers, bucket).values()]
    assert len(copies) > 10
    assert not [secret for secret in secrets for content in copies if secret in content]
    read = 0
    for path in servers.folder.rglob("*"):
        if path.is_file() and path.name != "token":
            content = path.read_bytes()
            read += 1
            assert not [secret for secret in secrets if secret in content], path
    assert read > 20


def test_a_node_and_the_head_end_when_they_are_told(servers: Servers) -> None:
    """With all of their processes. The last test: it ends them."""
    for name in ("node1", "node2", HEAD):
        process = servers.processes[name]
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 2, name
        process.terminate()
        process.wait(SLOW)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, servers.log(name)
