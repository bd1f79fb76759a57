"""Why did it end? From a wait status, a report and a few traces to one `ExitReport`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from supervisor.child import EXIT_CONFIGURATION, EXIT_DEVICE_OOM, EXIT_EXCEPTION, EXIT_HOST_OOM
from supervisor.events import ExitKind, ExitReport

KINDS = {
    0: ExitKind.CLEAN,
    EXIT_EXCEPTION: ExitKind.EXCEPTION,
    EXIT_DEVICE_OOM: ExitKind.DEVICE_OOM,
    EXIT_HOST_OOM: ExitKind.HOST_OOM,
    EXIT_CONFIGURATION: ExitKind.CONFIGURATION,
}


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; the number itself where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def classify(
    *,
    pid: int,
    status: int | None,
    phase: str,
    activity: dict[str, Any] | None,
    report: bytes,
    stack_dump: str,
    stderr_tail: Sequence[str],
    lifetime: float,
    intent: tuple[ExitKind, str] | None,
    kernel_oom: bool,
) -> ExitReport:
    """Put a name to a death.

    Args:
        status: wait status, or None where nobody could learn it (its fork server died with it).
        report: what the child itself wrote about its exception, JSON or empty.
        intent: what the supervisor was doing to it (stopping, recycling, killing a hung one), and why.
        kernel_oom: the kernel's out-of-memory killer has struck in this control group meanwhile.
    """
    code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    told = _parsed(report)
    number = -code if code < 0 else None
    if number is not None:
        kind, reason = ExitKind.SIGNAL, f"killed by {signal_name(number)}"
        if number == signal.SIGKILL and kernel_oom:
            kind, reason = ExitKind.HOST_OOM, "killed by the kernel: out of memory"
    else:
        kind = KINDS.get(code, ExitKind.EXCEPTION)
        reason = told.get("reason") or (f"exit status {code}" if code else "ended by itself")
        if phase == "starting" and code not in KINDS:
            # It died before it could speak: an interpreter that lacks our own needs ends like this.
            missing = [line for line in stderr_tail if "ModuleNotFoundError" in line or "ImportError" in line]
            others = [line for line in stderr_tail if line not in missing]
            missing += [f"ImportError: {line}" for line in others if " is too old, " in line]  # Python 2's words
            kind = ExitKind.CONFIGURATION if missing else kind
            reason = missing[-1] if missing else reason
    if intent is not None:
        kind, reason = intent
    return ExitReport(
        kind=kind, pid=pid, code=code if code >= 0 else None, signal=number, reason=reason, phase=phase,
        activity=activity, traceback=told.get("traceback"), stderr_tail=tuple(stderr_tail),
        stack_dump=stack_dump or None, lifetime=lifetime,
    )  # fmt: skip


def is_failed_import(report: ExitReport) -> bool:
    """Whether a process ended since something could not be imported."""
    return "ModuleNotFoundError: " in report.reason or "ImportError: " in report.reason


def naming_interpreter(report: ExitReport, python: str) -> ExitReport:
    """What could not be imported is looked for in the wrong interpreter more often than it is missing."""
    if report.kind is not ExitKind.CONFIGURATION or not is_failed_import(report):
        return report
    return replace(report, reason=f"{report.reason}, in {python}")


def _parsed(report: bytes) -> dict[str, Any]:
    try:
        found = json.loads(report) if report else {}
    except ValueError:  # it died while it wrote this
        return {}
    return found if isinstance(found, dict) else {}


def oom_kills() -> int:
    """How often the kernel has killed in this process's control group, 0 where that cannot be read."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            with open(path) as lines:
                for line in lines:
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value)
        except OSError:
            continue
    return 0
