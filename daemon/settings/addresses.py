"""Where the daemon keeps its state and where it answers: the same for the daemon and for those who look for it."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from daemon.settings.schema import ApiSettings, Settings
from daemon.settings.sources import ConfigError

UNIX_PATH_MAX = 107


@dataclass(frozen=True)
class Addresses:
    """ZeroMQ addresses of requests and of events. ``public``: others on the network can reach them."""

    requests: str
    events: str
    public: bool


def state_folder(settings: Settings, environ: Mapping[str, str] | None = None) -> Path:
    """The folder of the job store, absolute; not made here."""
    environ = os.environ if environ is None else environ
    if settings.daemon.state:
        return Path(settings.daemon.state).expanduser().absolute()
    if given := environ.get("STATE_DIRECTORY"):  # systemd's, first of several
        return Path(given.split(":")[0])
    if base := environ.get("XDG_STATE_HOME"):
        return Path(base) / "poseward"
    return platformdirs.user_state_path("poseward")


def take_state(settings: Settings, stack: contextlib.ExitStack) -> Path:
    """Make the state folder and lock it for this daemon, until ``stack`` is closed.

    Raises:
        ConfigError: it cannot be written, or another daemon has it.
    """
    state = state_folder(settings)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)  # names of files are nobody else's business
        lock = os.open(state / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"daemon.state: {state}: {error.strerror}; set it to a folder you can write") from error
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"daemon.state: another daemon works in {state}: stop it, or set daemon.state to another folder"
        ) from error
    return state


def addresses(api: ApiSettings, state: Path) -> Addresses:
    """The two addresses of a configuration.

    Raises:
        ConfigError: one is no address, its path is too long for a Unix socket, or it is open to the network and
            there are no keys.
    """
    requests = api.address or f"ipc://{state / 'api.sock'}"
    events = api.events or _beside(requests)
    public = any(_check(key, address) for key, address in (("api.address", requests), ("api.events", events)))
    if public and not (api.key and api.allow):
        raise ConfigError(
            f"api.address = {requests!r} can be reached from the network, which demands keys:"
            " `poseward keys new daemon`, then set api.key to its secret key file and api.allow to a folder with the"
            " clients' public keys; or"
            " use tcp://127.0.0.1:PORT"
        )
    return Addresses(requests, events, public)


def _beside(requests: str) -> str:
    if requests.startswith("ipc://"):
        return f"ipc://{Path(requests[6:]).with_name('events.sock')}"
    host, _, port = requests.rpartition(":")
    return f"{host}:{int(port) + 1}" if port.isdecimal() else requests


def _check(key: str, address: str) -> bool:
    """Whether an address is open to the network."""
    if address.startswith("ipc://"):
        path = address[6:]
        if not path.startswith("/"):
            raise ConfigError(f"{key} = {address!r}: write an absolute path: ipc:///run/poseward/api.sock")
        if len(os.fsencode(path)) > UNIX_PATH_MAX:
            raise ConfigError(
                f"{key} = {address!r}: {len(os.fsencode(path))} bytes; a Unix socket's path ends at {UNIX_PATH_MAX}:"
                " set api.address to a shorter one, or daemon.state to a folder with a shorter path"
            )
        return False
    match = re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[^:\[\]/\s]+):(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"{key} = {address!r}: write ipc:///PATH or tcp://HOST:PORT with a port from 1 to 65535")
    host = match[1].strip("[]")
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
