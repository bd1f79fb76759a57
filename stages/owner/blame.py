"""From a death to what follows: which frames are worked on alone or left out, which job is given up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stages.owner.active import Active
from stages.owner.recovery import PoisonLedger
from stages.process.start import WHOLE_JOB
from supervisor.events import ExitKind, ExitReport

BLAMELESS = (ExitKind.CLEAN, ExitKind.RECYCLED, ExitKind.STOPPED, ExitKind.CONFIGURATION)


@dataclass
class Consequences:
    """Of one death, or of one circuit that opened."""

    suspects: list[Active] = field(default_factory=list)
    """Jobs of which the stage has to be told anew what is suspected and what is skipped."""
    skipped: list[tuple[Active, int]] = field(default_factory=list)
    """Frames that are left out from now on."""
    hopeless: list[Active] = field(default_factory=list)
    """Jobs that kill the stage as a whole."""


class Blame:
    """Lays blame on frames, and tells a loop of deaths from one whose cause has been found.

    Args:
        active: the jobs in work by number, as they are at any time.
    """

    def __init__(self, active: Mapping[int, Active]) -> None:
        self._active = active
        self._ledger = PoisonLedger()
        self._skips_since_open: dict[str, int] = {}
        self._opened_circuits: dict[str, int] = {}

    def of(self, stage: str, report: ExitReport) -> Consequences:
        """Enter a death of ``stage``; writes what follows into the jobs."""
        found = Consequences()
        if report.kind in BLAMELESS or not report.activity:
            return found
        work = [(int(job), int(frame)) for job, frame in report.activity.get("work", ())]
        verdict = self._ledger.blame(stage, work)
        for job, frame in work:  # what was done while the word of this death was under way is held against nobody
            if (active := self._active.get(job)) is None:
                self._ledger.drop(job)
            elif WHOLE_JOB < frame < active.next_frame:
                self._ledger.committed(job, active.next_frame)
        for job, frame in verdict.isolate:
            if (active := self._active.get(job)) is not None:
                active.isolated.setdefault(stage, []).append(frame)
                found.suspects.append(active)
        for job, frame in verdict.skip:
            if (active := self._active.get(job)) is None:
                continue
            if frame == WHOLE_JOB:
                found.hopeless.append(active)
                continue
            active.skipped.setdefault(stage, {})[frame] = f"{report.kind.value}: {report.reason}"
            self._skips_since_open[stage] = self._skips_since_open.get(stage, 0) + 1
            found.skipped.append((active, frame))
            found.suspects.append(active)
        return found

    def circuit_opened(self, stage: str) -> tuple[bool, bool]:
        """Whether the cause of the deaths has been isolated since, which is progress, and no loop; and if not,
        whether this is no longer the first time without a committed frame."""
        if self._skips_since_open.pop(stage, 0):
            return True, False
        self._opened_circuits[stage] = self._opened_circuits.get(stage, 0) + 1
        return False, self._opened_circuits[stage] > 1

    def committed(self, job: int, next_frame: int) -> None:
        """Frames before ``next_frame`` are safe."""
        self._opened_circuits.clear()
        self._ledger.committed(job, next_frame)

    def drop(self, job: int) -> None:
        self._ledger.drop(job)
