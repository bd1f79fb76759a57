"""Folders and what is on them: rights, room, sockets, and whether the drop folder's changes are noticed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from daemon.doctor.api import state_folder
from daemon.doctor.check import Context, Finding, Machine, error, exit_code, note, ok, warning
from supervisor.runtime import LONGEST_SOCKET_NAME, PREFIX, UNIX_PATH_MAX

MEGABYTE = 1 << 20
LEAST_ROOM = 256 * MEGABYTE
"""Below this a job's results do not fit: error."""
LITTLE_ROOM = 2048 * MEGABYTE
"""Below this a few long videos fill it: warning. A minute of video leaves 20 MB and more with vertices."""
NOTICE_SECONDS = 4.0
"""Within which a new file in the drop folder must have been noticed."""
BLIND = {"9p", "drvfs", "cifs", "smb3", "nfs", "nfs4", "fuse.sshfs", "fuse.rclone", "virtiofs", "vboxsf"}
"""File systems that do not tell of what others (Windows, another machine) change on them."""


def results_folder(context: Context) -> Path:
    return Path(str(context.setting("results.folder", "results"))).expanduser()


def check_folders(context: Context, check: str) -> Iterator[Finding]:
    """Results, state and log folders can be written: tried with a hidden file that is removed again."""
    folders = {"results.folder": results_folder(context), "daemon.state": state_folder(context)}
    if log := context.setting("daemon.log_file", ""):
        folders["daemon.log_file"] = Path(log).expanduser().parent
    for setting, folder in folders.items():
        yield _writable(check, setting, folder)


def _writable(check: str, setting: str, folder: Path) -> Finding:
    place = nearest(folder)
    if (hindrance := _unmakeable(folder)) is not None:
        return error(
            check, f"{setting}: {folder} {hindrance[0]}", f"{hindrance[1]}, or set {setting} to another folder"
        )
    made = "" if place == folder else f" (will be made below {place})"
    if not place.is_dir():
        return error(
            check,
            f"{setting}: {folder} cannot be a folder: {place} is a file",
            f"move {place} away, or set {setting} to another folder",
        )
    try:
        descriptor, name = tempfile.mkstemp(prefix=".poseward-doctor-", dir=place)
        try:
            os.write(descriptor, b"x" * 4096)
            os.fsync(descriptor)
            os.replace(name, name + ".2")  # results are renamed into place
        finally:
            os.close(descriptor)
            for left in (name, name + ".2"):
                Path(left).unlink(missing_ok=True)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            way = f"make room on that disk (`df -h '{place}'`), or set {setting} to a folder on another"
        elif problem.errno == errno.EROFS:
            way = f"it is mounted read-only: set {setting} to a folder elsewhere"
        else:
            way = f"sudo chown $(id -u) '{place}', or set {setting} to a folder of yours"
        return error(check, f"{setting}: {folder} cannot be written: {problem.strerror}", way)
    return ok(check, f"{setting}: {folder.absolute()} can be written{made}")


def nearest(folder: Path) -> Path:
    """The folder itself or the first above it that is there; a link that leads nowhere is not."""
    folder = folder.absolute()
    return next((place for place in (folder, *folder.parents) if os.path.exists(place)), Path("/"))


def _unmakeable(folder: Path) -> tuple[str, str] | None:
    """Why a folder cannot come to be, whoever makes it, and the way out."""
    folder, place = folder.absolute(), nearest(folder)
    longest, whole = os.pathconf(place, "PC_NAME_MAX"), os.pathconf(place, "PC_PATH_MAX")
    for made in (*reversed(folder.parents), folder):
        if os.path.islink(made) and not os.path.exists(made):
            below = "is" if made == folder else f"is below {made},"
            leads = f"{below} a link to {os.readlink(made)}, which is not there"
            return leads, f"make what it leads to, or remove {made}"
        if (size := len(os.fsencode(made.name))) > longest:
            return f"has a name of {size} bytes in it; on that disk they end at {longest}", "choose a shorter name"
    if (size := len(os.fsencode(folder))) >= whole:
        return f"is a path of {size} bytes; they end at {whole - 1}", "choose a shorter one"
    return None


def check_disk(context: Context, check: str) -> Iterator[Finding]:
    """Room, and numbers of files left, on each file system where results, state and temporary files go."""
    temporary = Path(context.machine.environ.get("TMPDIR", "/tmp"))
    folders = {
        "results.folder": results_folder(context),
        "daemon.state": state_folder(context),
        "TMPDIR": temporary,
    }
    disks: dict[int, dict[str, Path]] = {}
    for setting, folder in folders.items():
        place = nearest(folder)
        disks.setdefault(place.stat().st_dev, {})[setting] = place
    for users in disks.values():
        yield _room(context, check, next(iter(users.values())), list(users))


def _room(context: Context, check: str, place: Path, settings: list[str]) -> Finding:
    room = context.machine.statvfs(place)
    free = room.f_bavail * room.f_frsize
    names = ", ".join(settings)
    way = f"make room (`df -h '{place}'`; retention.results_gb prunes by itself), or set {settings[0]} elsewhere"
    where = f"{free // MEGABYTE} MB are free for {names} (the disk of {place})"
    if room.f_files and not room.f_favail:
        return error(
            check, f"no file can be made for {names}: none are left on the disk of {place} (`df -i`)", way
        )
    if free < LEAST_ROOM:
        return error(check, f"{where}, results need at least {LEAST_ROOM // MEGABYTE} MB", way)
    if free < LITTLE_ROOM:
        return warning(check, f"{where}: enough for a few short videos", way)
    return ok(check, where)


def check_runtime(context: Context, check: str) -> Iterator[Finding]:
    """The folder for sockets: short enough, ours alone, and able to hold a socket, which is tried."""
    machine = context.machine
    if configured := context.setting("daemon.runtime", ""):
        yield from _socket_folder(check, "daemon.runtime", Path(configured).expanduser(), machine)
        return
    # As `supervisor.runtime.make_runtime` does: the first that can be used.
    places = {"XDG_RUNTIME_DIR": machine.environ.get("XDG_RUNTIME_DIR"), "TMPDIR": machine.environ.get("TMPDIR")}
    for origin, named in places.items():
        if not named:
            continue
        found = list(_socket_folder(check, origin, Path(named), machine))
        if exit_code(found) < 2:
            yield from found
            return
        yield from (note(check, f"{finding.found}; another is used instead") for finding in found)
    yield from _socket_folder(check, "the temporary folder", Path("/tmp"), machine)


def _socket_folder(check: str, origin: str, folder: Path, machine: Machine) -> Iterator[Finding]:
    way = (
        "set daemon.runtime to a short folder of yours on a Linux file system, such as /tmp or /run/user/$(id -u)"
    )
    longest = len(os.fsencode(folder)) + len(PREFIX) + 8 + 2 + LONGEST_SOCKET_NAME
    if not folder.is_absolute() or not folder.is_dir():
        yield error(check, f"{origin}: {folder} is not a folder with an absolute path", way)
        return
    if longest > UNIX_PATH_MAX:
        yield error(
            check,
            f"{origin}: sockets below {folder} would have paths of {longest} bytes, they end at {UNIX_PATH_MAX}",
            way,
        )
        return
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (machine.uid, 0):
        yield warning(check, f"{origin}: {folder} belongs to user {status.st_uid}, this is {machine.uid}", way)
    elif mode & 0o022 and not mode & stat.S_ISVTX:
        yield warning(
            check,
            f"{origin}: others can replace what is in {folder} (mode {mode:o})",
            f"chmod {'1777' if mode & 0o002 else '700'} '{folder}', or {way}",
        )
    problem = _try_socket(folder)
    if problem:
        yield error(check, f"{origin}: no socket can be made in {folder}: {problem}", way)
    else:
        yield ok(check, f"{origin}: {folder}, mode {mode:o}, socket paths of at most {longest} bytes")


def _try_socket(folder: Path) -> str:
    try:
        with (
            tempfile.TemporaryDirectory(prefix="poseward-doctor-", dir=folder) as inside,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            listener.bind(f"{inside}/s")
    except OSError as problem:
        return problem.strerror or str(problem)
    return ""


def check_drop(context: Context, check: str) -> Iterator[Finding]:
    """The drop folder is there, can be moved out of, and tells of a new file: tried with a hidden one."""
    named = str(context.setting("drop.folder", ""))
    if not named:
        yield ok(check, "no drop folder is configured (drop.folder)")
        return
    folder = Path(named).expanduser().absolute()
    poll = float(context.setting("drop.poll", 0.0))
    if not folder.is_dir():
        yield error(check, f"drop.folder: {folder} is no folder", f"mkdir -p '{folder}', or set drop.folder")
        return
    if results_folder(context).absolute() == folder:
        yield error(
            check,
            f"drop.folder and results.folder are both {folder}: results would be taken for videos",
            "set results.folder to another folder",
        )
    writable = _writable(check, "drop.folder", folder)
    if writable.severity.exit_code:
        yield writable
        return
    kind = file_system(context.machine, folder)
    if poll > 0:
        yield ok(check, f"drop.folder: {folder} is looked at every {poll:g} s")
        return
    if kind in BLIND:
        side = "Windows" if context.machine.wsl and kind in ("9p", "drvfs") else "other machines"
        yield note(
            check,
            f"drop.folder: {folder} is on {kind}: the kernel does not tell of files that {side} put there",
            "set drop.poll = 2 to look every 2 seconds; a folder on the Linux file system is faster in everything",
        )
        return
    problem = try_notification(folder)
    if problem:
        yield warning(
            check,
            f"drop.folder: {folder} does not tell of new files: {problem}",
            "set drop.poll = 2; if it says that a limit is reached: sudo sysctl fs.inotify.max_user_instances=512 "
            "fs.inotify.max_user_watches=524288",
        )
    else:
        yield ok(check, f"drop.folder: {folder} ({kind or 'unknown file system'}) tells of new files")


def try_notification(folder: Path, seconds: float = NOTICE_SECONDS) -> str:
    """Make a hidden file in ``folder`` and wait for the kernel to tell; why it did not, or empty."""
    import watchfiles

    stop = threading.Event()
    probe: Path | None = None
    step = 100
    try:
        looks = watchfiles.watch(
            folder, watch_filter=None, stop_event=stop, rust_timeout=step, yield_on_timeout=True,
            force_polling=False, recursive=False, debounce=50, step=10, raise_interrupt=False,
        )  # fmt: skip
        for number, changes in enumerate(looks):
            if probe is None:  # the first look has passed, so the watch stands
                descriptor, name = tempfile.mkstemp(prefix=".poseward-doctor-", dir=folder)
                os.close(descriptor)
                probe = Path(name)
            elif any(Path(path).name == probe.name for _, path in changes):
                return ""
            elif number * step / 1000 > seconds:
                break
    except (OSError, RuntimeError) as problem:
        return str(problem)
    finally:
        stop.set()
        if probe is not None:
            with contextlib.suppress(OSError):
                probe.unlink()
    return f"nothing within {seconds:.0f} s"


def file_system(machine: Machine, folder: Path) -> str:
    """The kind of file system a folder is on, from /proc/mounts; empty where that does not say."""
    best, kind = "", ""
    real = str(folder.resolve())
    for line in machine.read("/proc/mounts").splitlines():
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        point = parts[1].replace("\\040", " ")
        below = real == point or real.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(best):
            best, kind = point, parts[2]
    return kind
