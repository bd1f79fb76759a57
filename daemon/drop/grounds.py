"""The drop folder itself: made, checked, locked against a second daemon, and recognised when it comes back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from daemon.drop.names import CLAIMED, DONE, FAILED, is_readable
from daemon.settings.sources import ConfigError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class DropError(ConfigError):
    """The drop folder cannot be used; names it, the setting and the way out."""


class Grounds:
    """A drop folder with what belongs to it. The constructor only checks; `open` makes and locks.

    Args:
        folder: the drop folder, absolute.
        results: the results folder.
        notify: is told where the file system has no locks.

    Raises:
        DropError: one of the two lies in the other.
    """

    def __init__(self, folder: Path, results: Path, notify: Callable[[str, str], None]) -> None:
        self.folder = folder
        self.claimed = folder / CLAIMED
        self._notify = notify
        self._lock = -1
        self._device = -1
        if not is_readable(str(folder)):
            raise DropError(
                f"drop.folder = {str(folder)!a} is not UTF-8, as paths of videos must be: rename it, or choose"
                " another"
            )
        if _contains(results, folder) or _contains(folder, results):
            raise DropError(
                f"drop.folder = {folder} and results.folder = {results} lie in each other: choose two apart"
            )

    def open(self, *, make: bool = False) -> None:
        """Make what belongs to the folder, and lock it; with ``make`` the folder as well.

        Raises:
            DropError: the folder cannot be used, or another daemon serves it.
            OSError: it is not there, or cannot be reached.
        """
        self.close()
        if make:
            if os.path.lexists(self.folder) and not self.folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(self.folder))
            self.folder.mkdir(parents=True, exist_ok=True)
        device = self.folder.stat().st_dev
        if self._device not in (-1, device) and not self.claimed.is_dir():
            # What is left where a drive was mounted is not the folder.
            raise FileNotFoundError(errno.ENOENT, "its drive is not mounted", str(self.folder))
        for folder in (self.claimed, self.folder / DONE, self.folder / FAILED):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise DropError(f"drop.folder = {self.folder}: {folder.name} must be a folder: move it away")
            if found.st_dev != device:
                raise DropError(
                    f"drop.folder = {self.folder}: {folder.name}/ is on another file system, to which files cannot"
                    " be moved at once: unmount it, or choose another folder"
                )
        for folder in (self.folder, self.claimed, self.folder / DONE, self.folder / FAILED):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise DropError(
                    f"drop.folder = {self.folder}: {folder} cannot be written: change its owner or its mode, or"
                    " choose one that you can write"
                )
        self._take_lock()
        self._device = device

    def stands(self) -> bool:
        """Whether the folder is still the one that was opened.

        Raises:
            OSError: it cannot be reached.
        """
        if self._lock < 0:
            return False
        try:
            there = os.stat(self.claimed / LOCK)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(there, os.fstat(self._lock))

    def sync(self) -> None:
        """Have the renames so far outlive a power cut, where the file system can."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.claimed, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Let go of the lock. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        self._lock = os.open(self.claimed / LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise DropError(
                f"drop.folder = {self.folder}: another daemon takes files from it: stop that one, or choose"
                " another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self.close()
                raise
            self._notify(
                "folder-unlocked",
                f"{self.folder}: its file system has no locks ({error.strerror}): see to it yourself that only one"
                " daemon has this drop.folder",
            )


def _contains(outer: Path, inner: Path) -> bool:
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(outer))
