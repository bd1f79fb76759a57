"""Installing and removing the unit: each a list of steps that can be shown without being done."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.service.plan import Machine, Plan
from daemon.service.units import NAME, ServiceError, is_marked, is_unchanged, render

SYSTEM_UNITS = Path("etc/systemd/system")
"""Below the machine's root."""


@dataclass(frozen=True)
class Step:
    """One thing that is done: what it is, for people, and the doing."""

    text: str
    do: Callable[[], None]


def unit_file(machine: Machine, user_unit: bool) -> Path:
    """Where the unit stands."""
    if not user_unit:
        return machine.root / SYSTEM_UNITS / NAME
    base = machine.environ.get("XDG_CONFIG_HOME")
    home = machine.environ.get("HOME") or str(Path.home())
    return (Path(base) if base else Path(home) / ".config") / "systemd/user" / NAME


def drop_ins(machine: Machine, user_unit: bool) -> list[Path]:
    """The drop-ins that stand beside the unit."""
    file = unit_file(machine, user_unit)
    return sorted(file.with_name(NAME + ".d").glob("*.conf"))


def systemctl(machine: Machine, user_unit: bool, *words: str) -> str:
    """Run systemctl; returns what it printed.

    Raises:
        ServiceError: it is not there, or failed.
    """
    command = ["systemctl", *(["--user"] if user_unit else []), *words]
    shown = " ".join(command)
    try:
        done = machine.run(command)
    except FileNotFoundError:
        raise ServiceError("no-systemd", "there is no systemctl on the PATH") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceError("systemctl-failed", f"{shown}: {error}") from error
    if done.returncode:
        hint = f"journalctl {'--user ' if user_unit else ''}-u {NAME} -n 50"
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise ServiceError("systemctl-failed", f"{shown}: {said}\n`poseward service status` or `{hint}` says more")
    return done.stdout


def properties(machine: Machine, user_unit: bool, names: Sequence[str]) -> dict[str, str]:
    """What systemd says of the service; raises as `systemctl` does."""
    shown = systemctl(machine, user_unit, "show", NAME, "--property", ",".join(names))
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def check_systemd(machine: Machine, user_unit: bool) -> None:
    """Whether there is a systemd to talk to, and whether it will listen.

    Raises:
        ServiceError: ``no-systemd``, ``not-root`` or ``no-user-manager``, with the way out.
    """
    if not (machine.root / "run/systemd/system").is_dir():
        if machine.wsl():
            raise ServiceError(
                "no-systemd",
                "systemd does not run in this WSL. Put into /etc/wsl.conf\n\n    [boot]\n    systemd=true\n\n"
                "then in Windows: wsl --shutdown, and open WSL again",
            )
        raise ServiceError(
            "no-systemd",
            "systemd does not run here (a container?): start `poseward serve` with whatever starts programs here",
        )
    if not user_unit:
        if machine.uid != 0:
            raise ServiceError(
                "not-root", "the system's unit is for root to change: the same with sudo, or --user for your own"
            )
        return
    runtime = machine.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime or not (Path(runtime) / "systemd").is_dir():
        raise ServiceError(
            "no-user-manager",
            f"no systemd of your own can be reached (XDG_RUNTIME_DIR is {runtime or 'not set'}): log in as this user "
            "itself (su and sudo do not count), or: sudo loginctl enable-linger $USER; export "
            f"XDG_RUNTIME_DIR=/run/user/{machine.uid}",
        )


def install_steps(plan: Plan, machine: Machine, *, force: bool = False) -> list[Step]:
    """What installing does; nothing where all is as it should be.

    Raises:
        ServiceError: a unit of that name is somebody else's, or was changed by hand and ``force`` is not given.
    """
    unit = plan.unit
    user_unit = unit.user_unit
    text = render(unit)
    file = unit_file(machine, user_unit)
    old = _read(file)
    if old is not None and not is_marked(old):
        raise ServiceError(
            "foreign-unit",
            f"{file} was not written by `poseward service install`: remove it first, or move it to another name",
        )
    if old is not None and not is_unchanged(old) and not force:
        raise ServiceError(
            "changed-unit",
            f"{file} was changed by hand. Move the changes to a drop-in (systemctl "
            f"{'--user ' if user_unit else ''}edit poseward), then: --force",
        )
    steps = [
        Step(f"make {path} for {plan.account.name}", lambda path=path: _make_folder(path, plan, machine))  # type: ignore[misc]
        for path in plan.missing
    ]
    if old != text:
        steps.append(Step(f"write {file}", lambda: _write(file, text)))
    if old != text or _is_behind(machine, user_unit, file):
        steps.append(_systemctl_step(machine, user_unit, "daemon-reload"))
    if not _is(machine, user_unit, "is-enabled"):
        steps.append(_systemctl_step(machine, user_unit, "enable", NAME))
    if steps or not _is(machine, user_unit, "is-active"):
        # Starts it where it does not run. Jobs in work go on where they were.
        steps.append(_systemctl_step(machine, user_unit, "restart", NAME))
    return steps


def uninstall_steps(machine: Machine, user_unit: bool, *, force: bool = False) -> list[Step]:
    """What removing does: the unit that was written, and nothing besides; nothing where there is none.

    Raises:
        ServiceError: the unit is somebody else's, or was changed by hand and ``force`` is not given.
    """
    file = unit_file(machine, user_unit)
    old = _read(file)
    if old is None:
        return []
    if not is_marked(old):
        raise ServiceError(
            "foreign-unit", f"{file} was not written by `poseward service install` and is left alone"
        )
    if not is_unchanged(old) and not force:
        raise ServiceError("changed-unit", f"{file} was changed by hand; --force removes it all the same")
    return [
        _systemctl_step(machine, user_unit, "disable", "--now", NAME),
        Step(f"remove {file}", file.unlink),
        _systemctl_step(machine, user_unit, "daemon-reload"),
    ]


def run_steps(steps: Sequence[Step], tell: Callable[[str], None]) -> None:
    """Do the steps, telling each when it is done.

    Raises:
        ServiceError: a step failed; the ones before it stay done.
    """
    for step in steps:
        try:
            step.do()
        except OSError as error:
            raise ServiceError("no-permission", f"could not {step.text}: {error.strerror}") from error
        tell(step.text)


def remarks(plan: Plan, machine: Machine) -> list[str]:
    """What the person should know besides."""
    found = []
    name = plan.account.name
    if plan.unit.user_unit and not (machine.root / "var/lib/systemd/linger" / name).exists():
        found.append(
            f"The service ends with your last login. So that it goes on: sudo loginctl enable-linger {name}"
        )
    if machine.wsl():
        found.append(
            "Windows ends WSL when no window of it is open, services or not: docs/service.md says how to keep it up"
        )
    if not plan.unit.user_unit and plan.account.uid == 0:
        found.append("The service runs as root. --run-as NAME lets it run as somebody who can break less")
    return found


def _is(machine: Machine, user_unit: bool, question: str) -> bool:
    """The answer of `systemctl is-…`; no where there is no systemd."""
    try:
        systemctl(machine, user_unit, question, "--quiet", NAME)
    except ServiceError:
        return False
    return True


def _is_behind(machine: Machine, user_unit: bool, file: Path) -> bool:
    """Whether the service runs by an older unit than the one that stands there: an installation was interrupted."""
    try:
        found = properties(machine, user_unit, ("NeedDaemonReload", "ActiveEnterTimestampMonotonic"))
        started = int(found.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
        written = time.monotonic() - (time.time() - file.stat().st_mtime)
    except (ServiceError, OSError, ValueError):
        return False
    return found.get("NeedDaemonReload") == "yes" or 0 < started < written


def _systemctl_step(machine: Machine, user_unit: bool, *words: str) -> Step:
    def do() -> None:
        systemctl(machine, user_unit, *words)

    return Step(" ".join(["systemctl", *(["--user"] if user_unit else []), *words]), do)


def _make_folder(path: Path, plan: Plan, machine: Machine) -> None:
    new = [part for part in (*reversed(path.parents), path) if not part.exists()]
    path.mkdir(parents=True, exist_ok=True)
    if machine.uid == 0 and not plan.unit.user_unit:
        for part in new:
            os.chown(part, plan.account.uid, plan.account.gid)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.chmod(0o644)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError("no-permission", f"{file}: {error.strerror}") from error
