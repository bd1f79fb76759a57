"""What the pipeline is asked to do, and what it tells its owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.records import Failure


@dataclass(frozen=True)
class Job:
    """One input to work on.

    ``folder`` is the job's own work folder: journal, snapshots and the growing ``frames.msgpack`` live
    there, and a job submitted again with the same folder continues where its journal ends. Urgent jobs
    (single images) go ahead of the frames of videos.
    """

    id: str
    source: str
    folder: str
    urgent: bool = False
    segment: tuple[int, int] | None = None
    """First frame and the one after the last, of a job of which only the journal of these frames is wanted."""
    stream: int | None = None
    """Number of the video stream in its file; None for that of the settings."""


@dataclass(frozen=True)
class JobEvent:
    """Base of all job events; ``job`` is the job's id."""

    job: str


@dataclass(frozen=True)
class JobOpened(JobEvent):
    """Decode opened the source. ``frames`` is the exact count, or None where it is known only at the end."""

    width: int
    height: int
    fps: float
    frames: int | None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobProgress(JobEvent):
    """Frames done so far by each stage; ``committed`` frames are safe in the journal."""

    decoded: int
    detected: int
    meshed: int
    committed: int


@dataclass
class JobOutcome:
    """How a job ended, as it enters ``summary.json``."""

    frames: int = 0
    people: int = 0
    """Tracks summed over frames."""
    tracks: int = 0
    """Different identities."""
    failed_frames: list[tuple[int, Failure]] = field(default_factory=list)
    damaged_frames: list[tuple[int, int, str]] = field(default_factory=list)
    """Runs of frames that were worked on though the file is damaged there: the first, the last, and why."""
    truncated: str | None = None
    """Why the input ended early, or None."""
    source: dict[str, Any] = field(default_factory=dict)
    """What decode found out about the input: codec, rotation, size, …"""
    seconds: dict[str, float] = field(default_factory=dict)
    """Busy time of each stage on this job."""
    wall_seconds: float = 0.0
    restarts: list[dict[str, Any]] = field(default_factory=list)
    """Deaths while this job ran: stage, kind, reason, frames in flight."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the model family's packages, as the stages' own interpreters have them."""


@dataclass(frozen=True)
class JobDone(JobEvent):
    """``frames.msgpack`` in the job's folder is complete."""

    outcome: JobOutcome


@dataclass(frozen=True)
class JobFailed(JobEvent):
    """``error`` is a stable name such as ``unreadable-video``; ``message`` says the way out."""

    error: str
    message: str
    outcome: JobOutcome


@dataclass(frozen=True)
class StageEvent(JobEvent):
    """Something about a stage worth telling a person (``job`` is empty): starting, loading, ready,
    restarting, failed, waiting for memory. ``state`` is one of these words."""

    stage: str
    state: str
    message: str
    fraction: float | None = None
    report: Mapping[str, Any] | None = None
    """Of a death: everything that is known, see `stages.owner.telling.report_map`. Otherwise the ``job`` and ``frame``
    that this is about, where it is about one."""
