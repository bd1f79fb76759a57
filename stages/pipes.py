"""The pipes between stages: PUSH to PULL over Unix sockets, with little room, so that a full one is felt.

A receiver binds and senders connect, each to all replicas of the next stage; either side may come and go.
What was queued for a dead process is lost, deliberately: recovery replays it, and the less a pipe holds on
to, the less arrives twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq

MAX_PATH_BYTES = 107
"""Longest path of a Unix socket: the kernel has 108 bytes for it, the last is a NUL."""

RECONNECT_MS = 20
"""A restarted receiver is found within this time, and at most ten times it if it stays away."""


class PipePathError(Exception):
    """The path cannot be that of a pipe; says what would help."""


class Receiver:
    """The receiving end, bound to ``path``. A socket file that a dead run left there is replaced.

    Args:
        context: this process's ZeroMQ context.
        path: of the socket.
        depth: messages that may wait at this end for each sender.

    Raises:
        PipePathError: the path is too long, its folder is missing or cannot be written to.
    """

    def __init__(self, context: zmq.Context[Any], path: Path, depth: int) -> None:
        endpoint = _endpoint(path)
        self.socket: zmq.Socket[bytes] = context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, depth)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.socket.close()
            raise PipePathError(
                f"cannot listen on {path}: {error.strerror}; the setting runtime_dir names its folder"
            ) from error

    def receive(self) -> bytes | None:
        """The next message, or None if there is none now."""
        try:
            return self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        self.socket.close()


class Sender:
    """The sending end, connected to every path of ``paths``; messages go to whichever receiver has room.

    Only receivers that are there count: nothing is queued for one that has not come yet.

    Args:
        context: this process's ZeroMQ context.
        paths: of the receivers' sockets.
        depth: messages that may wait at this end for each receiver.

    Raises:
        PipePathError: a path is too long.
    """

    def __init__(self, context: zmq.Context[Any], paths: Sequence[Path], depth: int) -> None:
        endpoints = [_endpoint(path) for path in paths]
        self.socket: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, depth)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS * 10)
        for endpoint in endpoints:
            self.socket.connect(endpoint)

    def send(self, data: bytes) -> bool:
        """Hand over one message without waiting; False if no receiver has room (back-pressure)."""
        try:
            self.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        self.socket.close()


def _endpoint(path: Path) -> str:
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise PipePathError(
            f"{path} is {length} bytes long, but the path of a Unix socket may have {MAX_PATH_BYTES};"
            " set runtime_dir to a shorter folder"
        )
    return f"ipc://{path}"
