"""What `ray start` does differently here, on every node; docker/head.sh and worker.sh name it in RAY_START_HOOK.

Ray calls it with what the node is about to be started with.
"""

from __future__ import annotations

import os
from typing import Any

LOOPBACK = "127.0.0.1"


def prepare(node: Any, head: bool) -> None:  # noqa: ARG001  # Ray's signature
    """No server for Ray's client, and on loopback where NODE_IP says so.

    Ray replaces 127.0.0.1 by an address that other machines reach, its own and the head's, and then listens on all
    (2.60). Ray's client, a second way to run code on a cluster, is not used.
    """
    node.ray_client_server_port = None
    if os.environ.get("NODE_IP") == LOOPBACK:
        from ray._private import services

        services.resolve_ip_for_localhost = lambda host: host
        node.node_ip_address = LOOPBACK
