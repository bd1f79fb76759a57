"""What the supervisor tells its owner: one frozen dataclass a kind of event."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class ExitKind(str, Enum):
    """Why a child ended. ``CONFIGURATION`` is never restarted in a loop."""

    CLEAN = "clean"
    EXCEPTION = "exception"
    DEVICE_OOM = "device out of memory"
    HOST_OOM = "host out of memory"
    SIGNAL = "killed by signal"
    HUNG = "hung"
    CONFIGURATION = "configuration error"
    RECYCLED = "recycled"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ExitReport:
    """A death, classified. ``activity`` is the flight recorder's last entry: what the child was about to do
    when it died (the dict given to ``Link.working``), or None if it was idle."""

    kind: ExitKind
    pid: int
    code: int | None
    signal: int | None
    reason: str
    """One sentence for a person, such as ``killed by SIGKILL`` or ``ValueError: …``."""
    phase: str
    activity: dict[str, Any] | None
    traceback: str | None
    stderr_tail: tuple[str, ...]
    stack_dump: str | None = None
    lifetime: float = 0.0


@dataclass(frozen=True)
class Event:
    """Base of all events; ``name`` is the process's name."""

    name: str


@dataclass(frozen=True)
class Started(Event):
    pid: int
    preloaded: bool


@dataclass(frozen=True)
class PhaseChanged(Event):
    """``phase`` is importing, loading, warming or working; ``fraction`` in [0, 1] where known."""

    phase: str
    detail: str = ""
    fraction: float | None = None


@dataclass(frozen=True)
class Ready(Event):
    """The child finished warming up and takes work. Sent once for each life of the process."""

    startup_seconds: float
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message(Event):
    """A message of the child's own (``Link.send``): the supervisor does not look inside."""

    kind: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Died(Event):
    exit: ExitReport
    restart_in: float | None
    """Seconds until the restart; None where the process stays down (stopped, failed or circuit open)."""


@dataclass(frozen=True)
class CircuitOpened(Event):
    exit: ExitReport
    retry_in: float


@dataclass(frozen=True)
class Failed(Event):
    """The process stays down until ``reset``: a configuration error that a restart cannot mend."""

    exit: ExitReport


@dataclass(frozen=True)
class WaitingForMemory(Event):
    """The start waits for device memory. ``holders`` names who has it, or says why that is unknown."""

    need: int
    free: int
    holders: tuple[str, ...]


@dataclass(frozen=True)
class Output(Event):
    """One line that the child wrote to stderr or stdout."""

    line: str
