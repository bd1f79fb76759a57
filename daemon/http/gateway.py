"""The part of the daemon that speaks HTTP: its socket, its thread, its settings."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from prometheus_client import CollectorRegistry

from daemon.api.server import Listener
from daemon.http.app import make_app
from daemon.http.asking import Asker, Asking
from daemon.http.clip import Prepared
from daemon.http.connections import Connections
from daemon.http.guard import OPEN, Rules
from daemon.http.streams import Events
from daemon.settings.schema import ApiSettings, HttpSettings
from daemon.settings.sources import ConfigError
from daemon.telemetry import logs
from daemon.telemetry.metrics import is_loopback, split

STOP_WITHIN = 5.0
SHORTEST_TOKEN = 16
CONNECTIONS = 4
"""Connections for each request that may be in work: browsers hold some open."""


class ApiServer(Asker, Protocol):
    """The API's server, see `daemon.api.server.Server`."""

    def listen(self, heard: Listener) -> None: ...


class Gateway:
    """Answers HTTP in a thread of its own. Made before the API's server starts, started after it.

    Args:
        settings: the address, who may ask.
        api: its limits hold here too.
        server: does what is asked.
        registry: what ``/metrics`` shows.
        state: the daemon's folder, for what is made of results on request.
        options: of the backend.

    Raises:
        ConfigError: the address cannot be bound, or is open to the network and there is no token.
    """

    def __init__(
        self,
        settings: HttpSettings,
        api: ApiSettings,
        server: ApiServer,
        registry: CollectorRegistry,
        state: Path,
        options: Mapping[str, Any],
    ) -> None:
        host, port = split(settings.address, "http.address", "127.0.0.1:8787")
        token = read_token(settings)
        if not token and not is_loopback(host):
            raise ConfigError(
                f"http.address = {settings.address!r} can be reached from the network, which demands a token: write one"
                " into a file of your own (`openssl rand -hex 32 > FILE; chmod 600 FILE`) and set http.token to it;"
                " or use 127.0.0.1"
            )
        self._socket = _bind(settings.address, host, port)
        port = self._socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        """Where it answers, with the port that was taken."""
        hosts = frozenset(name.lower() for name in (host, *settings.hosts))
        rules = Rules(
            hosts,
            frozenset(settings.origins),
            token,
            lambda path: path in OPEN,
            settings.max_clients,
        )
        events = Events()
        server.listen(events.heard)
        connections = Connections(settings.max_clients * CONNECTIONS)
        prepared = Prepared(state / "views", options)
        most_image = api.max_message_mb << 20
        app = make_app(Asking(server), events, rules, registry, prepared, most_image, connections.cut)
        self._server = serving(app, connections)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        logs.get("http").info("http", address=self.address)

    def stop(self) -> None:
        """Answer no more. May be called twice."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(STOP_WITHIN)
            self._server.force_exit = True
            self._thread.join(STOP_WITHIN)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


def serving(app: Any, connections: Connections) -> uvicorn.Server:
    """uvicorn around an application, told nothing by the environment or by signals."""
    return uvicorn.Server(
        uvicorn.Config(
            app, http=connections.protocol(), ws="none", lifespan="off", loop="asyncio", log_config=None,
            access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=32 << 10,
        )
    )  # fmt: skip


def read_token(settings: HttpSettings) -> str:
    """The token of ``http.token``, or nothing.

    Raises:
        ConfigError: the file cannot be read, is open to others or holds no usable token.
    """
    if not settings.token:
        return ""
    path = Path(settings.token).expanduser()
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"http.token: {path} can be read by others: chmod 600 {path}")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"http.token: {path}: {error}: write one with `openssl rand -hex 32`") from error
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise ConfigError(f"http.token: {path}: a token has {SHORTEST_TOKEN} characters or more, and no blanks")
    return token


def _bind(address: str, host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(128)
    except OSError as error:
        with contextlib.suppress(OSError):
            found.close()
        raise ConfigError(
            f"http.address = {address!r}: {error.strerror or error}: another program may have this port"
            " (`ss -ltnp` shows which); take another one"
        ) from error
    return found
