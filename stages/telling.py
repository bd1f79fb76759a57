"""What the supervisor says, in words for whoever watches the pipeline."""

from __future__ import annotations

from stages.jobs import StageEvent
from supervisor import events as ev


def in_words(event: ev.Event) -> StageEvent | None:
    """The `StageEvent` that tells a person of this event; None where there is nothing to tell."""

    def told(state: str, message: str, fraction: float | None = None) -> StageEvent:
        return StageEvent("", event.name, state, message, fraction)

    if isinstance(event, ev.Ready):
        return told("ready", f"ready after {event.startup_seconds:.1f} s")
    if isinstance(event, ev.Died):
        again = "" if event.restart_in is None else f"; again in {event.restart_in:.1f} s"
        return told("died", f"{event.exit.kind.value}: {event.exit.reason}{again}")
    if isinstance(event, ev.CircuitOpened):
        return told("circuit open", f"{event.exit.reason}; next try in {event.retry_in:.0f} s")
    if isinstance(event, ev.Failed):
        return told("failed", event.exit.reason)
    if isinstance(event, ev.WaitingForMemory):
        holders = ", ".join(event.holders)
        return told("waiting", f"for {event.need} bytes of GPU memory, {event.free} free: {holders}")
    if isinstance(event, ev.PhaseChanged):
        return told(event.phase, event.detail, event.fraction)
    if isinstance(event, ev.Output):
        return told("output", event.line)
    return None
