"""For the doctor's tests: settings without a file, and a small copy of what the checks read of a machine."""

from __future__ import annotations

import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.doctor.check import Context, Finding, Machine, Severity, run_checks
from daemon.doctor.checks import CHECKS
from daemon.doctor.driver import Driver
from daemon.settings.loading import load
from supervisor.memory import DeviceMemory

LINUX = "Linux version 6.6.0-generic (gcc) #1 SMP"
WSL2 = "Linux version 5.15.167.4-microsoft-standard-WSL2 (gcc) #1 SMP"
WSL1 = "Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com) #1"


@dataclass
class Gpus:
    """Stands for NVML."""

    found: Sequence[DeviceMemory] = ()

    def devices(self) -> Sequence[DeviceMemory]:
        return self.found


def make_root(folder: Path, version: str = LINUX, available_mb: int = 16000, **files: str) -> Path:
    """A folder to be `Machine.root`; ``files`` by path, with ``__`` for a slash."""
    root = folder / "root"
    content = {
        "proc/version": version,
        "proc/meminfo": f"MemTotal: {16000 * 1024} kB\nMemAvailable: {available_mb * 1024} kB\n",
        "proc/self/stat": "1 (python) R",
        "proc/self/cgroup": "0::/app.slice/poseward.service\n",
        "proc/mounts": "/dev/root / ext4 rw 0 0\nproc /proc proc rw 0 0\n",
        **{name.replace("__", "/"): text for name, text in files.items()},
    }
    for name, text in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def make_context(folder: Path, *sets: str, **machine: Any) -> Context:
    """Settings (``KEY=VALUE`` each) with all folders below ``folder``, and a `Machine` with the given parts."""
    file = folder / "poseward.toml"
    file.touch()
    places = [f"results.folder={folder / 'results'}", f"daemon.state={folder / 'state'}"]
    environ = {"PATH": "/usr/bin:/bin", "TMPDIR": str(folder)}
    parts: dict[str, Any] = {
        "environ": environ,
        "devices": Gpus(),
        "driver": lambda: Driver(problem="no driver"),
        **machine,
    }
    return Context(load(file, environ={}, sets=[*places, *sets]), Machine(**parts))


def look(context: Context, name: str) -> list[Finding]:
    """What the check of that name finds, run as the command runs it."""
    (check,) = [check for check in CHECKS if check.name == name]
    ((_, found),) = run_checks(context, [check])
    assert found, f"{name} says nothing"
    assert all(finding.check == name for finding in found)
    for finding in found:
        assert finding.severity.exit_code == 0 or finding.way_out, f"no way out of: {finding.found}"
        assert "itself failed" not in finding.found, finding.found
    return found


def worst(found: Sequence[Finding]) -> Finding:
    order = list(Severity)
    return max(found, key=lambda finding: order.index(finding.severity))


def script(path: Path, text: str) -> Path:
    """An executable shell script: a fake interpreter."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def bare_python(path: Path) -> Path:
    """A real interpreter that has no packages installed."""
    return script(path, f'exec "{sys.executable}" -S "$@"')


def package(folder: Path, name: str, text: str) -> Path:
    """A module that shadows an installed one, when ``folder`` is on PYTHONPATH."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(text)
    return folder
