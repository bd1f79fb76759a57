"""A fork server: one process that has done the imports, and forks children which need not do them again.

Safe only while it has no threads, no sockets of a messaging library and no GPU context: so it imports what it is
told and nothing else happens before a fork. The supervisor asks over a socket; the answer is the child's
process number, and later its exit status, since only a parent learns that.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from supervisor.child import PR_SET_NAME, PR_SET_PDEATHSIG, Boot, run
from supervisor.fingerprint import fingerprint, inherit
from supervisor.launch import command

LARGEST_REQUEST = 1 << 18
LARGEST_ANSWER = 1 << 16
FILES_PER_ANSWER = 200
ROOTS_VARIABLE = "POSEWARD_CODE_ROOTS"
MOST_FDS = 64


class ForkServer:
    """The supervisor's handle on one fork server process.

    Raises:
        OSError: the interpreter cannot be started.
    """

    def __init__(
        self, python: str, env: Mapping[str, str], preload: Sequence[str], code_roots: Sequence[str], stderr: int
    ) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._next = 0
        self.dead = False
        self.proven = False
        """It has started a child: its imports work."""
        self.loaded: dict[str, str] = {}
        """Fingerprint of the code that its children will run."""
        with theirs:
            theirs.set_inheritable(True)
            self._process = subprocess.Popen(
                command(python, "supervisor.forkserver", str(theirs.fileno()), str(os.getpid()), *preload),
                env={**env, ROOTS_VARIABLE: json.dumps(list(code_roots))},
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=stderr,
                stderr=stderr, start_new_session=True,
            )  # fmt: skip
        self.socket.setblocking(False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def spawn(self, boot: Boot, fds: Mapping[int, int]) -> int:
        """Ask for a child. ``fds`` maps the number a descriptor shall have there to the one it has here.

        Returns:
            The request's number, under which the answer will come.
        """
        self._next += 1
        request = {"request": self._next, "boot": boot.to_json(), "targets": list(fds)}
        socket.send_fds(self.socket, [json.dumps(request).encode()], list(fds.values()))
        return self._next

    def answers(self) -> list[dict[str, Any]]:
        """What has come in: ``{"request", "pid"}`` for a start, ``{"pid", "status"}`` for an end,
        and before all others ``{"loaded"}``, a part of its code's fingerprint."""
        found: list[dict[str, Any]] = []
        while not self.dead:
            try:
                data = self.socket.recv(LARGEST_ANSWER)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.dead = True
                break
            found.append(json.loads(data))
        return found

    def close(self) -> None:
        """End the server; its children, if any are left, end with it."""
        self.socket.close()
        self._process.kill()
        self._process.wait()


def serve(connection: socket.socket) -> None:
    """Fork on request and report exits until the supervisor hangs up."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    poller.register(wake_read, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == wake_read:
                os.read(wake_read, 1024)
                _reap(connection)
                continue
            data, received, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, MOST_FDS)
            if not data:
                return
            request = json.loads(data)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for mine in (wake_read, wake_write):
                    os.close(mine)
                connection.close()
                _become_child(request, received)
            for fd_received in received:
                os.close(fd_received)
            connection.send(json.dumps({"request": request["request"], "pid": pid}).encode())


def _become_child(request: dict[str, Any], received: list[int]) -> None:
    status = 1
    try:
        # First out of the way: a received number may be another one's target.
        base = 1 + max(*request["targets"], *received)
        moved = [os.dup2(fd, base + index) for index, fd in enumerate(received)]
        for fd in received:
            os.close(fd)
        for target, fd in zip(request["targets"], moved, strict=True):
            os.dup2(fd, target)
            os.close(fd)
        status = run(Boot.from_json(request["boot"]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        connection.send(json.dumps({"pid": pid, "status": status}).encode())


def main() -> None:
    connection_fd, parent, *preload = sys.argv[1:]
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_NAME, b"pw-forkserver")
    if os.getppid() != int(parent):
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in preload:
        try:
            importlib.import_module(module)
        except ImportError as error:
            # The child will meet it too, and reports it with its own name on it.
            print(f"fork server: {module} not preloaded: {error}", file=sys.stderr)
    loaded = fingerprint(json.loads(os.environ.pop(ROOTS_VARIABLE, "[]")))
    inherit(loaded)
    with socket.socket(fileno=int(connection_fd)) as connection:
        files = list(loaded.items())
        for start in range(0, len(files), FILES_PER_ANSWER):
            part = dict(files[start : start + FILES_PER_ANSWER])
            connection.send(json.dumps({"loaded": part}).encode())
        serve(connection)


if __name__ == "__main__":
    main()
