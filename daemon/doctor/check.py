"""What a check is, what it finds, and how checks are run: each with a deadline, none may raise or hang."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from daemon.doctor.driver import Driver, nvml_driver
from daemon.settings.sources import ConfigError
from supervisor.memory import DeviceProbe, Nvml

if TYPE_CHECKING:
    from daemon.settings.loading import Loaded

Answer = TypeVar("Answer")

AT_ONCE = 3
"""Checks that run at the same time: most of their time is imports in other processes."""


class Severity(str, Enum):
    """How bad it is. ``note`` is worth knowing, ``warning`` costs something, ``error`` stops a job."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def exit_code(self) -> int:
        return {"warning": 1, "error": 2}.get(self.value, 0)


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``found`` says what is so, ``way_out`` what to type or set if that is a problem."""

    check: str
    severity: Severity
    found: str
    way_out: str = ""

    def to_map(self) -> dict[str, str]:
        return {
            "check": self.check,
            "severity": self.severity.value,
            "found": self.found,
            "way_out": self.way_out,
        }


@dataclass(frozen=True)
class Machine:
    """What the checks look at. The defaults are the machine itself; a test puts a real fault in place of one."""

    root: Path = Path("/")
    """Where /proc, /sys, /etc, /run and /usr/lib/wsl are."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    devices: DeviceProbe = field(default_factory=Nvml)
    driver: Callable[[], Driver] = nvml_driver
    now: Callable[[], float] = time.time
    """Seconds since 1970."""
    monotonic: Callable[[], float] = time.monotonic
    uid: int = field(default_factory=os.getuid)
    executable: str = sys.executable
    """The interpreter that runs this command."""
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
    descriptors: Callable[[], int] = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    """The soft limit on open files."""
    file_encoding: Callable[[], str] = sys.getfilesystemencoding
    text_encoding: Callable[[], str] = lambda: getattr(sys.stdout, "encoding", None) or "utf-8"

    def read(self, path: str) -> str:
        """The text of a file below `root`; empty if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @cached_property
    def wsl(self) -> bool:
        """Whether this is Windows' Subsystem for Linux: its kernels name Microsoft in /proc/version."""
        return "microsoft" in self.read("/proc/version").lower()


class Context:
    """Settings and machine, and a memory for what several checks ask: interpreters and the running daemon."""

    def __init__(self, loaded: Loaded, machine: Machine | None = None) -> None:
        self.loaded = loaded
        self.machine = machine or Machine()
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._answers: dict[str, Any] = {}

    def setting(self, key: str, default: Any) -> Any:
        """The value of a setting, or ``default`` in a version that does not have it."""
        try:
            return self.loaded.value(key)
        except ConfigError:
            return default

    def once(self, key: str, make: Callable[[], Answer]) -> Answer:
        """What ``make`` returns, made once, whichever check asks first; the others wait for it."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._answers:
                self._answers[key] = make()
            found: Answer = self._answers[key]
            return found


@dataclass(frozen=True)
class Check:
    """One check: ``run`` yields its findings. The part of ``name`` before the dot is its theme."""

    name: str
    run: Callable[[Context, str], Iterable[Finding]]
    deadline: float = 10.0
    """Seconds."""

    @property
    def theme(self) -> str:
        return self.name.partition(".")[0]


def ok(check: str, found: str) -> Finding:
    return Finding(check, Severity.OK, found)


def note(check: str, found: str, way_out: str = "") -> Finding:
    return Finding(check, Severity.NOTE, found, way_out)


def warning(check: str, found: str, way_out: str) -> Finding:
    return Finding(check, Severity.WARNING, found, way_out)


def error(check: str, found: str, way_out: str) -> Finding:
    return Finding(check, Severity.ERROR, found, way_out)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if all is well or worth a note, 1 with a warning, 2 with an error."""
    return max((finding.severity.exit_code for finding in findings), default=0)


def run_checks(context: Context, checks: Sequence[Check]) -> Iterator[tuple[Check, list[Finding]]]:
    """Run ``checks``, `AT_ONCE` at a time, and yield what each found, in their order, as soon as it is there.

    A check that raises or does not end by its deadline is itself a finding. Its thread is left behind as a
    daemon thread, which does not keep the process from ending.
    """
    changed = threading.Condition()
    jobs = [_Job(context, check, changed) for check in checks]
    waiting = deque(jobs)
    running: list[_Job] = []
    for job in jobs:
        with changed:
            while not job.over:
                running = [other for other in running if not other.over]
                while waiting and len(running) < AT_ONCE:
                    running.append(waiting.popleft())
                    running[-1].start()
                changed.wait(max(0.0, min(other.left for other in running)))
        yield job.check, job.result()


class _Job:
    """One check in a thread of its own. Its state changes under ``changed`` only."""

    def __init__(self, context: Context, check: Check, changed: threading.Condition) -> None:
        self.check = check
        self._context = context
        self._changed = changed
        self._ends: float | None = None
        self._found: list[Finding] | None = None

    def start(self) -> None:
        self._ends = time.monotonic() + self.check.deadline
        threading.Thread(target=self._run, name=self.check.name, daemon=True).start()

    @property
    def left(self) -> float:
        """Seconds until its deadline."""
        return self._ends - time.monotonic() if self._ends is not None else self.check.deadline

    @property
    def over(self) -> bool:
        """It has ended, or its time is up."""
        return self._found is not None or self.left <= 0

    def result(self) -> list[Finding]:
        if self._found is not None:
            return self._found
        return [
            error(
                self.check.name,
                f"no answer within {self.check.deadline:.0f} s",
                "something that this check looks at hangs (a dead network folder, a stuck driver): mend that; the "
                "other checks do not depend on it",
            )
        ]

    def _run(self) -> None:
        try:
            found = list(self.check.run(self._context, self.check.name))
        except Exception as problem:  # noqa: BLE001  (a broken check is a finding like any other)
            found = [
                error(
                    self.check.name,
                    f"this check itself failed: {type(problem).__name__}: {problem}",
                    "the other checks are not touched by this; please report it with the output of "
                    "`poseward doctor --json`",
                )
            ]
        with self._changed:
            self._found = found
            self._changed.notify_all()
