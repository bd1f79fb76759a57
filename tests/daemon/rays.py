"""A real Ray cluster on this machine for tests: a head and nodes, each a raylet of its own, bound to loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOOPBACK = "127.0.0.1"
ENVIRONMENT = {
    # Ray replaces 127.0.0.1 by the machine's own address, unless it takes this for a system without clusters.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # a dead head is given up sooner than after a minute
}


class Rays:
    """A cluster whose head has no room for stations; nodes have room for one each."""

    def __init__(self) -> None:
        with socket.socket() as found:
            found.bind((LOOPBACK, 0))
            self._port = found.getsockname()[1]
        self.address = f"{LOOPBACK}:{self._port}"
        self.start()

    def start(self) -> None:
        """The head, under the address that it had before."""
        from ray.cluster_utils import Cluster

        given = {
            "num_cpus": 0,
            "node_ip_address": LOOPBACK,
            "include_dashboard": False,
            "gcs_server_port": self._port,
        }
        self._cluster = Cluster(initialize_head=True, connect=False, head_node_args=given)
        self._nodes: list[Any] = []

    def add(self) -> None:
        """One more machine."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK))

    def kill(self) -> None:
        """The power of the machine that came last goes."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def cluster(nodes: int) -> Iterator[Rays]:
    os.environ.update(ENVIRONMENT)
    rays = Rays()
    try:
        for _ in range(nodes):
            rays.add()
        yield rays
    finally:
        rays.close()
        for name in ENVIRONMENT:
            os.environ.pop(name, None)
