"""The child's side: link to the supervisor, heartbeat, flight recorder, and a truthful death.

Imports only the standard library, pyzmq and msgpack: a child must be able to say that it is importing before it
imports anything heavy.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import msgpack
import zmq

from supervisor.fingerprint import fingerprint
from supervisor.recorder import FlightRecorder

BEAT = 0.25
"""Seconds between heartbeats."""
EXIT_EXCEPTION = 70
EXIT_DEVICE_OOM = 71
EXIT_HOST_OOM = 72
EXIT_CONFIGURATION = 78
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


@dataclass(frozen=True)
class Boot:
    """What a child must know before it can say anything; travels as JSON. Fields ending in ``fd`` are
    inherited file descriptors."""

    name: str
    entry: str
    config: dict[str, Any]
    control: str
    recorder_fd: int
    stack_fd: int
    report_fd: int
    lifeline_fd: int
    parent: int
    nice: int
    address_space: int | None
    code_roots: list[str]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Boot:
        return cls(**json.loads(text))


class Link:
    """What an entry function gets: everything it says to the supervisor and hears from its owner.

    Only the main thread may use it; heartbeats are sent by a thread of their own, over a socket of its own.
    """

    def __init__(self, boot: Boot) -> None:
        self.name = boot.name
        self.stopping = False
        self.context = zmq.Context()
        self.socket = self._connect(boot.control, b"c")
        self._recorder = FlightRecorder(boot.recorder_fd)
        self._recorder.clear()
        self._code_roots = boot.code_roots
        self._phase = "importing"
        self._busy = True
        self._moved = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._say({"t": "hello", "pid": os.getpid()})
        beat = self._connect(boot.control, b"h")
        threading.Thread(target=self._beat, args=(beat, boot.lifeline_fd), name="heartbeat", daemon=True).start()

    # -- what the entry says ---------------------------------------------------------------------------

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        """Enter a phase (loading, warming) or report how far it is; ``fraction`` in [0, 1]."""
        self._phase = name
        self._busy = True
        self._moved = time.monotonic()
        self._say({"t": "phase", "phase": name, "detail": detail, "fraction": fraction})

    def ready(self, **info: Any) -> None:
        """Warm and waiting for work. ``info`` goes into the `Ready` event."""
        self._phase = "working"
        self._busy = False
        self._say({"t": "ready", "info": info, "fingerprint": fingerprint(self._code_roots)})

    @contextmanager
    def working(self, activity: dict[str, Any]) -> Iterator[None]:
        """Around every piece of work: recorded before it begins, watched while it lasts."""
        self._recorder.write(activity)
        self._moved = time.monotonic()
        self._busy = True
        yield
        # Not in a finally: after an exception the record must still say what was being done.
        self._busy = False
        self._recorder.clear()

    def idle(self) -> None:
        """After an exception inside `working` that was dealt with: nothing is being done."""
        self._busy = False
        self._recorder.clear()

    def progress(self) -> None:
        """Inside long work: still moving."""
        self._moved = time.monotonic()

    def metrics(self, **values: float) -> None:
        """Figures for the state that the supervisor shows; sent with the next heartbeat."""
        self._metrics.update(values)

    def send(self, kind: str, payload: dict[str, Any]) -> None:
        """A message to the owner, who sees it as a `Message` event."""
        self._say({"t": "message", "kind": kind, "payload": payload})

    # -- what it hears -------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = 0) -> tuple[str, dict[str, Any]] | None:
        """The next message of the owner, or None after ``timeout`` seconds (None waits for ever).

        ``stop`` is a message like any other, and sets `stopping`.
        """
        if not self.socket.poll(None if timeout is None else int(timeout * 1000)):
            return None
        kind, payload = msgpack.unpackb(self.socket.recv(), unicode_errors="surrogateescape")
        if kind == "stop":
            self.stopping = True
        return kind, payload

    def close(self) -> None:
        self.socket.close(linger=500)

    # -- inside --------------------------------------------------------------------------------------------

    def _connect(self, path: str, role: bytes) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.identity = b"%s/%d/%s" % (self.name.encode(), os.getpid(), role)
        socket.linger = 0
        socket.connect(f"ipc://{path}")
        return socket

    def _say(self, message: dict[str, Any]) -> None:
        self.socket.send(msgpack.packb(message, unicode_errors="surrogateescape"))

    def _beat(self, socket: zmq.Socket[bytes], lifeline: int) -> None:
        poller = zmq.Poller()
        poller.register(lifeline, zmq.POLLIN | zmq.POLLERR)
        while True:
            late = time.monotonic() - self._moved if self._busy else 0.0
            # Whatever is wrong at this moment, this thread must live on: it watches the lifeline as well.
            with suppress(zmq.Again, MemoryError, OSError):
                beat = {
                    "t": "beat",
                    "late": late,
                    "busy": self._busy,
                    "rss": _resident(),
                    "metrics": dict(self._metrics),
                }
                socket.send(msgpack.packb(beat), zmq.NOBLOCK)
            if poller.poll(int(BEAT * 1000)):
                # The supervisor is gone, however it went. Nobody is left to clean up after this group.
                os.killpg(0, signal.SIGKILL)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def run(boot: Boot) -> int:
    """Become the child: prepare the process, open the link, import and call the entry.

    Returns:
        The exit status; what happened is in the report, for the supervisor to classify.
    """
    _prepare(boot)
    reserve = bytearray(1 << 20)  # given back on a MemoryError, so that there is room to report it
    link = Link(boot)
    signal.signal(signal.SIGTERM, lambda *_: setattr(link, "stopping", True))
    try:
        link.phase("importing", boot.entry)
        module, _, function = boot.entry.partition(":")
        getattr(importlib.import_module(module), function)(link, boot.config)
    except BaseException as error:  # noqa: BLE001 - whatever it was, the supervisor must hear of it
        reserve.clear()
        if isinstance(error, SystemExit) and error.code in (None, 0):
            link.close()
            return 0
        status = _status_of(error)
        text = "".join(traceback.format_exception(error))
        report = {"reason": f"{type(error).__name__}: {error}"[:2000], "traceback": text[-20_000:]}
        os.pwrite(boot.report_fd, json.dumps(report).encode(), 0)
        sys.stderr.write(text)
        link.close()
        return status
    link.close()
    return 0


def _prepare(boot: Boot) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_NAME, f"pw-{boot.name}".encode()[:15])
    if os.getppid() != boot.parent:
        os._exit(EXIT_EXCEPTION)  # the parent died before the line above could take effect
    if os.getpgrp() != os.getpid():
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, who stops its children in order
    try:
        os.nice(boot.nice)
    except PermissionError:
        print(f"niceness {boot.nice} needs a privilege that this user lacks; left as it was", file=sys.stderr)
    if boot.address_space is not None:
        resource.setrlimit(resource.RLIMIT_AS, (boot.address_space, boot.address_space))
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, file=boot.stack_fd, all_threads=True)


def _status_of(error: BaseException) -> int:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if getattr(error, "poseward_configuration", False) or type(error).__name__ == "ConfigurationError":
        return EXIT_CONFIGURATION
    if isinstance(error, ModuleNotFoundError):
        return EXIT_CONFIGURATION
    if any(type(cause).__name__ == "OutOfMemoryError" for cause in chain):
        return EXIT_DEVICE_OOM
    if any(isinstance(cause, MemoryError) for cause in chain):
        return EXIT_HOST_OOM
    return EXIT_EXCEPTION


if __name__ == "__main__":
    # Under its real name: classes of this module must be the same for the entry that imports them.
    from supervisor import child

    sys.exit(child.run(child.Boot.from_json(os.environ.pop("POSEWARD_BOOT"))))
