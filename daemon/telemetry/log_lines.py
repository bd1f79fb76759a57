"""What happens to stages and jobs, as lines of the log."""

from __future__ import annotations

from typing import Any

from daemon.jobs.store import State, StoredJob
from stages.owner.jobs import StageEvent
from stages.owner.processes import stage_of
from supervisor.events import ExitKind

PROBLEMS = frozenset({"died", "failed", "circuit open", "corrupt message", "stalled", "skipping"})
"""States of a stage that a person should know of."""
PLANNED = frozenset({ExitKind.CLEAN.value, ExitKind.RECYCLED.value, ExitKind.STOPPED.value})
CRASHED = "Fatal Python error"
LONGEST_LINE = 2000
LONGEST_DUMP = 65536


def is_problem(event: StageEvent) -> bool:
    """Whether a person should know of it."""
    planned = event.report is not None and event.report.get("kind") in PLANNED
    return event.state in PROBLEMS and not planned


def stage_line(event: StageEvent) -> dict[str, Any]:
    """The fields of the log line about a stage.

    Always ``process``, ``stage``, ``state``, ``message`` (or ``line``, for what the process itself has written); of a
    death also what `stages.owner.telling.report_map` says, with ``job`` and ``frame`` or ``frames`` where it had begun
    something.
    """
    found: dict[str, Any] = {"process": event.stage, "stage": stage_of(event.stage), "state": event.state}
    found["line" if event.state == "output" else "message"] = event.message[:LONGEST_LINE]
    if event.fraction is not None:
        found["fraction"] = event.fraction
    report = {key: value for key, value in (event.report or {}).items() if value not in (None, [], "")}
    if event.state == "died" and not is_problem(event):
        found["state"] = "ended"
    work = report.pop("work", [])
    if work:
        found["job"] = work[0][0]
        frames = [frame for _, frame in work if frame >= 0]
        found.update({"frame": frames[0]} if len(frames) == 1 else {"frames": frames} if frames else {})
    lines = [str(line)[:LONGEST_LINE] for line in report.pop("stderr", [])]
    crash = next((at for at, line in enumerate(lines) if line.startswith(CRASHED)), len(lines))
    dump = [
        report.pop("stack_dump", ""),
        *lines[crash:],
    ]  # a hung process's, and what a crashed one writes to stderr
    texts = {
        "traceback": report.pop("traceback", "")[-LONGEST_DUMP:],
        "stack_dump": "\n".join(part for part in dump if part)[-LONGEST_DUMP:],
        "stderr": lines[:crash],
    }
    return {**found, **report, **{key: value for key, value in texts.items() if value}}


def job_line(job: StoredJob) -> tuple[str, dict[str, Any]] | None:
    """Event and fields of the line about a job's change that nothing else tells of: submitted, queued again,
    cancelled. None for any other."""
    known = {"job": job.id, "name": job.name, "source": job.source, "origin": job.origin}
    if job.state is State.QUEUED:
        return ("submitted" if job.attempts == 0 else "queued again"), {**known, "attempts": job.attempts}
    if job.state is State.RUNNING and job.started is not None:
        return "taken", {**known, "attempts": job.attempts}
    return ("cancelled", known) if job.state is State.CANCELLED else None
