"""systemd: whether it runs, and whether a user's service outlives the login."""

from __future__ import annotations

import pwd
from collections.abc import Iterator

from daemon.doctor.check import Context, Finding, note, ok, warning


def check_systemd(context: Context, check: str) -> Iterator[Finding]:
    """systemd runs (sd_booted's test: /run/systemd/system), or how to switch it on."""
    machine = context.machine
    if not (machine.root / "run/systemd/system").is_dir():
        if machine.wsl and _wsl_configured(machine.read("/etc/wsl.conf")):
            yield warning(
                check,
                "systemd is switched on in /etc/wsl.conf, but does not run",
                "in Windows: wsl --shutdown, then open WSL again",
            )
        elif machine.wsl:
            yield warning(
                check,
                "systemd does not run, so that no service starts by itself",
                "printf '[boot]\\nsystemd=true\\n' | sudo tee -a /etc/wsl.conf, then in Windows: wsl --shutdown",
            )
        else:
            yield note(
                check,
                "systemd does not run (a container?): `poseward service` cannot be used",
                "run `poseward serve` under what starts programs here",
            )
        return
    yield ok(check, "systemd runs")
    if machine.uid == 0:
        return
    try:
        user = pwd.getpwuid(machine.uid).pw_name
    except KeyError:
        return
    if not (machine.root / "var/lib/systemd/linger" / user).exists():
        yield note(
            check,
            f"services of {user} end with the last login",
            f"for a user's service that goes on: sudo loginctl enable-linger {user}",
        )


def _wsl_configured(text: str) -> bool:
    section = ""
    for line in text.splitlines():
        line = line.split("#")[0].strip().lower()
        if line.startswith("["):
            section = line
        elif section == "[boot]" and line.replace(" ", "") == "systemd=true":
            return True
    return False
