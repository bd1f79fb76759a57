"""How the commands for a running daemon find it, and how they say what went wrong."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from daemon.cli.options import configured
from daemon.settings.loading import Loaded

PATIENCE = 4.0
"""Seconds that a command waits for a first answer: a person sits before it."""
LONG_PATIENCE = 600.0
"""Seconds without an answer that a command which follows jobs puts up with: the daemon may be restarting."""
LISTEN_SECONDS = 2.0
"""Seconds that a Unix socket may be without a listener before it is given up."""
REFUSED, UNDER_WAY = 2, 130
WILDCARDS = ("*", "0.0.0.0", "[::]")


@dataclass(frozen=True)
class Connection:
    """Where the daemon is, and with which keys it is spoken to."""

    address: str
    key: str | None
    server_key: str | None
    demands_keys: bool
    """Whether the configuration says that the daemon hears only clients with a key."""
    events: str | None = None
    """Where its events are; None asks it."""

    def hearing(self, hello: Mapping[str, Any]) -> Connection:
        """With the address of the events that the daemon gave; one bound to every address is at this one's host."""
        events = str(hello["events"])
        scheme, _, place = events.partition("://")
        host, _, port = place.rpartition(":")
        if scheme == "tcp" and host in WILDCARDS:
            events = f"{self.address.rpartition(':')[0]}:{port}"
        return replace(self, events=self.events or events)

    def client(self, patience: float | None = None) -> Any:
        """A `daemon.client.Client`; without ``patience``, that of a person.

        Raises:
            ClientError: nobody listens, or a key cannot be used.
        """
        from daemon.client import Client

        return self._made(Client, patience)

    def async_client(self, patience: float | None = None, *, probe: bool = True) -> Any:
        """A `daemon.client.AsyncClient`; without ``probe`` a daemon that is not there yet is no error."""
        from daemon.client import AsyncClient

        return self._made(AsyncClient, patience, probe=probe)

    def _made(self, kind: Callable[..., Any], patience: float | None, probe: bool = True) -> Any:
        from daemon.client import ClientError

        if probe:
            self._probe()
        patience = PATIENCE if patience is None else patience
        try:
            return kind(
                self.address, events=self.events, patience=patience, key=self.key, server_key=self.server_key
            )
        except (OSError, ValueError) as error:
            raise ClientError("bad-key", f"{error}: `poseward keys new NAME` makes a pair") from error

    def _probe(self) -> None:
        """Say at once that nobody listens at a Unix socket."""
        from daemon.client import ClientError

        if not self.address.startswith("ipc://"):
            return
        path, until = self.address[6:], time.monotonic() + LISTEN_SECONDS
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.settimeout(LISTEN_SECONDS)
                    probe.connect(path)
                return
            except PermissionError as error:
                raise ClientError(
                    "not-allowed", f"{path} belongs to another user: run this as the daemon's user"
                ) from error
            except OSError as error:
                if time.monotonic() > until or isinstance(error, FileNotFoundError):
                    raise ClientError("no-daemon", f"nobody listens at {self.address}: {START}") from error
                time.sleep(0.1)


START = (
    "start it with `poseward serve` (or `systemctl start poseward`), or name its address with --address or"
    " api.address"
)


def connected(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--address``, ``--key``, ``--server-key``, ``--config`` and ``--set``; the command gets a `Connection`.

    Refusals and a daemon that does not answer become one line and exit code 2.
    """

    @click.option(
        "--address", metavar="ADDRESS", envvar="POSEWARD_ADDRESS",
        help="The daemon's, ipc://PATH or tcp://HOST:PORT [default: api.address of the configuration].",
    )  # fmt: skip
    @click.option(
        "--key", metavar="FILE", envvar="POSEWARD_CLIENT_KEY",
        help="Your secret key (NAME.key_secret), for a daemon with api.key.",
    )  # fmt: skip
    @click.option(
        "--server-key", metavar="FILE", envvar="POSEWARD_SERVER_KEY", help="The daemon's public key (NAME.key)."
    )
    @configured
    @wraps(command)
    def with_connection(
        *args: Any, address: str | None, key: str | None, server_key: str | None, loaded: Loaded, **rest: Any
    ) -> Any:
        import zmq

        from daemon.client import ClientError

        connection = _connection(loaded, address, key, server_key)
        try:
            return command(*args, connection=connection, **rest)
        except ClientError as error:
            fail(error, connection)
        except zmq.ZMQError as error:
            text = f"{connection.address}: {error.strerror}: write ipc:///PATH or tcp://HOST:PORT"
            fail(ClientError("bad-address", text), connection)
        sys.exit(REFUSED)

    return with_connection


def _connection(loaded: Loaded, address: str | None, key: str | None, server_key: str | None) -> Connection:
    from daemon.settings.addresses import addresses, state_folder

    api = loaded.settings.api
    if address is None:
        found = addresses(api, state_folder(loaded.settings))
        connection = Connection(found.requests, key, server_key, bool(api.key))
        if api.key and key and not server_key:
            connection = replace(connection, server_key=str(Path(api.key).expanduser()))
    else:
        if not address.startswith(("ipc://", "tcp://")):
            address = f"ipc://{address}" if address.startswith("/") else f"tcp://{address}"
        connection = Connection(address, key, server_key, False)
    host, _, port = connection.address.removeprefix("tcp://").rpartition(":")
    return replace(connection, address=f"tcp://127.0.0.1:{port}") if host in WILDCARDS else connection


def fail(error: Any, connection: Connection) -> None:
    """One line on stderr: the error's name and the way out."""
    message = error.message
    if error.name == "timeout":
        message = f"no answer from {connection.address}: {START}"
        if connection.key:
            message += (
                "; it is also silent to a client whose public key is not in its api.allow, or that has the wrong"
                " --server-key"
            )
        elif connection.demands_keys:
            message += "; it hears only clients with a key (api.key is set): give --key and --server-key"
        elif connection.address.startswith("tcp://"):
            message += "; if it has api.key, give --key and --server-key"
    click.echo(f"poseward: {error.name}: {message}", err=True)


def print_json(value: Any) -> None:
    """For programs, on stdout; arrays become lists."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=plain))


def plain(value: Any) -> Any:
    """What JSON does not know."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def console(*, stderr: bool = False) -> Any:
    """Where tables and bars go; file names are never taken for markup."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)
