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

from daemon.doctor.check import Context, Finding, error, ok, warning
from supervisor.runtime import UNIX_PATH_MAX

ANSWER_SECONDS = 4.0
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
    """``daemon.state``, ``$STATE_DIRECTORY`` or ``~/.local/state/poseward``."""
    named = context.setting("daemon.state", "") or context.machine.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(named).expanduser() if named else Path("~/.local/state/poseward").expanduser()


def addresses(context: Context) -> dict[str, str]:
    """The addresses that a daemon with these settings uses, by setting: ``ipc://PATH`` or ``tcp://HOST:PORT``."""
    found = {"api.address": context.setting("api.address", "") or f"ipc://{state_folder(context)}/api.sock"}
    events = context.setting("api.events", "")
    main = found["api.address"]
    if not events and main.startswith("ipc://"):
        events = f"ipc://{Path(main[6:]).parent}/events.sock"
    elif not events and main.rpartition(":")[2].isdecimal():
        host, _, port = main.rpartition(":")
        events = f"{host}:{int(port) + 1}"
    found["api.events"] = events
    if metrics := context.setting("metrics.address", ""):
        found["metrics.address"] = f"tcp://{metrics}"
    return {setting: address for setting, address in found.items() if address}


def health(context: Context) -> Health:
    """Ask the daemon at the configured address; asked once."""
    return context.once("health", lambda: _ask(context))


def _ask(context: Context) -> Health:
    address = addresses(context)["api.address"]
    if context.setting("api.key", ""):
        return Health(address, reason="its address is encrypted (api.key): ask with `poseward health`")
    if not _listens(address):
        return Health(address, reason="nobody listens")
    import msgpack
    import zmq

    with zmq.Context() as zeromq, zeromq.socket(zmq.DEALER) as asker:
        asker.linger = 0
        asker.connect(address.replace("*", "127.0.0.1"))
        asker.send(msgpack.packb({"v": 1, "id": 1, "op": "health"}))
        if not asker.poll(int(ANSWER_SECONDS * 1000)):
            return Health(address, reason=f"somebody listens but says nothing within {ANSWER_SECONDS:.0f} s")
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
        if found.reason.startswith("somebody"):
            yield error(
                check,
                f"{found.address}: {found.reason}",
                "see its log; `systemctl restart poseward`, or end the process that holds the address",
            )
        elif found.reason == "nobody listens":
            yield ok(check, f"no daemon is running ({found.address}: {found.reason})")
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
        trouble = True
        yield warning(check, f"the daemon says: {problem}", "poseward health")
    if not trouble:
        yield ok(check, f"a daemon answers at {found.address}, version {running}, with the code that is on disk")


def check_addresses(context: Context, check: str) -> Iterator[Finding]:
    """Each address is free or held by our daemon; Unix paths are short enough; nothing is open to the network."""
    running = health(context).running
    for setting, address in addresses(context).items():
        kind, _, rest = address.partition("://")
        if kind == "ipc":
            yield _unix(check, setting, Path(rest), running)
        elif kind == "tcp":
            yield from _tcp(context, check, setting, rest, running)
        else:
            yield error(
                check, f"{setting} = {address!r} is no address", f"set {setting} to ipc://PATH or tcp://HOST:PORT"
            )


def _unix(check: str, setting: str, path: Path, running: bool) -> Finding:
    length = len(os.fsencode(path))
    if length > UNIX_PATH_MAX:
        return error(
            check,
            f"{setting}: {path} has {length} bytes, a Unix socket's path ends at {UNIX_PATH_MAX}",
            f"set {setting} = ipc://SHORTER/PATH, or daemon.state to a shorter folder",
        )
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        return error(check, f"{setting}: {path} is there and is no socket", f"remove {path}, or set {setting}")
    if not _listens(f"ipc://{path}"):
        return ok(check, f"{setting}: {path} is free")
    if running:
        return ok(check, f"{setting}: {path} is the running daemon's")
    return error(
        check,
        f"{setting}: {path} is held by {_holder(unix=str(path))}",
        f"end that process, or set {setting} to another path",
    )


def _tcp(context: Context, check: str, setting: str, place: str, running: bool) -> Iterator[Finding]:
    host, _, text = place.rpartition(":")
    if not host or not text.isdecimal() or not 0 < int(text) < 65536:
        yield error(check, f"{setting}: {place} is not HOST:PORT", f"set {setting} to 127.0.0.1:9464 or the like")
        return
    port = int(text)
    if not host.startswith(LOOPBACK) and (setting.startswith("metrics") or not context.setting("api.key", "")):
        keys = "" if setting.startswith("metrics") else ", or make keys (`poseward keys new`) and set api.key"
        yield warning(
            check, f"{setting}: {place} can be reached from the network", f"set its host to 127.0.0.1{keys}"
        )
    problem = _bind(host.strip("[]"), port)
    if problem is None:
        yield ok(check, f"{setting}: {place} is free")
    elif problem == errno.EADDRINUSE and running:
        yield ok(check, f"{setting}: {place} is held by {_holder(port=port)}, while the daemon is running")
    elif problem == errno.EADDRINUSE:
        yield error(
            check,
            f"{setting}: {place} is held by {_holder(port=port)}",
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
    kind, _, rest = address.partition("://")
    try:
        if kind == "ipc":
            if len(os.fsencode(rest)) > UNIX_PATH_MAX:
                return False
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
                asker.settimeout(1.0)
                asker.connect(rest)
        else:
            host, _, port = rest.rpartition(":")
            with socket.create_connection((host.strip("[]").replace("*", "127.0.0.1"), int(port)), 1.0):
                pass
    except (OSError, ValueError):
        return False
    return True


def _holder(*, port: int = 0, unix: str = "") -> str:
    """Name and number of the process that listens there, as far as this user may know."""
    import psutil

    try:
        for connection in psutil.net_connections("unix" if unix else "tcp"):
            local: Any = connection.laddr
            if unix:
                held = local == unix
            else:
                held = connection.status == psutil.CONN_LISTEN and bool(local) and local.port == port
            if held and connection.pid:
                return f"{psutil.Process(connection.pid).name()} ({connection.pid})"
    except (psutil.Error, OSError):
        pass
    return "a process of another user (`ss -lp` as root names it)"
