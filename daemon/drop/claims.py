"""Files that have been taken: each in a folder below ``.claimed`` named after the job that it becomes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from daemon.drop.incoming import Ready
from daemon.drop.names import ORIGINAL, is_ignored, is_readable, is_sidecar, readable, whose_sidecar
from daemon.drop.sidecar import Options, SidecarError, read_sidecar

LINK = "a link is never followed, lest it lead out of the folder: drop the file itself"


class Refused(Exception):  # noqa: N818  (not an error of the program)
    """A file that cannot become a job; ``name`` is a stable name, the text says the way out."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Claim:
    """What lies in a claimed folder; ``file`` is None where only sidecars are left.

    ``original`` is the file's name as it was dropped.
    """

    folder: Path
    file: Path | None
    sidecars: tuple[Path, ...]
    original: str


def claim(root: Path, ready: Ready, folder: Path) -> None:
    """Move a file and its sidecars from ``root`` into a new ``folder``: both, or neither.

    Raises:
        OSError: one cannot be moved, such as FileNotFoundError where it has vanished; all is as it was.
    """
    folder.mkdir()
    try:
        for name in (*ready.sidecars, ready.name):  # the file last: it is never taken without them
            os.rename(root / name, folder / name)
    except OSError:
        for name in ready.sidecars:
            if os.path.lexists(folder / name):
                with contextlib.suppress(OSError):
                    move_back(root, folder / name)
        with contextlib.suppress(OSError):
            folder.rmdir()  # what could not be moved back is found by the next look at the claimed folders
        raise


def make_readable(found: Claim, file: Path) -> Path:
    """Give a claimed file and its sidecars names that are UTF-8; returns the file's path.

    Its own name is kept in a file beside it, and a kill in between is made good by another call.

    Raises:
        OSError: they cannot be renamed.
    """
    if not is_readable(file.name):
        (found.folder / ORIGINAL).write_bytes(os.fsencode(file.name))
    for path in (file, *found.sidecars):
        if not is_readable(path.name):
            os.rename(path, path.with_name(readable(path.name)))
    return file.with_name(readable(file.name))


def move_back(root: Path, sidecar: Path) -> bool:
    """Let a sidecar wait for its file again; False where a newer one waits there."""
    if os.path.lexists(root / sidecar.name):
        return False
    os.rename(sidecar, root / sidecar.name)
    return True


def read_claim(folder: Path, name: str | None) -> Claim:
    """What lies in a claimed folder; ``name`` is the file's, where it is known.

    Raises:
        OSError: the folder cannot be read.
    """
    # File managers and network drives leave hidden files of their own wherever they look.
    names = sorted(one for one in os.listdir(folder) if not is_ignored(one))
    if name not in names:
        name = next((one for one in names if not is_sidecar(one)), None) if name is None else None
    sidecars = (one for one in names if is_sidecar(one))
    if name is None:
        return Claim(folder, None, tuple(folder / one for one in sidecars), "")
    beside = tuple(folder / one for one in sidecars if readable(whose_sidecar(one)) == readable(name))
    return Claim(folder, folder / name, beside, _original(folder, name))


def _original(folder: Path, name: str) -> str:
    try:
        kept = os.fsdecode((folder / ORIGINAL).read_bytes())
    except OSError:
        return name
    return kept if readable(kept) == name else name


def options_of(file: Path, sidecars: tuple[Path, ...]) -> Options:
    """What is asked of a claimed file.

    Raises:
        Refused: it cannot become a job.
        OSError: it cannot be looked at now.
    """
    found = file.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise Refused("link-refused", LINK)
    if not stat.S_ISREG(found.st_mode):
        raise Refused("not-a-file", "it was a file when it was taken, and is none now: drop the file again")
    if found.st_size == 0:
        raise Refused(
            "empty-file", "the file is empty: was it copied whole? If it comes slowly, raise drop.settle"
        )
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP):
            raise Refused("unreadable-file", f"{error.strerror}: check who may read it") from error
        raise
    if len(sidecars) > 1:
        names = " and ".join(side.name for side in sidecars)
        raise Refused("bad-sidecar", f"there are two sidecars, {names}: leave one and drop both again")
    if not sidecars:
        return Options()
    try:
        return read_sidecar(sidecars[0])
    except SidecarError as error:
        raise Refused("bad-sidecar", str(error)) from error
