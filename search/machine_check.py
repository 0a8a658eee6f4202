"""`lorafront cluster check`, and `lorafront doctor` of one machine: what searches find there, and what is wrong."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorafront.search.cluster import examine, versions_here
from lorafront.search.database import check_database, database_url
from lorafront.search.devices import cores
from lorafront.search.doctor import Finding
from lorafront.search.mlflow_tracker import shown, unreachable
from lorafront.search.nodes import Node, findings
from lorafront.search.object_store import check_storage, storage
from lorafront.search.paths import RootPaths
from lorafront.search.ray_cluster import ADDRESS, RayCluster
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.sizes import size_text

TRACKING = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Checked:
    """What was looked at, and what is wrong.

    Attributes:
        nodes: as they answered; one of a machine.
        findings: what is wrong; with `damage` what no search would start with.
        notes: what was found to be right.
    """

    nodes: tuple[Node, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def cluster_checked(root: RootPaths) -> Checked:
    """The cluster that `LORAFRONT_RAY` names, else that of this node.

    Raises:
        InvalidInput: there is none that would have us, or the root cannot be written here.
    """
    root.check_writable()
    root.make()
    os.environ.setdefault(ADDRESS, "auto")
    with RayCluster() as cluster:
        nodes = cluster.asked(root)
    found = list(findings(nodes, versions_here()))
    found += [
        Finding(f"Ray on {node} asks nobody for a token", "start all nodes with RAY_AUTH_MODE=token and a token")
        for node in nodes
        if node.facts is not None and not node.facts.guarded
    ]
    if len(nodes) > 1 and not database_url():
        what = "studies would be SQLite files under the root, and SQLite is not safe on storage over a network"
        found.append(Finding(what, "set LORAFRONT_DATABASE (docs/how-to/database.md)"))
    return _with_services(nodes, found)


def machine_checked(root: RootPaths) -> Checked:
    """The machine that this runs on, for a Ray of our own."""
    root.check_writable()
    with tempfile.TemporaryDirectory() as folder:  # whether the root can be written is known, and it may not be there
        facts = examine(folder, "")
    facts = replace(facts, root="", ahead=0.0)
    node = Node("", socket.gethostname(), cores(), len(facts.gpus), facts=facts)
    return _with_services([node], list(findings([node], versions_here())))


def _with_services(nodes: Sequence[Node], found: list[Finding]) -> Checked:
    notes = []
    for check in (_database, _copies, _tracking):
        finding, note = check()
        found += [finding] if finding else []
        notes += [note] if note else []
    return Checked(tuple(nodes), tuple(found), tuple(notes))


def _database() -> tuple[Finding | None, str]:
    try:
        url = database_url()
        check_database()
    except InvalidInput as error:
        return Finding(str(error), "see docs/how-to/database.md", damage=True), ""
    return None, f"studies go to {url}, which can be written" if url else "studies go to files under the root"


def _copies() -> tuple[Finding | None, str]:
    try:
        store = storage()
        check_storage()
    except InvalidInput as error:
        return Finding(str(error), "see docs/how-to/copies.md", damage=True), ""
    return None, f"copies of searches go to {store.url}, which can be written" if store else ""


def _tracking() -> tuple[Finding | None, str]:
    """Whether MLflow's server answers, and lets this user read and write."""
    uri = os.environ.get(TRACKING, "")
    if not uri:
        return None, "MLflow runs go to a file under the root"
    problem = unreachable(uri) or _refused(uri)
    if problem:
        fix = f"start it, or mend {TRACKING} and MLFLOW_TRACKING_USERNAME and _PASSWORD; searches run without it"
        return Finding(problem, fix), ""
    return None, f"MLflow runs go to {shown(uri)}, which lets this user in"


def _refused(uri: str) -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from lorafront.search import environment  # noqa: F401  # before MLflow

    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except MlflowException as error:
        return f"MLflow at {shown(uri)} refuses: {str(error).splitlines()[0]}"
    return ""


def rows(checked: Checked) -> list[dict[str, str]]:
    """A line for each node."""
    return [_row(node) for node in checked.nodes]


def _row(node: Node) -> dict[str, str]:
    facts = node.facts
    row = {"node": node.address, "cores": str(node.cores), "GPUs": "-"}
    if node.gpus:
        sizes = {size_text(total) for total, _ in facts.gpus} if facts is not None else set()
        row["GPUs"] = " ".join([f"{node.gpus}x", node.kind, *sorted(sizes)])
    if facts is None:
        return {**row, "free memory": "no answer", "free disk": ""}
    return {**row, "free memory": size_text(facts.memory), "free disk": size_text(facts.disk)}


def lines(checked: Checked) -> list[str]:
    """For people, below the table."""
    count = len(checked.findings)
    said = [*map(str, checked.findings), *checked.notes]
    return [*said, f"{count} finding{'s' if count > 1 else ''}" if count else "nothing is wrong"]


def as_json(checked: Checked) -> dict[str, Any]:
    """For programs."""
    return {
        "nodes": [asdict(node) for node in checked.nodes],
        "findings": [asdict(finding) for finding in checked.findings],
        "notes": list(checked.notes),
    }
