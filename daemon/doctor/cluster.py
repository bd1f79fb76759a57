"""The cluster: whether Ray is installed, and whether somebody answers at its address."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator

from daemon.doctor.check import Context, Finding, error, ok

CONNECT_SECONDS = 5.0


def check_cluster(context: Context, check: str) -> Iterator[Finding]:
    """Whether the other machines can be asked, where there shall be any."""
    address = str(context.setting("cluster.address", ""))
    if not address:
        yield ok(check, "this machine alone: cluster.address is empty")
        return
    if importlib.util.find_spec("ray") is None:
        yield error(check, "cluster.address is set, but ray is not installed", "pip install 'poseward[cluster]'")
        return
    if address == "auto":
        yield ok(check, "ray is installed; cluster.address = auto takes the cluster that this machine is in")
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        yield error(
            check, f"cluster.address = {address!r} is no HOST:PORT", "set it as `ray start --head` prints it"
        )
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as problem:
        way = "`ray start --head` there, or mend cluster.address or the firewall"
        yield error(check, f"nobody answers at {address}: {problem.strerror or problem}", way)
        return
    yield ok(check, f"ray is installed, and the cluster's head answers at {address}")
