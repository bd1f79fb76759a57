"""What the supervisor says, in words for whoever watches the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.owner.jobs import StageEvent
from stages.owner.processes import stage_of
from supervisor import events as ev
from supervisor.exits import is_failed_import


def in_words(event: ev.Event, jobs: Mapping[int, str]) -> StageEvent | None:
    """The `StageEvent` that tells a person of this event; None where there is nothing to tell. ``jobs`` maps the
    numbers by which processes know the jobs in work to their ids."""

    def told(state: str, message: str, fraction: float | None = None, **more: Any) -> StageEvent:
        return StageEvent("", event.name, state, message, fraction, **more)

    if isinstance(event, ev.Ready):
        return told("ready", f"ready after {event.startup_seconds:.1f} s")
    if isinstance(event, ev.Died):
        again = "" if event.restart_in is None else f"; again in {event.restart_in:.1f} s"
        report = report_map(event.exit, jobs)
        return told("died", f"{event.exit.kind.value}: {event.exit.reason}{again}", report=report)
    if isinstance(event, ev.CircuitOpened):
        return told("circuit open", f"{event.exit.reason}; next try in {event.retry_in:.0f} s")
    if isinstance(event, ev.Failed):
        return told("failed", with_way_out(event.name, event.exit))
    if isinstance(event, ev.WaitingForMemory):
        holders = ", ".join(event.holders)
        return told("waiting", f"for {event.need} bytes of GPU memory, {event.free} free: {holders}")
    if isinstance(event, ev.PhaseChanged):
        return told(event.phase, event.detail, event.fraction)
    if isinstance(event, ev.Output):
        return told("output", event.line)
    return None


def report_map(report: ev.ExitReport, jobs: Mapping[int, str]) -> dict[str, Any]:
    """A death for logs: what kind, in which phase, the last words (``stderr``), the ``traceback`` of an exception,
    the ``stack_dump`` of a crash or a hang, and the ``work`` it had begun, as pairs of job id and frame."""
    work = (report.activity or {}).get("work", ())
    return {
        "kind": report.kind.value,
        "phase": report.phase,
        "pid": report.pid,
        "code": report.code,
        "signal": report.signal,
        "lifetime": round(report.lifetime, 3),
        "work": [(jobs.get(int(job), str(job)), int(frame)) for job, frame in work],
        "traceback": report.traceback,
        "stack_dump": report.stack_dump,
        "stderr": list(report.stderr_tail),
    }


def with_way_out(process: str, report: ev.ExitReport) -> str:
    """Why a process has failed for good, and the setting where somebody else's interpreter is at fault."""
    if is_failed_import(report):
        setting = f"stages.{stage_of(process)}.python"
        return f"{report.reason}; set {setting} to the interpreter that has what is needed"
    return report.reason.removeprefix("ConfigurationError: ")
