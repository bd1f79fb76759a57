"""Is a daemon running, what does it say, is its code that on disk; and are its addresses free otherwise?"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.doctor.check import Context, Finding, error, note, ok, warning
from daemon.settings import addresses
from daemon.settings.sources import ConfigError
from supervisor.runtime import UNIX_PATH_MAX

ANSWER_SECONDS = 4.0
NOT_ASKED = "not asked"
SILENT = "somebody listens but says nothing"
NOBODY = "nobody listens"
LOOPBACK = ("127.", "localhost", "::1", "[::1]")


@dataclass(frozen=True)
class Health:
    """The running daemon's answer to ``health``; ``reason`` says why there is none."""

    address: str
    answer: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def running(self) -> bool:
        return bool(self.answer)

    def pids(self) -> set[int]:
        """The daemon's stage processes."""
        found = {process.get("pid") for process in self.answer.get("processes", {}).values()}
        return {pid for pid in found if isinstance(pid, int)}


def state_folder(context: Context) -> Path:
    """The folder of the job store, as the daemon finds it."""
    return addresses.state_folder(context.loaded.settings, context.machine.environ)


def configured(context: Context) -> dict[str, str]:
    """The addresses that a daemon with these settings uses, by setting: ``ipc://PATH`` or ``tcp://HOST:PORT``.

    Raises:
        ConfigError: one is none, is too long, or is open to the network without keys.
    """
    settings = context.loaded.settings
    api = addresses.addresses(settings.api, state_folder(context))
    found = {"api.address": api.requests, "api.events": api.events}
    if settings.metrics.address:
        found["metrics.address"] = f"tcp://{settings.metrics.address}"
    return found


def health(context: Context) -> Health:
    """Ask the daemon at the configured address; asked once."""
    return context.once("health", lambda: _ask(context))


def _ask(context: Context) -> Health:
    try:
        address = configured(context)["api.address"]
    except ConfigError as problem:
        return Health("api.address", reason=f"{NOT_ASKED}, its address is wrong ({problem})")
    if context.setting("api.key", ""):
        return Health(address, reason=f"{NOT_ASKED}, its address is encrypted (api.key)")
    if not _listens(address):
        return Health(address, reason=NOBODY)
    import msgpack
    import zmq

    with zmq.Context() as zeromq, zeromq.socket(zmq.DEALER) as asker:
        asker.linger = 0
        asker.connect(address.replace("*", "127.0.0.1"))
        asker.send(msgpack.packb({"v": 1, "id": 1, "op": "health"}))
        if not asker.poll(int(ANSWER_SECONDS * 1000)):
            return Health(address, reason=f"{SILENT} within {ANSWER_SECONDS:.0f} s")
        try:
            answer = msgpack.unpackb(asker.recv_multipart()[-1])
        except ValueError as problem:
            return Health(address, reason=f"what it answers is not Poseward's protocol ({problem})")
    if not isinstance(answer, dict) or not answer.get("ok"):
        return Health(address, reason=f"it refuses: {answer!r:.200}")
    return Health(address, answer)


def check_daemon(context: Context, check: str) -> Iterator[Finding]:
    """Whether a daemon answers, runs this version and the code on disk, and what it complains of itself."""
    from importlib.metadata import PackageNotFoundError, version

    found = health(context)
    if not found.running:
        if found.reason.startswith(SILENT):
            yield error(
                check,
                f"{found.address}: {found.reason}",
                "see its log; `systemctl restart poseward`, or end the process that holds the address",
            )
        elif found.reason == NOBODY:
            yield ok(check, f"no daemon is running ({found.address}: {found.reason})")
        elif found.reason.startswith(NOT_ASKED):
            yield note(check, f"{found.address}: {found.reason}", "poseward health, with this client's keys")
        else:
            yield warning(check, f"{found.address}: {found.reason}", "poseward health")
        return
    answer = found.answer
    trouble = False
    try:
        installed = version("poseward")
    except PackageNotFoundError:
        installed = ""
    running = str(answer.get("poseward", ""))
    if installed and running and installed != running:
        trouble = True
        yield warning(
            check, f"the daemon runs version {running}, installed is {installed}", "systemctl restart poseward"
        )
    stale = sorted(name for name, process in answer.get("processes", {}).items() if process.get("stale"))
    if stale:
        trouble = True
        yield warning(check, f"running other code than what is on disk now: {', '.join(stale)}", "poseward reload")
    for problem in answer.get("problems", ()):
        if str(problem).startswith(tuple(stale)) and "on disk" in str(problem):
            continue  # that is what the line above says
        trouble = True
        yield warning(check, f"the daemon says: {problem}", "poseward health")
    if not trouble:
        yield ok(check, f"a daemon answers at {found.address}, version {running}, with the code that is on disk")


def check_addresses(context: Context, check: str) -> Iterator[Finding]:
    """Each address is free or held by our daemon; Unix paths are short enough; nothing is open to the network."""
    try:
        found = configured(context)
    except ConfigError as problem:
        yield error(check, str(problem), "correct that setting: `poseward config show` says where it is set")
        return
    running = health(context).running
    for setting, address in found.items():
        kind, _, rest = address.partition("://")
        if kind == "ipc":
            yield _unix(check, setting, Path(rest), running)
        else:
            yield from _tcp(check, setting, rest, running)


def _unix(check: str, setting: str, path: Path, running: bool) -> Finding:
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        return error(check, f"{setting}: {path} is there and is no socket", f"remove {path}, or set {setting}")
    if not _listens(f"ipc://{path}"):
        return ok(check, f"{setting}: {path} is free")
    holder, ours = _holder(unix=str(path))
    if running or ours:
        return ok(check, f"{setting}: {path} is the running daemon's, {holder}")
    return error(
        check,
        f"{setting}: {path} is held by {holder}",
        f"end that process, or set {setting} to another path",
    )


def _tcp(check: str, setting: str, place: str, running: bool) -> Iterator[Finding]:
    host, _, text = place.rpartition(":")
    if not host or not text.isdecimal() or not 0 < int(text) < 65536:
        yield error(check, f"{setting}: {place} is not HOST:PORT", f"set {setting} to 127.0.0.1:9464 or the like")
        return
    port = int(text)
    if setting == "metrics.address" and not host.startswith(LOOPBACK):
        yield warning(
            check, f"{setting}: {place} can be reached from the network", f"set {setting} = 127.0.0.1:{port}"
        )
    problem = _bind(host.strip("[]"), port)
    if problem is None:
        yield ok(check, f"{setting}: {place} is free")
    elif problem == errno.EADDRINUSE:
        holder, ours = _holder(port=port)
        if running or ours:
            yield ok(check, f"{setting}: {place} is held by {holder}, while the daemon is running")
        else:
            yield error(
                check,
                f"{setting}: {place} is held by {holder}",
                f"end that process, or set {setting} to another port",
            )
    elif problem == errno.EACCES:
        yield error(check, f"{setting}: port {port} is only for root", f"set {setting} to a port above 1023")
    else:
        yield error(
            check,
            f"{setting}: {place}: {os.strerror(problem)}",
            f"{host} is no address of this machine (`ip addr` lists them): set {setting}",
        )


def _bind(host: str, port: int) -> int | None:
    """Try to listen; the error's number, or None if that works."""
    host = "0.0.0.0" if host == "*" else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1)
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as problem:
        return problem.errno or errno.EIO
    return None


def _listens(address: str) -> bool:
    """Whether somebody does: also who has no time to answer, or does not let us in."""
    kind, _, rest = address.partition("://")
    try:
        if kind == "ipc":
            if len(os.fsencode(rest)) > UNIX_PATH_MAX:
                return False
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
                asker.settimeout(1.0)
                try:
                    asker.connect(rest)
                except (BlockingIOError, TimeoutError, PermissionError):
                    return True
        else:
            host, _, port = rest.rpartition(":")
            with socket.create_connection((host.strip("[]").replace("*", "127.0.0.1"), int(port)), 1.0):
                pass
    except (OSError, ValueError):
        return False
    return True


def _holder(*, port: int = 0, unix: str = "") -> tuple[str, bool]:
    """Name and number of the process that listens there, as far as this user may know, and whether that is
    ``poseward serve``."""
    import psutil

    try:
        for connection in psutil.net_connections("unix" if unix else "tcp"):
            local: Any = connection.laddr
            if unix:
                held = local == unix
            else:
                held = connection.status == psutil.CONN_LISTEN and bool(local) and local.port == port
            if held and connection.pid:
                process = psutil.Process(connection.pid)
                words = process.cmdline()
                ours = "serve" in words and any("poseward" in word or "daemon.cli" in word for word in words)
                return f"{process.name()} ({connection.pid})", ours
    except (psutil.Error, OSError):
        pass
    return "a process of another user (`ss -lp` as root names it)", False
