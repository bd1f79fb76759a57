"""What is no input at all, told apart without opening it or reading it whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stages.source.base import SourceError

_KINDS = {
    stat.S_ISFIFO: "a pipe (FIFO)", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
}  # fmt: skip


def check_kind(path: str | Path) -> os.stat_result:
    """That there is a file with something in it, or a folder: without opening it, since a pipe that nobody writes to
    would never open, and a device never end.

    Raises:
        SourceError: missing-file, no-permission, unsupported, empty-file or unreadable-file.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    kind = next((name for is_kind, name in _KINDS.items() if is_kind(status.st_mode)), None)
    if kind is not None:
        raise SourceError(
            "unsupported", f"{path} is {kind}, not a file or folder; save what comes out of it to a file"
        )
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise SourceError("empty-file", f"{path} is empty; was it still being copied?")
    return status


def check_input(path: Path) -> None:
    """`check_kind`, and that it may be read, and of a folder that there is an image in it: before anything is read
    whole, as hashing the content does.

    Raises:
        SourceError: see `check_kind`; no-images too.
    """
    from stages.source.images import check_folder  # OpenCV takes long to load, and files do not need it

    try:
        if stat.S_ISDIR(check_kind(path).st_mode):
            check_folder(path)
        elif not os.access(path, os.R_OK):
            raise PermissionError
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: OSError) -> SourceError:
    """The error for a path of which the system says no."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return SourceError("missing-file", f"{path} does not exist")
    if isinstance(error, PermissionError):
        return SourceError("no-permission", f"{path} may not be read by this user; check its permissions")
    return SourceError("unreadable-file", f"{path} cannot be read: {error.strerror}")
