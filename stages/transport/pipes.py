"""The pipes between stages: PUSH to PULL over Unix sockets, with little room, so that a full one is felt.

A receiver binds and senders connect, each to all replicas of the next stage; either side may come and go.
What was queued for a dead process is lost, deliberately: recovery replays it, and the less a pipe holds on
to, the less arrives twice.

Every pipe has two lanes, for what is urgent and for the rest: what is urgent waits behind no video.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq

MAX_PATH_BYTES = 106
"""Longest path of a pipe. The kernel has 108 bytes for that of a Unix socket: the last is a NUL, and one more
tells the urgent lane from the other."""

RECONNECT_MS = 20
"""A restarted receiver is found within this time, and at most ten times it if it stays away."""


class PipePathError(Exception):
    """The path cannot be that of a pipe; says what would help."""


class Receiver:
    """The receiving end, bound to ``path``. Socket files that a dead run left there are replaced.

    Args:
        context: this process's ZeroMQ context.
        path: of the pipe.
        depth: messages that may wait at this end for each sender and lane.

    Raises:
        PipePathError: the path is too long, its folder is missing or cannot be written to.
    """

    def __init__(self, context: zmq.Context[Any], path: Path, depth: int) -> None:
        self.lanes: list[zmq.Socket[bytes]] = []
        """The urgent one, and that of the rest."""
        for endpoint in _endpoints(path):
            lane = context.socket(zmq.PULL)
            lane.setsockopt(zmq.LINGER, 0)
            lane.setsockopt(zmq.RCVHWM, depth)
            self.lanes.append(lane)
            try:
                lane.bind(endpoint)
            except zmq.ZMQError as error:
                self.close()
                raise PipePathError(
                    f"cannot listen on {path}: {error.strerror}; the setting runtime_dir names its folder"
                ) from error

    def receive(self, urgent: bool = False) -> bytes | None:
        """The next message of a lane, or None if there is none now."""
        try:
            return self.lanes[0 if urgent else 1].recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()


class Sender:
    """The sending end, connected to every path of ``paths``; messages go to whichever receiver has room.

    Only receivers that are there count: nothing is queued for one that has not come yet.

    Args:
        context: this process's ZeroMQ context.
        paths: of the receivers' pipes.
        depth: messages that may wait at this end for each receiver and lane.

    Raises:
        PipePathError: a path is too long.
    """

    def __init__(self, context: zmq.Context[Any], paths: Sequence[Path], depth: int) -> None:
        endpoints = [_endpoints(path) for path in paths]
        self.lanes: list[zmq.Socket[bytes]] = []
        """The urgent one, and that of the rest."""
        for own in zip(*endpoints, strict=True):
            lane = context.socket(zmq.PUSH)
            lane.setsockopt(zmq.LINGER, 0)
            lane.setsockopt(zmq.SNDHWM, depth)
            lane.setsockopt(zmq.IMMEDIATE, 1)
            lane.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
            lane.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS * 10)
            for endpoint in own:
                lane.connect(endpoint)
            self.lanes.append(lane)

    def send(self, data: bytes, urgent: bool = False) -> bool:
        """Hand over one message without waiting; False if no receiver has room in that lane (back-pressure)."""
        try:
            self.lanes[0 if urgent else 1].send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self, linger: int = 0) -> None:
        """``linger``: milliseconds for what is under way."""
        for lane in self.lanes:
            lane.close(linger=linger)


def _endpoints(path: Path) -> tuple[str, str]:
    """Of the urgent lane, and of the other."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise PipePathError(
            f"{path} is {length} bytes long, but the path of a pipe may have {MAX_PATH_BYTES};"
            " set runtime_dir to a shorter folder"
        )
    return f"ipc://{path}!", f"ipc://{path}"
