"""The sockets of the API: their limits, their keys, and replies kept for clients that are slow to read."""

from __future__ import annotations

import contextlib
import os
import re
import socket as socketlib
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from daemon.api.messages import ApiError
from daemon.settings.addresses import Addresses
from daemon.settings.schema import ApiSettings
from daemon.settings.sources import ConfigError
from daemon.telemetry import logs

OUTBOX_BYTES = 32 << 20
"""Replies kept for a client that does not read them; more are dropped, and it has to ask again."""
HIGH_WATER = 4
"""Messages that ZeroMQ queues for a client, or of it; they may be of megabytes."""
KEYS_EVERY = 5.0
"""Seconds between two looks at the folder of allowed keys."""


@dataclass
class Client:
    """What is known of one connection."""

    descriptor: int
    waiting: int = 0
    """Requests whose replies are not there yet."""
    outbox: deque[list[bytes]] = field(default_factory=deque)
    held: int = 0


class Sockets:
    """ROUTER, XPUB and the monitor that tells who has gone. Belongs to the server's thread once it runs.

    Raises:
        ConfigError: an address cannot be bound, a key file cannot be read or is open to others.
    """

    def __init__(self, where: Addresses, settings: ApiSettings) -> None:
        self.clients: dict[bytes, Client] = {}
        """Who has asked for something and is still connected."""
        self.gone: set[bytes] = set()
        """Who is not any more; whoever forgets them takes them out."""
        self._arrived = -1
        self.own = False
        """Whether the last request came over a Unix socket from a process of the daemon's own user (or of root)."""
        self._where = where
        self._settings = settings
        self._log = logs.get("api")
        self._context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._keys_due = 0.0
        self._keys_seen: object = None
        try:
            secret = self._secure(settings)
            self.router = self._socket(zmq.ROUTER, secret)
            self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self.monitor = self.router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self.events = self._socket(zmq.XPUB, secret)
            _bind(self.router, where.requests)
            _bind(self.events, where.events)
        except BaseException:
            self._stop_authenticator()
            self._context.destroy(linger=0)
            raise

    def close(self) -> None:
        """Replies under way get half a second."""
        self._stop_authenticator()
        self.router.disable_monitor()
        self.monitor.close(linger=0)
        self._context.destroy(linger=500)
        for address in (self._where.requests, self._where.events):
            if address.startswith("ipc://"):
                Path(address[6:]).unlink(missing_ok=True)

    def _stop_authenticator(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        """The next request: who it is from, and its parts; None if there is none."""
        try:
            frames = self.router.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        client = frames[0].bytes
        self._arrived = int(frames[0].get(zmq.SRCFD))
        self.own = self._where.requests.startswith("ipc://") and _is_own(frames[0])
        return client, [frame.bytes for frame in frames[1:]]

    def is_deaf(self, client: bytes) -> bool:
        """Whether a client has left so many replies unread that no work is done for it until it reads some."""
        known = self.clients.get(client)
        return known is not None and known.held > OUTBOX_BYTES // 2

    def admit(self, client: bytes) -> None:
        """Refuse whoever sent the last request, if that is one client too many.

        Raises:
            ApiError: ``too-many-clients``.
        """
        known = self.clients.get(client)
        if known is not None and known.descriptor == self._arrived:
            return
        self.part()  # before a descriptor is noted that one who has gone has had: it would go with him
        if len(self.clients) >= self._settings.max_clients:
            raise ApiError(
                "too-many-clients",
                f"{len(self.clients)} clients are connected, as many as api.max_clients allows: close some,"
                " or raise it",
            )
        self.clients[client] = Client(self._arrived)

    def send(self, client: bytes, parts: list[bytes]) -> None:
        """Send a reply, or keep it while the client does not read."""
        known = self.clients.get(client)
        if known is None or not known.outbox:
            try:
                self.router.send_multipart([client, *parts], zmq.NOBLOCK)
                return
            except zmq.Again:
                pass
            except zmq.ZMQError:
                self._part_with(client)
                return
        if known is None:
            return
        size = sum(map(len, parts))
        if known.held + size > OUTBOX_BYTES:
            self._log.warning("reply dropped", client=client.hex(), held=known.held)
            return
        known.outbox.append(parts)
        known.held += size

    @property
    def holds(self) -> bool:
        """Whether anything is kept."""
        return any(known.outbox for known in self.clients.values())

    def send_held(self) -> None:
        """Send what is kept, as far as clients take it."""
        for client, known in list(self.clients.items()):
            while known.outbox:
                try:
                    self.router.send_multipart([client, *known.outbox[0]], zmq.NOBLOCK)
                except zmq.Again:
                    break
                except zmq.ZMQError:
                    self._part_with(client)
                    break
                known.held -= sum(map(len, known.outbox.popleft()))

    def part(self) -> None:
        """Forget those who have gone."""
        gone = set()
        with contextlib.suppress(zmq.Again):
            while True:
                gone.add(recv_monitor_message(self.monitor, zmq.NOBLOCK)["value"])
        for client in [name for name, known in self.clients.items() if known.descriptor in gone]:
            self._part_with(client)

    def _part_with(self, client: bytes) -> None:
        if self.clients.pop(client, None) is not None:
            self.gone.add(client)

    def _socket(self, kind: int, secret: tuple[bytes, bytes] | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, self._settings.max_message_mb << 20)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER if kind == zmq.ROUTER else 1000)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)  # who connects and says nothing is let go
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20000)
        if secret is not None:
            socket.curve_publickey, socket.curve_secretkey = secret
            socket.curve_server = True
        return socket

    def _secure(self, settings: ApiSettings) -> tuple[bytes, bytes] | None:
        if not settings.key:
            return None
        path = Path(settings.key).expanduser()
        folder = Path(settings.allow).expanduser()
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"api.key: {path} can be read by others: chmod 600 {path}")
            public, secret = zmq.auth.load_certificate(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"api.key: {path}: {error}: make one with `poseward keys new daemon`") from error
        if secret is None:
            raise ConfigError(f"api.key: {path} holds a public key only: name the .key_secret file")
        if not settings.allow or not folder.is_dir():
            raise ConfigError(f"api.allow = {settings.allow!r}: set it to a folder with the clients' .key files")
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self.read_keys()
        return public, secret

    def read_keys(self) -> None:
        """Keys that were added or removed count without a restart."""
        if self._authenticator is None or time.monotonic() < self._keys_due:
            return
        self._keys_due = time.monotonic() + KEYS_EVERY
        folder = Path(self._settings.allow).expanduser()
        with contextlib.suppress(OSError):
            seen = sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("*.key"))
            if seen != self._keys_seen:
                self._keys_seen = seen
                self._authenticator.configure_curve(domain="*", location=str(folder))


def _is_own(frame: zmq.Frame) -> bool:
    """Whether who sent it has the rights of this process. ZeroMQ noted what the kernel says of the other side (its
    SO_PEERCRED, as ``:uid:gid:pid``) when it connected; where it has not, nobody is trusted."""
    try:
        noted = str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return False
    match = re.fullmatch(r"[^:]*:(\d+):\d+:\d+", noted)
    return match is not None and int(match[1]) in (0, os.geteuid())


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    before = os.umask(0o177)  # a Unix socket is its owner's alone from its first moment on
    try:
        if address.startswith("ipc://"):
            path = Path(address[6:])
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_answered(path):  # ZeroMQ would take it away from its owner without a word
                raise ConfigError(f"{address} is answered by another daemon: stop that one, or set api.address")
        socket.bind(address)
    except (zmq.ZMQError, OSError) as error:
        raise ConfigError(f"{address}: cannot be bound: {error}; set api.address to another") from error
    finally:
        os.umask(before)


def _is_answered(path: Path) -> bool:
    with contextlib.suppress(OSError), socketlib.socket(socketlib.AF_UNIX) as probe:
        probe.settimeout(1.0)
        probe.connect(str(path))
        return True
    return False
