"""The running record of memory: what each process held over the last minutes, and the most it ever held.

Plain data for whoever shows it. Bounded: it grows neither with time nor with restarts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EVERY = 2.0
"""Seconds between two samples."""
SPAN = 600.0
"""Seconds that samples are kept."""

Sample = tuple[float, int, int | None, int | None]
"""Monotonic seconds; resident bytes (0 while the process is down); bytes it holds on its GPU and bytes free there,
each None where it uses no GPU or the driver does not tell."""


@dataclass
class _Record:
    samples: deque[Sample]
    peak_rss: int = 0
    peak_device_used: int | None = None
    least_device_free: int | None = None


class MemoryHistory:
    """Samples of the memory of named processes.

    Args:
        clock: monotonic seconds.
        every, span: seconds between samples, and seconds that they are kept.
    """

    def __init__(self, clock: Callable[[], float], every: float = EVERY, span: float = SPAN) -> None:
        if not 0 < every <= span:
            raise ValueError(f"samples every {every:g} s, kept for {span:g} s: both above 0, and the span longer")
        self._clock = clock
        self._every = every
        self._span = span
        self._most = int(span / every) + 2
        self._due: float | None = None
        self._records: dict[str, _Record] = {}

    def due(self) -> bool:
        """Whether it is time for the next sample of all; true once for each time it is."""
        now = self._clock()
        if self._due is not None and now < self._due:
            return False
        # On a grid, so that turns that come a little late do not stretch the distance of samples.
        before = now if self._due is None else self._due
        self._due = before + self._every * (math.floor((now - before) / self._every) + 1)
        if self._due <= now:  # by rounding
            self._due += self._every
        return True

    def add(
        self, name: str, rss: int, peak_rss: int, device_used: int | None = None, device_free: int | None = None
    ) -> None:
        """Enter what a process holds now, in bytes; ``peak_rss`` is the highest that its present life has seen."""
        record = self._records.setdefault(name, _Record(deque(maxlen=self._most)))
        record.samples.append((self._clock(), rss, device_used, device_free))
        record.peak_rss = max(record.peak_rss, rss, peak_rss)
        if device_used is not None:
            record.peak_device_used = max(record.peak_device_used or 0, device_used)
        if device_free is not None:
            least = record.least_device_free
            record.least_device_free = device_free if least is None else min(least, device_free)

    def data(self) -> dict[str, Any]:
        """Everything, oldest sample first::

            {"now": s, "every": s, "span": s, "processes": {name: {
                "samples": [(s, rss, device_used, device_free), …],
                "peak_rss": bytes, "peak_device_used": bytes or None, "least_device_free": bytes or None}}}

        Times are monotonic seconds, to be held against ``now``; peaks are since the record began, over all lives.
        """
        now = self._clock()
        return {
            "now": now,
            "every": self._every,
            "span": self._span,
            "processes": {
                name: {
                    "samples": [sample for sample in record.samples if now - sample[0] <= self._span],
                    "peak_rss": record.peak_rss,
                    "peak_device_used": record.peak_device_used,
                    "least_device_free": record.least_device_free,
                }
                for name, record in self._records.items()
            },
        }
