"""What is known of a job in work: its phase, how far it is, and how fast."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from daemon.jobs import places
from daemon.jobs.store import StoredJob
from stages.owner.jobs import JobProgress

TELL_EVERY = 0.2
"""Seconds between two progress events of a job."""
RATE_OVER = 5.0
"""Seconds over which the rate is taken."""


@dataclass
class Running:
    """A job in work, from its preparation to its end."""

    job: StoredJob
    phase: str = "preparing"
    place: places.Place | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    content: tuple[str, Any] | None = None
    """What is computed: the hash of the input and its stream. Set once no other job computes the same."""
    future: Future[Any] | None = None
    owed: deque[Callable[[], None]] = field(default_factory=deque)
    """What the store has refused to be told, in order."""
    cancelled: bool = False
    total: int | None = None
    fps: float = 0.0
    last: JobProgress | None = None
    began: float = field(default_factory=time.monotonic)
    told: float = 0.0
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))

    def mark(self, event: JobProgress) -> bool:
        """Take in how far it is; True if somebody should be told."""
        now = time.monotonic()
        self.last = event
        self.marks.append((now, event.committed))
        while len(self.marks) > 2 and now - self.marks[0][0] > RATE_OVER:
            self.marks.popleft()
        if now - self.told < TELL_EVERY:
            return False
        self.told = now
        return True

    def progress(self) -> dict[str, Any]:
        """As docs/protocol.md says."""
        last = self.last or JobProgress(self.job.id, 0, 0, 0, 0)
        rate = 0.0
        if len(self.marks) > 1:
            (before, first), (after, latest) = self.marks[0], self.marks[-1]
            rate = (latest - first) / max(after - before, 1e-6)
        return {
            "phase": self.phase,
            "decoded": last.decoded,
            "detected": last.detected,
            "meshed": last.meshed,
            "committed": last.committed,
            "total": self.total,
            "rate": round(rate, 2),
            "seconds": round(time.monotonic() - self.began, 1),
        }
