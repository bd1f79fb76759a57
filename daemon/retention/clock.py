"""A clock for removing things: the system's, as long as it can be believed.

A machine that slept under WSL, or whose battery is dead, may be years ahead for some minutes. By such a clock
everything is old.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from daemon.jobs import summary

DAY = 86400.0
PAUSE = 7 * DAY
"""A daemon that was off for less is nothing to wonder at."""
HELD = 1 * DAY
"""For so long a clock that has jumped further must go on from there before it is believed."""
KEPT_EVERY = 300.0
FILE = "clock.json"


class CredibleClock:
    """Seconds since 1970: the system's, but while that is in doubt the last time that was not.

    Args:
        file: where the last believed time is kept over restarts.
        newest: the last time known otherwise, for where there is no such file yet; 0 if there is none.
        clock: the system's.
        keep: whether ``file`` is written.
    """

    def __init__(
        self, file: Path, newest: float = 0.0, *, clock: Callable[[], float] = time.time, keep: bool = True
    ) -> None:
        self._file = file
        self._clock = clock
        self._keep = keep
        now = clock()
        self._believed = newest if 0 < newest < now else now
        self._since: float | None = None
        """The first time seen that was in doubt, and the last."""
        self._last = now
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads(file.read_text())
            since = found["since"]
            self._believed, self._last = float(found["believed"]), float(found["last"])
            self._since = None if since is None else float(since)
        self._kept = (0.0, self._since)

    def __call__(self) -> float:
        now = self._clock()
        if now <= self._believed + PAUSE:
            # Also where it has gone back: then things are younger than they are, and stay.
            self._since, self._last, self._believed = None, now, max(self._believed, now)
        else:
            if self._since is None or not 0 <= now - self._last <= PAUSE:
                self._since = now
            self._last = now
            if now - self._since >= HELD:
                self._since, self._believed = None, now
        self._write(now)
        return now if self._since is None else self._believed

    @property
    def doubt(self) -> str | None:
        """Why the system's clock is not believed, for a person; None where it is."""
        if self._since is None:
            return None
        days = (self._since - self._believed) / DAY
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(self._since + HELD))
        return (
            f"the clock went {days:.0f} days ahead at once: until it has gone on for a day from there, to {until},"
            " nothing is removed for being old; if it is wrong, set it"
        )

    def _write(self, now: float) -> None:
        if not self._keep or (abs(now - self._kept[0]) < KEPT_EVERY and self._kept[1] == self._since):
            return
        self._kept = (now, self._since)
        with contextlib.suppress(OSError):
            known = {"believed": self._believed, "since": self._since, "last": self._last}
            summary.write_json(self._file, known)
