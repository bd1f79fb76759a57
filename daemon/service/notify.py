"""Telling systemd how the daemon fares: the datagrams of sd_notify(3).

Each message is one datagram of ``KEY=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names. Nothing here
raises into the daemon, and nothing blocks its loop: a message that cannot be sent is not worth a job.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

from daemon.telemetry import logs

LONGEST_STATUS = 500
"""Characters of a STATUS line; what `systemctl status` shows of it is one line."""
PATIENCE = 2.0
"""Seconds to wait for room in the socket for what systemd must get: READY, STOPPING, RELOADING."""


class Notifier:
    """Sends what systemd wants to know; does nothing where there is no socket.

    Args:
        address: the socket as in NOTIFY_SOCKET, an absolute path or ``@`` and an abstract name; None: say nothing.
        watchdog_interval: seconds between two pings, or None.
        warn: called once, with a line of text, when a message cannot be sent.

    Attributes:
        watchdog_interval: seconds between two pings, half of what systemd tolerates; None where it wants none.
    """

    def __init__(
        self,
        address: str | None,
        watchdog_interval: float | None = None,
        *,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.watchdog_interval = watchdog_interval
        self._warn: Callable[[str], None] | None = warn or _log
        self._socket: socket.socket | None = None
        self._address = ""
        if not address:
            return
        if address[0] not in "/@":
            self._fail(f"NOTIFY_SOCKET is {address!r}, neither a path nor an abstract name: systemd is not told")
            self.watchdog_interval = None
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._fail(f"no socket to tell systemd: {error}")

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, warn: Callable[[str], None] | None = None
    ) -> Notifier:
        """The notifier that NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID ask for."""
        address = environ.get("NOTIFY_SOCKET") or None
        return cls(address, _watchdog_interval(environ) if address else None, warn=warn)

    def ready(self) -> None:
        """The API answers. Also ends `reloading`."""
        self._send(PATIENCE, "READY=1", f"MAINPID={os.getpid()}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(0.0, f"STATUS={' '.join(text.split())[:LONGEST_STATUS]}")

    def watchdog(self) -> None:
        """The main loop moves."""
        self._send(0.0, "WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon ends by itself or because it was told to."""
        self._send(PATIENCE, "STOPPING=1")

    def reloading(self) -> None:
        """The configuration is read again; `ready` says when that is done."""
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        self._send(PATIENCE, "RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}")

    def extend(self, seconds: float) -> None:
        """Starting or stopping takes at least this much longer, counted from now; to be said again and again."""
        self._send(0.0, f"EXTEND_TIMEOUT_USEC={max(1, int(seconds * 1e6))}")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, patience: float, *lines: str) -> None:
        if self._socket is None:
            return
        message = "\n".join(lines).encode(errors="replace")
        try:
            self._socket.settimeout(patience)
            self._socket.sendto(message, self._address)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            # A full socket: systemd is slow. The next status or ping comes soon; only what comes once matters.
            if not isinstance(error, BlockingIOError):
                self._fail(f"systemd could not be told {lines[0]!r}: {error}")

    def _fail(self, text: str) -> None:
        if self._warn is not None:
            with contextlib.suppress(Exception):
                self._warn(text)
        self._warn = None


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC in seconds, unless it is meant for another process (sd_watchdog_enabled(3))."""
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
        meant = int(environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return microseconds / 2e6 if microseconds > 0 and meant == os.getpid() else None


def _log(text: str) -> None:
    logs.get("service").warning("notify", message=text)
