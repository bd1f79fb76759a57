"""What the pipeline knows about a job in work."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.owner.jobs import Job, JobOutcome, JobProgress
from stages.records import Failure
from supervisor.events import ExitReport


@dataclass
class Active:
    """A job that has been given to decode.

    ``number`` names it in pipes and on control links. ``tracked`` says whether the track process of this
    moment has its journal open, ``opened`` whether the decode process of this moment has its source open.
    """

    number: int
    job: Job
    started: float = field(default_factory=time.monotonic)
    info: dict[str, Any] | None = None
    opened: bool = False
    tracked: bool = False
    ended: bool = False
    next_frame: int = 0
    state: bytes | None = None
    """What a follower knew before ``next_frame``, as track has journaled it."""
    counts: dict[str, int] = field(default_factory=lambda: {"decode": 0, "detect": 0, "mesh": 0})
    seconds: dict[str, float] = field(default_factory=dict)
    restarts: list[dict[str, Any]] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of packages, shared with the pipeline, which learns them as stages become ready."""
    isolated: dict[str, list[int]] = field(default_factory=dict)
    skipped: dict[str, dict[int, str]] = field(default_factory=dict)
    replays: int = 0
    """How often what was in flight was lost, though nothing had died, since the last committed frame."""
    last_death: float = -math.inf
    progress_sent: float = 0.0

    @property
    def stop(self) -> int | None:
        """The frame before which it ends, where that is not its input's end."""
        return None if self.job.segment is None else self.job.segment[1]

    def worked(self, stage: str, count: int, seconds: float) -> None:
        self.counts[stage] = self.counts.get(stage, 0) + count
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def died(self, process: str, exit_report: ExitReport) -> None:
        self.last_death = time.monotonic()
        self.restarts.append(
            {
                "process": process,
                "kind": exit_report.kind.value,
                "reason": exit_report.reason,
                "phase": exit_report.phase,
                "committed": self.next_frame,
            }
        )

    def progress(self) -> JobProgress:
        """How far each stage is. Frames done again after a crash are not counted twice."""
        total = self.info["frames"] if self.info and self.info["frames"] is not None else None

        def done(stage: str) -> int:
            count = max(self.counts[stage], self.next_frame)
            return count if total is None else min(count, total)

        return JobProgress(self.job.id, done("decode"), done("detect"), done("mesh"), self.next_frame)

    def outcome(self, finished: Mapping[str, Any] | None = None) -> JobOutcome:
        """For the summary; ``finished`` is what track said at the end, None for a job that ends earlier."""
        found = finished or {}
        return JobOutcome(
            frames=int(found.get("frames", self.next_frame)),
            people=int(found.get("people", 0)),
            tracks=int(found.get("tracks", 0)),
            failed_frames=[(int(n), Failure(stage, why)) for n, stage, why in found.get("failures", [])],
            damaged_frames=[(int(first), int(last), str(why)) for first, last, why in found.get("damaged", [])],
            truncated=found.get("truncated"),
            source=dict(self.info or {}),
            seconds=dict(self.seconds),
            wall_seconds=time.monotonic() - self.started,
            restarts=list(self.restarts),
            versions=dict(sorted(self.versions.items())),
        )
