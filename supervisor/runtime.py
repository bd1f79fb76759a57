"""The runtime folder: sockets live there, and nothing of a dead run stays there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "poseward-"
LOCK_NAME = "lock"
LONGEST_SOCKET_NAME = 24
"""Longest file name of a socket below the folder."""
UNIX_PATH_MAX = 107

_held: dict[Path, int] = {}


class RuntimePathError(Exception):
    """No folder is short enough for Unix sockets (their paths end at 107 bytes)."""


def make_runtime(base: Path | None = None) -> Path:
    """Make a private (0700), locked folder for sockets, and sweep what dead runs left beside it.

    Args:
        base: the folder to make it in; default is ``$XDG_RUNTIME_DIR`` or the folder for temporary files,
            whichever is short enough.

    Raises:
        RuntimePathError: the resulting socket paths would be longer than a Unix socket's may be.
    """
    candidates = [base] if base else [Path(os.environ.get("XDG_RUNTIME_DIR", "")), Path(tempfile.gettempdir())]
    for candidate in [*candidates, Path("/tmp")] if base is None else candidates:
        if not candidate.is_absolute() or not os.access(candidate, os.W_OK):
            continue
        if len(os.fsencode(candidate)) + len(PREFIX) + 8 + 2 + LONGEST_SOCKET_NAME > UNIX_PATH_MAX:
            continue
        sweep(candidate)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=candidate))
        _lock(folder)
        return folder
    raise RuntimePathError(
        f"no writable folder for sockets with a short enough path (tried {', '.join(map(str, candidates))}): "
        f"Unix socket paths end at {UNIX_PATH_MAX} bytes; set a shorter runtime folder, such as /tmp"
    )


def restore_runtime(folder: Path) -> None:
    """Make a folder again that somebody has removed: who clears away temporary files, or a session's at its end.

    Raises:
        RuntimePathError: it cannot be made again.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = _held.pop(folder, None)
        if descriptor is not None:
            os.close(descriptor)
        _lock(folder)
    except OSError as error:
        raise RuntimePathError(
            f"the folder of the sockets, {folder}, has been removed and cannot be made again ({error.strerror}); "
            "start Poseward anew, with a runtime folder that nobody clears"
        ) from error


def remove_runtime(folder: Path) -> None:
    """Remove the folder and give up its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def _lock(folder: Path) -> None:
    # Locked before it has its name: nobody's sweep may find it free.
    descriptor = os.open(folder / "new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.rename(folder / "new", folder / LOCK_NAME)
    _held[folder] = descriptor


def sweep(base: Path) -> list[Path]:
    """Remove the runtime folders below ``base`` whose owner is dead (the kernel has dropped its lock)."""
    removed = []
    for folder in base.glob(f"{PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or folder.is_symlink():
                continue
            descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # not ours, or its owner is only now making it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        finally:
            os.close(descriptor)
    return removed
