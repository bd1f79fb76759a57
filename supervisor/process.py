"""One supervised process: its descriptors, its clocks, its state, and how it is brought down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisor.events import ExitKind, ExitReport
from supervisor.exits import classify, oom_kills
from supervisor.policy import RestartTracker
from supervisor.recorder import FlightRecorder
from supervisor.spec import Deadlines, ProcessSpec

TAIL_LINES = 50
DUMP_SECONDS = 0.3
"""Time that a stack dump gets before SIGTERM follows."""


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
        self.late = 0.0
        self.busy = True
        self.rss = 0
        self.phase = "starting"
        self.detail = ""
        self.fraction: float | None = None
        self.identity: bytes | None = None
        self.fingerprint: dict[str, str] = {}
        self.metrics: dict[str, float] = {}
        self.stderr_fd = stderr_fd
        self.stack_fd = stack_fd
        self.report_fd = report_fd
        self.partial = b""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.intent: tuple[ExitKind, str] | None = None
        self.hung_in: dict[str, Any] | None = None
        """What a hung one was doing when it was found out: the way down may wake it, and clear the record."""
        self.steps: list[tuple[float, int]] = []
        """Signals still to be sent: (when, which), in order."""
        self.oom_kills = oom_kills()

    def bring_down(self, now: float, kind: ExitKind, reason: str, deadlines: Deadlines, *, dump: bool) -> None:
        """Begin the end: stack dump (for a hung one), SIGTERM, SIGKILL."""
        if self.steps:
            return
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

    def kill(self, number: int) -> None:
        """Send a signal; SIGKILL goes to the whole process group, so that no grandchild stays."""
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def overdue(self, now: float, deadlines: Deadlines) -> str | None:
        """What deadline has been missed, for a person; None if none."""
        silence = now - self.last_beat
        if self.identity is not None and silence > deadlines.heartbeat:
            return f"no heartbeat for {silence:.1f} s (phase {self.phase}, deadlines.heartbeat)"
        limit = {
            "starting": deadlines.importing, "importing": deadlines.importing,
            "loading": deadlines.loading, "warming": deadlines.warming,
        }.get(self.phase, deadlines.working)  # fmt: skip
        still = self.late if self.identity is not None else silence
        if self.busy and still > limit:
            return f"no progress for {still:.1f} s (phase {self.phase}, deadlines.{self.phase})"
        return None

    def read_lines(self) -> list[str]:
        """The whole lines that have come over stderr and stdout."""
        chunks = [self.partial]
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.stderr_fd, 65536):
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
        self.waiting_for_memory = False

    def state(self, now: float) -> ChildState:
        life = self.life
        if life is None:
            phase = "failed" if self.failed else "waiting" if self.due is not None else "stopped"
            detail = self.last_exit.reason if self.last_exit else ""
            return ChildState(
                self.spec.name, None, phase, detail, None, 0.0, 0.0, self.restarts, 0, self.tracker.open,
                False, "", {}, self.last_exit,
            )  # fmt: skip
        digest = hashlib.sha256(repr(sorted(life.fingerprint.items())).encode()).hexdigest()[:12]
        return ChildState(
            self.spec.name, life.pid, life.phase, life.detail, life.fraction, now - life.last_beat,
            life.late if life.busy else 0.0, self.restarts, life.rss, self.tracker.open,
            is_stale(life.fingerprint), digest if life.fingerprint else "", dict(life.metrics), self.last_exit,
        )  # fmt: skip


_seen: dict[str, tuple[float, str]] = {}


def is_stale(loaded: dict[str, str]) -> bool:
    """Whether a source file on disk differs from what a process has loaded."""
    for path, digest in loaded.items():
        try:
            modified = os.stat(path).st_mtime
        except OSError:
            return True
        if path not in _seen or _seen[path][0] != modified:
            _seen[path] = (modified, hashlib.sha256(Path(path).read_bytes()).hexdigest())
        if _seen[path][1] != digest:
            return True
    return False


def _contents(fd: int) -> bytes:
    return os.pread(fd, 1 << 16, 0)
