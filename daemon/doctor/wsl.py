"""Windows' Subsystem for Linux: GPU library, memory limit, and GPU memory that spills to the host's."""

from __future__ import annotations

from collections.abc import Iterator

from daemon.doctor.check import Context, Finding, error, note, ok, warning
from daemon.doctor.devices import gpu_stages
from daemon.doctor.system import total_memory

LIBRARIES = "/usr/lib/wsl/lib"
LITTLE_MEMORY_MB = 7 * 1024
"""Loading a GPU backend's models passes them through host memory, beside the ring and four processes."""


def check_wsl(context: Context, check: str) -> Iterator[Finding]:
    """Nothing but one line outside WSL."""
    machine = context.machine
    if not machine.wsl:
        yield ok(check, "this is not WSL")
        return
    version = machine.read("/proc/version")
    if "Microsoft" in version and "WSL2" not in version:
        yield error(
            check,
            "this is WSL 1: no GPU, no systemd, slow files",
            "in Windows: wsl --set-version DISTRIBUTION 2 (`wsl -l -v` names it)",
        )
        return
    yield ok(check, "this is WSL 2")
    wanted = gpu_stages(context)
    yield from _library(context, check, bool(wanted))
    yield from _memory(context, check, bool(wanted))
    if wanted:
        yield note(
            check,
            "under WSL too little GPU memory does not fail: the Windows driver spills to host memory, tens of times "
            "slower, and NVML names up to 2 GB more as free than there is",
            "keep the models' share of the GPU below what is free ([stages.options]); a sudden fall of the rate in "
            "`poseward status` with a full GPU is this",
        )
    yield note(
        check,
        "Windows ends WSL when no window of it is open, whatever runs under systemd",
        "keep one open, or in Windows: wsl --exec dbus-launch true (a task at logon)",
    )


def _library(context: Context, check: str, wanted: bool) -> Iterator[Finding]:
    machine = context.machine
    there = (machine.root / LIBRARIES.lstrip("/") / "libcuda.so.1").exists()
    severity = error if wanted else note
    if not there:
        yield severity(
            check,
            f"{LIBRARIES}/libcuda.so.1 is not there: Windows passes no GPU on",
            "install the NVIDIA driver in Windows (never inside WSL), then there: wsl --update && wsl --shutdown",
        )
        return
    lists = (machine.root / "etc/ld.so.conf.d").glob("*.conf")
    known = any(LIBRARIES in machine.read(f"/etc/ld.so.conf.d/{path.name}") for path in lists)
    known = known or LIBRARIES in machine.environ.get("LD_LIBRARY_PATH", "").split(":")
    if known:
        yield ok(check, f"libcuda is in {LIBRARIES}, which is on the library path")
    else:
        yield severity(
            check,
            f"libcuda is in {LIBRARIES}, which is not on the library path",
            f"echo {LIBRARIES} | sudo tee /etc/ld.so.conf.d/ld.wsl.conf && sudo ldconfig",
        )


def _memory(context: Context, check: str, wanted: bool) -> Iterator[Finding]:
    total = total_memory(context.machine)
    if total is None:
        return
    if total < LITTLE_MEMORY_MB:
        yield (warning if wanted else note)(
            check,
            f"WSL has {total} MB of memory in all (by default half of Windows'): little for models that load "
            "through it",
            "in %USERPROFILE%\\.wslconfig: [wsl2] memory=12GB, then in Windows: wsl --shutdown",
        )
    else:
        yield ok(check, f"WSL has {total} MB of memory in all (.wslconfig decides)")
