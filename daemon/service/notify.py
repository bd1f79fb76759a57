"""The notification protocol of systemd (sd_notify(3)): a datagram of ``NAME=value`` lines to a Unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from daemon import logs


class Notifier:
    """Tells systemd how the daemon is. Without a socket every method does nothing; none ever raises.

    ``watchdog_interval`` is half of the time within which systemd wants to hear `watchdog`, in seconds, or None.
    """

    def __init__(self, address: str | None, watchdog_interval: float | None = None) -> None:
        self.watchdog_interval = watchdog_interval if address else None
        self._address = address
        self._failed = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """From ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``."""
        interval = None
        with contextlib.suppress(ValueError):
            mine = int(environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
            micro = int(environ.get("WATCHDOG_USEC", "0"))
            interval = micro / 2e6 if mine and micro > 0 else None
        return cls(environ.get("NOTIFY_SOCKET") or None, interval)

    def ready(self) -> None:
        """The daemon answers."""
        self._send(f"READY=1\nMAINPID={os.getpid()}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send("STATUS=" + text.replace("\n", " "))

    def watchdog(self) -> None:
        """The main loop moves."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send("RELOADING=1")

    def extend(self, seconds: float) -> None:
        """Ask for more time to start or stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1.0)
                sender.sendto(os.fsencode(text), address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                logs.get("service").warning("cannot tell systemd", socket=self._address, error=str(error))
