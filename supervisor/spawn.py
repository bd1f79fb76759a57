"""How a process comes to be: by exec, or from a fork server that has the imports done."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.child import Boot
from supervisor.events import ExitKind
from supervisor.fingerprint import is_stale
from supervisor.forkserver import ForkServer
from supervisor.launch import command
from supervisor.process import Life
from supervisor.spec import ProcessSpec

ServerKey = tuple[str, tuple[tuple[str, str], ...], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Places:
    """What all children share: the control socket's path, and the lifeline's reading end."""

    control: str
    lifeline: int


SILENT_SERVER = 3.0
"""Seconds after a child's death by which its fork server must have reported it."""


class Spawner:
    """Starts children, and learns how those ended that it forked or executed."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._servers: dict[ServerKey, ForkServer] = {}
        self._retired: list[ForkServer] = []
        """Servers with old code that still have children: those die with them, so they stay till the last."""
        self._hopeless: set[ServerKey] = set()
        """Servers that died before they had started a child: such processes are started by exec from then on."""
        self._waiting: dict[tuple[int, int], Life] = {}
        self._forked: dict[int, tuple[ForkServer, Life]] = {}
        self._executed: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, spec: ProcessSpec, recorder_fd: int, now: float) -> Life:
        """Start one life; its process number may come later (`answers`).

        Raises:
            OSError: the interpreter cannot be started.
        """
        with contextlib.ExitStack() as opened:  # each of these may be one descriptor too many
            stderr_read, stderr_write = os.pipe()
            opened.callback(os.close, stderr_read)
            opened.callback(os.close, stderr_write)
            os.set_blocking(stderr_read, False)
            stack_fd = os.memfd_create("stack")
            opened.callback(os.close, stack_fd)
            life = Life(now, stderr_read, stack_fd, os.memfd_create("report"))
            opened.pop_all()
        boot = Boot(
            name=spec.name, entry=spec.entry, config=dict(spec.config), control=self._places.control,
            recorder_fd=recorder_fd, stack_fd=life.stack_fd, report_fd=life.report_fd,
            lifeline_fd=self._places.lifeline, parent=os.getpid(), nice=spec.nice,
            address_space=spec.memory.address_space, code_roots=list(spec.code_roots),
        )  # fmt: skip
        inherited = (*spec.fds, recorder_fd, life.stack_fd, life.report_fd, self._places.lifeline)
        try:
            if spec.preload and _key(spec) not in self._hopeless:
                life.preloaded = True
                self._fork(spec, boot, life, {1: stderr_write, 2: stderr_write, **{fd: fd for fd in inherited}})
            else:
                self._exec(spec, boot, life, inherited, stderr_write)
        except OSError:
            for fd in (stderr_read, life.stack_fd, life.report_fd):
                os.close(fd)
            raise
        finally:
            os.close(stderr_write)
        return life

    def _exec(self, spec: ProcessSpec, boot: Boot, life: Life, inherited: tuple[int, ...], stderr: int) -> None:
        process = subprocess.Popen(
            command(spec.python, "supervisor.child"), env={**_environment(spec), "POSEWARD_BOOT": boot.to_json()},
            pass_fds=inherited, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True,
        )  # fmt: skip
        self._executed[process.pid] = process
        life.pid = process.pid
        life.pidfd = _pidfd(process.pid)

    def _fork(self, spec: ProcessSpec, boot: Boot, life: Life, fds: Mapping[int, int]) -> None:
        key = _key(spec)
        server = self._servers.get(key)
        if server is not None and server.dead:
            self._abandon(server)
            server = None
        if server is not None and is_stale(server.loaded):
            self._retired.append(self._servers.pop(key))
            server = None
        if server is None:
            server = ForkServer(spec.python, _environment(spec), spec.preload, spec.code_roots, fds[2])
            self._servers[key] = server
        boot = Boot(**{**boot.__dict__, "parent": server.pid})
        try:
            life.request = server.spawn(boot, fds)
        except ConnectionError:
            server.dead = True
            raise
        self._waiting[server.pid, life.request] = life

    def sockets(self) -> list[int]:
        """Descriptors to poll: when one is readable, call `answers`."""
        return [server.socket.fileno() for server in self._all() if not server.dead]

    def answers(self) -> None:
        """Take in what the fork servers have said."""
        for server in self._all():
            for answer in server.answers():
                if "loaded" in answer:
                    server.loaded.update(answer["loaded"])
                elif "request" in answer:
                    server.proven = True
                    life = self._waiting.pop((server.pid, answer["request"]))
                    life.pid, life.request = answer["pid"], None
                    self._forked[answer["pid"]] = (server, life)
                    life.pidfd = _pidfd(answer["pid"])
                elif answer["pid"] in self._forked:
                    _, life = self._forked.pop(answer["pid"])
                    life.status = answer["status"]
            if server.dead or (server in self._retired and not self._has_children(server)):
                self._abandon(server)

    def reap(self, life: Life, now: float) -> bool:
        """Whether this life is over. Its status is known then, or lost with its fork server.

        A server that does not report a death it must have seen is itself stopped or hung: it is abandoned.
        """
        if life.pid is None:
            return life.status is not None
        if life.status is not None:
            return True
        process = self._executed.get(life.pid)
        if process is not None:
            code = process.poll()
            if code is None:
                return False
            del self._executed[life.pid]
            life.status = -code if code < 0 else code << 8
            return True
        if _exists(life.pid):
            return False
        if life.pid not in self._forked:
            return True
        life.gone_since = life.gone_since or now
        if now - life.gone_since > SILENT_SERVER:
            self._abandon(self._forked[life.pid][0])
        return life.pid not in self._forked

    def close(self) -> None:
        for server in self._all():
            self._abandon(server)

    def give_up(self, life: Life) -> None:
        """End the fork server that owes this life a process: it hangs in its imports, or will never answer."""
        for server in self._all():
            if (server.pid, life.request) in self._waiting:
                self._abandon(server)

    def trust_again(self) -> None:
        """Try fork servers again that have failed: their cause may have been removed."""
        self._hopeless.clear()

    def _all(self) -> list[ForkServer]:
        return [*self._servers.values(), *self._retired]

    def _has_children(self, server: ForkServer) -> bool:
        return any(owner is server for owner, _ in self._forked.values()) or any(
            number == server.pid for number, _ in self._waiting
        )

    def _abandon(self, server: ForkServer) -> None:
        """The server is gone: so are its children (by their parent-death signal), and open requests fail."""
        server.close()
        if server in self._retired:
            self._retired.remove(server)
        for key in [key for key, owner in self._servers.items() if owner is server]:
            del self._servers[key]
            if not server.proven:
                self._hopeless.add(key)
        for waiting in [waiting for waiting in self._waiting if waiting[0] == server.pid]:
            life = self._waiting.pop(waiting)
            life.status = 9
            if life.intent is None:
                life.intent = (ExitKind.SIGNAL, "its fork server ended before it had started it")
        for pid in [pid for pid, (owner, _) in self._forked.items() if owner is server]:
            _, life = self._forked.pop(pid)
            life.kill(9)


def _pidfd(pid: int) -> int | None:
    """None where there is no descriptor left, or the process has gone already: then it is looked for in each turn."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:  # no descriptor is left: it is asked again in the next turn
        return True


def _key(spec: ProcessSpec) -> ServerKey:
    return (spec.python, tuple(sorted(spec.env.items())), spec.preload, spec.code_roots)


def _environment(spec: ProcessSpec) -> dict[str, Any]:
    own: dict[str, str] = {"PYTHONUNBUFFERED": "1"}
    if spec.memory.device is not None:
        # NVML counts GPUs by bus, CUDA by speed unless told otherwise: the gate and the process must agree.
        own["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return {**os.environ, **spec.env, **own}
