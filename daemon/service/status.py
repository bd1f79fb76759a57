"""How the service fares, in simple words: from `systemctl show` and the journal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from daemon.service.install import drop_ins, properties, unit_file
from daemon.service.plan import Machine
from daemon.service.units import NAME

PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "UnitFileState", "StatusText", "Result", "ExecMainCode",
    "ExecMainStatus", "NRestarts", "MainPID", "MemoryCurrent", "ActiveEnterTimestamp", "FragmentPath",
    "NeedDaemonReload",
)  # fmt: skip
PROBLEMS = 10
LINES = 500
"""Lines of the journal that are looked through."""

_EXIT = {
    "2": "the configuration cannot be used; the message below names the setting. It is not tried again: mend it, then "
    "systemctl {user}restart poseward",
    "200": "its working folder is gone (CHDIR): `poseward service install` again",
    "203": "the interpreter could not be started (EXEC): it is gone or no program; `poseward service install` again",
    "217": "its user is gone (USER): `poseward service install` again with --run-as",
    "218": "systemd could not drop privileges (CAPABILITIES), as in some containers",
    "226": "a folder that the unit names is not there, such as a drive that is not mounted (NAMESPACE): mount it, or "
    "`poseward service install` again",
    "228": "the kernel refused the filter of system calls (SECCOMP)",
    "238": "its state folder cannot be made (STATE_DIRECTORY)",
    "239": "its cache folder cannot be made (CACHE_DIRECTORY)",
}
_RESULT = {
    "watchdog": "its main loop stood still for longer than WatchdogSec: the journal holds where it stood",
    "oom-kill": "the kernel ended it for want of memory: raise MemoryMax, .wslconfig's memory, or lower stages.ring_mb",
    "timeout": "it took too long to start or to stop: the journal's last lines say at what",
    "start-limit-hit": "it failed five times in ten minutes and is not tried again: mend the cause, then systemctl "
    "{user}reset-failed poseward && systemctl {user}start poseward",
    "resources": "systemd could not start it: journalctl {user}-u poseward says what was missing",
    "core-dump": "it crashed in native code: the journal holds the stack",
    "protocol": "it ended or answered before the API was up",
}


@dataclass(frozen=True)
class Status:
    """One look at the service.

    Attributes:
        state: ``not installed``, or systemd's ActiveState: active, activating, inactive, failed, …
        text: what the daemon says of itself.
        headline: the state in a sentence.
        cause: why it does not run, and the way out; empty where it does.
        problems: the last warnings and errors, oldest first.
        properties: systemd's, as they came.
        notes: what else should be known, such as drop-ins.
    """

    state: str
    text: str = ""
    headline: str = ""
    cause: str = ""
    problems: list[str] = field(default_factory=list)
    properties: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """As systemctl's: 0 running, 3 not running, 4 not installed."""
        if self.state == "not installed":
            return 4
        return 0 if self.state in ("active", "reloading") else 3


def read_status(machine: Machine, user_unit: bool) -> Status:
    """Ask systemd and the journal.

    Raises:
        ServiceError: systemctl cannot be run.
    """
    found = properties(machine, user_unit, PROPERTIES)
    if found.get("LoadState") == "not-found":
        other = "" if user_unit else " (--user asks for your own)"
        return Status(
            "not installed", headline=f"not installed{other}: poseward service install", properties=found
        )
    state = found.get("ActiveState", "unknown")
    user = "--user " if user_unit else ""
    return Status(
        state=state,
        text=found.get("StatusText", ""),
        headline=_headline(found, user),
        cause=_cause(found, user),
        problems=_problems(machine, user_unit),
        properties=found,
        notes=_notes(machine, user_unit, found),
    )


def _headline(properties: Mapping[str, str], user: str) -> str:
    state = properties.get("ActiveState", "unknown")
    since = properties.get("ActiveEnterTimestamp", "")
    restarts = _number(properties.get("NRestarts"))
    if state == "active":
        memory = _number(properties.get("MemoryCurrent"))
        parts = [f"running{f' since {since}' if since else ''}, process {properties.get('MainPID', '?')}"]
        if memory is not None and memory < 1 << 60:
            parts.append(f"{memory >> 20} MB")
        if restarts:
            parts.append(f"restarted {restarts} time{'s' if restarts > 1 else ''} by systemd")
        return ", ".join(parts)
    if state == "activating" and properties.get("SubState") == "auto-restart":
        return f"waiting to be restarted after a failure ({restarts or 0} restart{'' if restarts == 1 else 's'} so far)"
    words = {
        "activating": "starting: the API does not answer yet",
        "deactivating": "stopping",
        "failed": "failed",
        "inactive": f"stopped; systemctl {user}start poseward",
    }
    return words.get(state, state)


def _cause(properties: Mapping[str, str], user: str) -> str:
    result = properties.get("Result", "success")
    status = properties.get("ExecMainStatus", "0")
    if properties.get("ActiveState") == "active" or result == "success":
        return ""
    if result == "exit-code":
        text = _EXIT.get(
            status, f"the daemon ended with exit code {status}: a defect; the journal holds its last words"
        )
    elif result == "signal":
        text = f"it was killed by signal {status}"
    else:
        text = _RESULT.get(result, f"systemd says: {result}")
    return text.format(user=user)


def _notes(machine: Machine, user_unit: bool, properties: Mapping[str, str]) -> list[str]:
    notes = []
    file = properties.get("FragmentPath") or str(unit_file(machine, user_unit))
    enabled = properties.get("UnitFileState", "")
    notes.append(f"{file}, {'started at boot' if enabled == 'enabled' else f'not started at boot ({enabled})'}")
    notes += [f"drop-in: {path}" for path in drop_ins(machine, user_unit)]
    if properties.get("NeedDaemonReload") == "yes":
        notes.append(f"the unit changed on disk: systemctl {'--user ' if user_unit else ''}daemon-reload")
    return notes


def _problems(machine: Machine, user_unit: bool) -> list[str]:
    """The last warnings of the daemon's log, and what systemd said of the unit."""
    which = ["--user-unit", NAME] if user_unit else ["--unit", NAME]
    command = ["journalctl", *which, "--lines", str(LINES), "--output", "json", "--no-pager", "--quiet"]
    try:
        done = machine.run(command)
    except (OSError, subprocess.SubprocessError):
        return []
    return list(_worth_saying(done.stdout.splitlines()))[-PROBLEMS:]


def _worth_saying(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        try:
            entry = json.loads(line)
            message = str(entry.get("MESSAGE", ""))
            own = json.loads(message) if message.startswith("{") else None
        except (ValueError, AttributeError):
            continue
        if isinstance(own, dict):
            if own.get("level") in ("warning", "error", "critical"):
                words = [
                    str(own.get(key)) for key in ("event", "stage", "state", "job", "message") if own.get(key)
                ]
                yield f"{own.get('timestamp', '')} {': '.join(words)}".strip()
        elif _is_problem(entry, message):
            yield message


def _is_problem(entry: Mapping[str, object], message: str) -> bool:
    """Whether a line that is none of the daemon's log tells of trouble."""
    if entry.get("SYSLOG_IDENTIFIER") == "systemd":
        # One line for each process that goes with the service tells nothing.
        return str(entry.get("PRIORITY", "6")) <= "5" and ": Killing process" not in message
    return message.startswith(("poseward: ", "Fatal Python error"))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def as_map(status: Status) -> dict[str, object]:
    """For programs."""
    return {
        "state": status.state,
        "text": status.text,
        "headline": status.headline,
        "cause": status.cause,
        "problems": status.problems,
        "notes": status.notes,
        "properties": dict(status.properties),
    }
