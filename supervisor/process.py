"""One supervised process: its descriptors, its clocks, its state, and how it is brought down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections import deque
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from supervisor.events import ExitKind, ExitReport
from supervisor.exits import classify, oom_kills
from supervisor.fingerprint import is_stale
from supervisor.policy import RestartTracker
from supervisor.recorder import FlightRecorder
from supervisor.spec import Deadlines, ProcessSpec

TAIL_LINES = 50
DUMP_SECONDS = 0.3
"""Time that a stack dump gets before SIGTERM follows."""
MOST_OUTPUT = 1 << 20
"""Bytes taken from one child in one turn: a child that never stops writing must not hold up the others."""
STALE_EVERY = 2.0
"""Seconds between looks at the source files on disk."""


@dataclass(frozen=True)
class ChildState:
    """A process as `Supervisor.states` shows it; ages and times in seconds, memory in bytes."""

    name: str
    pid: int | None
    phase: str
    """stopped, waiting (for a restart or for memory), starting, importing, loading, warming, working, failed"""
    detail: str
    fraction: float | None
    alive_age: float
    busy_seconds: float
    restarts: int
    rss: int
    circuit_open: bool
    stale: bool
    fingerprint: str
    metrics: dict[str, float] = field(default_factory=dict)
    last_exit: ExitReport | None = None
    peak_rss: int = 0
    """Largest resident size of this life."""
    device_used: int | None = None
    """What it holds on its GPU; None where it uses none or the driver does not tell."""
    device_free: int | None = None


class Life:
    """One life of a process, from its start to its end."""

    def __init__(self, now: float, stderr_fd: int, stack_fd: int, report_fd: int) -> None:
        self.request: int | None = None
        """Number of the request to a fork server that has not answered yet."""
        self.pid: int | None = None
        self.pidfd: int | None = None
        self.status: int | None = None
        self.started = now
        self.ready_at: float | None = None
        self.last_beat = now
        self.gone_since: float | None = None
        """When it was first found dead, though nobody has reported its status."""
        self.late = 0.0
        self.forgiven = 0.0
        """Seconds of ``late`` in which the supervisor itself did not run."""
        self.busy = True
        self.rss = 0
        self.peak_rss = 0
        self.device_used: int | None = None
        self.preloaded = False
        self.noted = False
        """The janitor knows its process group."""
        self.stale = False
        self.stale_seen = now
        self.phase = "starting"
        self.detail = ""
        self.fraction: float | None = None
        self.identity: bytes | None = None
        self.fingerprint: dict[str, str] = {}
        self.metrics: dict[str, float] = {}
        self.stderr_fd = stderr_fd
        self.silent = False
        """Nobody holds the other end of its output any more."""
        self.stack_fd = stack_fd
        self.report_fd = report_fd
        self.partial = b""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.intent: tuple[ExitKind, str] | None = None
        self.hung_in: dict[str, Any] | None = None
        """What a hung one was doing when it was found out: the way down may wake it, and clear the record."""
        self.steps: list[tuple[float, int]] = []
        """Signals still to be sent: (when, which), in order."""
        self.killed_at: float | None = None
        """When the last of them was sent."""
        self.oom_kills = oom_kills()

    def is_of(self, pid: int, former: int | None) -> bool:
        """Whether a message's sender is this life; ``former`` is the number of the one before it. While the fork
        server has not answered yet, anybody but that one is."""
        return pid != former if self.pid is None else pid == self.pid

    def may_be_over(self, ready: Set[object]) -> bool:
        """Whether it has to be asked if this life has ended; ``ready`` are the descriptors that can be read."""
        return self.pidfd is None or self.pidfd in ready or self.status is not None or self.gone_since is not None

    def bring_down(self, now: float, kind: ExitKind, reason: str, deadlines: Deadlines, *, dump: bool) -> None:
        """Begin the end: stack dump (for a hung one), SIGTERM, SIGKILL."""
        if self.intent is not None:
            return  # even after the last signal: what woke it must not change why it had to go
        self.intent = (kind, reason)
        term = now + DUMP_SECONDS if dump else now
        self.steps = [(term, signal.SIGTERM), (term + deadlines.grace, signal.SIGKILL)]
        if dump:
            self.steps.insert(0, (now, signal.SIGUSR1))

    def take_steps(self, now: float) -> None:
        """Send the signals that are due."""
        while self.steps and self.steps[0][0] <= now and self.pid is not None:
            _, number = self.steps.pop(0)
            self.kill(number)
            self.killed_at = now if number == signal.SIGKILL else None

    def kill(self, number: int) -> None:
        """Send a signal; SIGKILL goes to the whole process group, so that no grandchild stays."""
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)
        if self.status is not None:
            return  # reaped: the number may be another process's by now; a group's number never is
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def overdue(self, now: float, deadlines: Deadlines) -> str | None:
        """What deadline has been missed, for a person; None if none."""
        silence = now - self.last_beat
        allowed, setting = deadlines.heartbeat, "heartbeat"
        if self.phase in ("starting", "importing", "loading") and allowed < deadlines.importing:
            # Imports hold the interpreter's lock while the loader reads gigabytes from a cold disk.
            allowed, setting = deadlines.importing, "importing"
        if self.identity is not None and silence > allowed:
            return f"no heartbeat for {silence:.1f} s (phase {self.phase}, deadlines.{setting})"
        limit = {
            "starting": deadlines.importing, "importing": deadlines.importing,
            "loading": deadlines.loading, "warming": deadlines.warming,
        }.get(self.phase, deadlines.working)  # fmt: skip
        still = self.late - self.forgiven if self.identity is not None else silence
        if self.busy and still > limit:
            return f"no progress for {still:.1f} s (phase {self.phase}, deadlines.{self.phase})"
        return None

    def read_lines(self) -> list[str]:
        """The whole lines that have come over stderr and stdout."""
        chunks = [self.partial]
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while not self.silent and taken < MOST_OUTPUT:
                chunk = os.read(self.stderr_fd, 65536)
                self.silent = not chunk
                taken += len(chunk)
                chunks.append(chunk)
        *whole, self.partial = b"".join(chunks).split(b"\n")
        self.partial = self.partial[-8192:]
        lines = [line.decode(errors="replace") for line in whole]
        self.tail.extend(lines)
        return lines

    def report(self, pid: int, activity: dict[str, Any] | None, now: float) -> ExitReport:
        """Classify the end of this life and give its descriptors back."""
        if self.partial:
            self.tail.append(self.partial.decode(errors="replace"))
        found = classify(
            pid=pid,
            status=self.status,
            phase=self.phase,
            activity=activity,
            report=_contents(self.report_fd),
            stack_dump=_contents(self.stack_fd).decode(errors="replace"),
            stderr_tail=tuple(self.tail),
            lifetime=now - self.started,
            intent=self.intent,
            kernel_oom=oom_kills() > self.oom_kills,
        )
        for fd in (self.stderr_fd, self.stack_fd, self.report_fd, self.pidfd):
            if fd is not None:
                os.close(fd)
        return found


class Managed:
    """One spec with everything that outlives a single life."""

    def __init__(self, spec: ProcessSpec, tracker: RestartTracker) -> None:
        self.spec = spec
        self.tracker = tracker
        self.recorder = FlightRecorder.create()
        self.life: Life | None = None
        self.due: float | None = None
        """When to start (again); None while it lives, or stays down."""
        self.failed = False
        self.restarts = 0
        self.last_exit: ExitReport | None = None
        self.gate_told = 0.0
        self.lacks_memory = ""
        """What the start is waiting for, for a person."""
        self.device_free: int | None = None
        self.last_pid: int | None = None

    def state(self, now: float) -> ChildState:
        life = self.life
        if life is None:
            phase = "failed" if self.failed else "waiting" if self.due is not None else "stopped"
            detail = self.lacks_memory or (self.last_exit.reason if self.last_exit else "")
            return ChildState(
                self.spec.name, None, phase, detail, None, 0.0, 0.0, self.restarts, 0, self.tracker.open,
                False, "", {}, self.last_exit, 0, None, self.device_free,
            )  # fmt: skip
        digest = hashlib.sha256(repr(sorted(life.fingerprint.items())).encode()).hexdigest()[:12]
        return ChildState(
            self.spec.name, life.pid, life.phase, life.detail, life.fraction, now - life.last_beat,
            life.late if life.busy else 0.0, self.restarts, life.rss, self.tracker.open,
            self._stale(life, now), digest if life.fingerprint else "", dict(life.metrics), self.last_exit,
            life.peak_rss, life.device_used, self.device_free,
        )  # fmt: skip

    def _stale(self, life: Life, now: float) -> bool:
        if not life.stale and now - life.stale_seen >= STALE_EVERY:
            life.stale, life.stale_seen = is_stale(life.fingerprint), now
        return life.stale


def _contents(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)
