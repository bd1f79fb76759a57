"""The machine itself: memory for the ring, cgroup, /proc, open files, clock, text encoding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from daemon.doctor.api import health
from daemon.doctor.check import Context, Finding, Machine, error, note, ok, warning
from daemon.doctor.places import nearest, results_folder
from stages.owner.processes import HOUSE, replicas, slot_bytes
from stages.settings import STAGES

MEGABYTE = 1 << 20
PROCESS_MB = 250
"""What a stage process holds with the smallest backend, the ring left out."""
FEW_FILES, LEAST_FILES = 1024, 128
DAY = 86400.0
LARGEST_DRIFT = 120.0
"""Seconds by which a file's time may differ from the clock."""


def check_memory(context: Context, check: str) -> Iterator[Finding]:
    """The ring and the stages against available memory and the limit of the cgroup; the ring is memory, not disk."""
    stages, machine = context.loaded.settings.stages, context.machine
    ring = stages.slots * slot_bytes(stages) // MEGABYTE
    processes = sum(replicas(stages, stage) for stage in STAGES)
    need = ring + processes * PROCESS_MB
    way = "end other programs, or lower stages.ring_mb (or stages.slots, stages.max_pixels)"
    available, total = _meminfo(machine, "MemAvailable"), _meminfo(machine, "MemTotal")
    if available is None or total is None:
        yield error(check, "/proc/meminfo cannot be read", "mount /proc: sudo mount -t proc proc /proc")
        return
    if machine.wsl:
        way += "; or raise [wsl2] memory in %USERPROFILE%\\.wslconfig, then `wsl --shutdown`"
    text = (
        f"{available} of {total} MB available; the ring takes {ring} MB, {processes} processes at least "
        f"{PROCESS_MB} MB each"
    )
    running = health(context).running
    if ring > available and not running:
        yield error(check, f"{text}: the ring alone does not fit", way)
    elif need > available and not running:
        yield warning(check, f"{text}: that is more than there is", way)
    else:
        yield ok(check, text + (" (a daemon holds its own already)" if running else ""))
    yield from _group(machine, check, need, ring)
    if not hasattr(os, "memfd_create"):
        yield error(check, "this Python has no memfd_create, which the ring needs", "use a Python built for Linux")


def _group(machine: Machine, check: str, need: int, ring: int) -> Iterator[Finding]:
    """The least memory limit of this process's cgroup and those above it."""
    found = memory_limit(machine)
    if found is None:
        yield ok(check, "no cgroup limits memory")
        return
    limit, path = found
    way = f"raise it: MemoryMax= in the unit (`systemctl edit`), --memory of the container, or {path}"
    if ring > limit:
        yield error(check, f"the cgroup may use {limit} MB, the ring alone takes {ring} MB", way)
    elif need > limit:
        yield warning(check, f"the cgroup may use {limit} MB, ring and stages need {need} MB and more", way)
    else:
        yield note(check, f"the cgroup may use {limit} MB ({path})")


def memory_limit(machine: Machine) -> tuple[int, str] | None:
    """In MB, and the file that says so; cgroup version 2, then 1. None without a limit."""
    found: list[tuple[int, str]] = []
    for line in machine.read("/proc/self/cgroup").splitlines():
        _, controllers, group = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:
            base, name = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in group.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            path = "/".join([base, *parts[:depth], name])
            text = machine.read(path).strip()
            if text.isdecimal() and int(text) < 1 << 60:
                found.append((int(text) // MEGABYTE, path))
    return min(found, default=None)


def _meminfo(machine: Machine, name: str) -> int | None:
    for line in machine.read("/proc/meminfo").splitlines():
        parts = line.split()
        if len(parts) > 1 and parts[0] == f"{name}:" and parts[1].isdecimal():
            return int(parts[1]) // 1024
    return None


def total_memory(machine: Machine) -> int | None:
    """In MB."""
    return _meminfo(machine, "MemTotal")


def check_proc(context: Context, check: str) -> Iterator[Finding]:
    """/proc is there and shows other users' processes, which the question who holds a GPU or a port needs."""
    machine = context.machine
    if not machine.read("/proc/self/stat"):
        yield error(
            check,
            "/proc is not there: memory, deaths and holders of devices cannot be seen",
            "sudo mount -t proc proc /proc; in a unit leave ProcSubset=pid out",
        )
        return
    for line in machine.read("/proc/mounts").splitlines():
        parts = line.split()
        if len(parts) > 3 and parts[1] == "/proc":
            options = parts[3].split(",")
            if any(option in options for option in ("hidepid=1", "hidepid=2", "hidepid=invisible")):
                yield note(
                    check,
                    "/proc hides other users' processes (hidepid): who holds a GPU or a port may stay unknown",
                    "sudo mount -o remount,hidepid=0 /proc",
                )
                return
    yield ok(check, "/proc is there and shows all processes")


def check_files(context: Context, check: str) -> Iterator[Finding]:
    """The limit on open files: sockets, pipes, journals and each client take some."""
    limit = context.machine.descriptors()
    way = "`ulimit -n 4096` in this shell; LimitNOFILE=4096 in a unit"
    if 0 <= limit < LEAST_FILES:
        yield error(check, f"at most {limit} files may be open, Poseward needs {LEAST_FILES} to start", way)
    elif 0 <= limit < FEW_FILES:
        yield warning(check, f"at most {limit} files may be open: too few for many clients", way)
    else:
        yield ok(check, "no limit on open files" if limit < 0 else f"{limit} files may be open")


def check_clock(context: Context, check: str) -> Iterator[Finding]:
    """The clock is later than the program, agrees with the file system's, and the monotonic one never goes back."""
    machine = context.machine
    first = machine.monotonic()
    now = machine.now()
    way = "sudo timedatectl set-ntp true (or `sudo date -s …`)"
    if machine.wsl:
        way = "WSL's clock stands still while Windows sleeps: sudo hwclock -s, or `wsl --shutdown` in Windows"
    shown = _shown(now)
    built = max((path.stat().st_mtime for path in Path(HOUSE, "daemon").rglob("*.py")), default=0.0)
    trouble = False
    if now < built - DAY:
        trouble = True
        yield error(check, f"the clock says {shown}, before this program was installed", way)
    elif now > built + 20 * 365 * DAY:
        trouble = True
        yield error(check, f"the clock says {shown}, 20 years after this program was installed", way)
    drift = _file_clock(results_folder(context), now)
    if not trouble and drift is not None and abs(drift) > LARGEST_DRIFT:
        trouble = True
        yield warning(
            check,
            f"files made in {results_folder(context)} are dated {abs(drift):.0f} s "
            f"{'ahead of' if drift > 0 else 'behind'} the clock ({shown})",
            way,
        )
    if machine.monotonic() < first:
        trouble = True
        yield error(
            check,
            "the monotonic clock went back: every deadline depends on it",
            "a broken hypervisor or time source: `cat /sys/devices/system/clocksource/*/current_clocksource`",
        )
    if not trouble:
        yield ok(check, f"{shown}, and the monotonic clock moves on")


def _shown(now: float) -> str:
    try:
        return f"{datetime.fromtimestamp(now, timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, OSError, ValueError):
        return f"{now:.0f} s since 1970"


def _file_clock(folder: Path, now: float) -> float | None:
    """Seconds by which a file made now is dated later than ``now``; None where none can be made."""
    import tempfile

    place = nearest(folder)
    try:
        with tempfile.NamedTemporaryFile(prefix=".poseward-doctor-", dir=place) as file:
            return os.fstat(file.fileno()).st_mtime - now
    except OSError:
        return None


def check_text(context: Context, check: str) -> Iterator[Finding]:
    """File names and output in UTF-8: videos have names in every language."""
    names, output = context.machine.file_encoding(), context.machine.text_encoding()
    way = "export LANG=C.UTF-8 (Environment=LANG=C.UTF-8 in a unit)"
    if names.lower().replace("-", "") != "utf8":
        yield error(check, f"file names are read as {names}: videos with other letters cannot be opened", way)
    elif output.lower().replace("-", "") != "utf8":
        yield warning(check, f"output is written as {output}: names with other letters are garbled", way)
    else:
        yield ok(check, "file names and output are UTF-8")
