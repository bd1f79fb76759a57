"""When to look into the folder: told by the kernel where that works, by the clock elsewhere."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

BLIND = (
    "9p", "drvfs", "cifs", "smb", "nfs", "fuse", "vboxsf", "virtiofs", "prl_fs", "vmhgfs", "afs", "ceph", "lustre",
    "beegfs", "gpfs", "ocfs2", "gfs2",
)  # fmt: skip
"""Beginnings of the names of file systems whose changes from outside the kernel does not tell of."""
RETRY = 2.0


def is_blind(folder: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether the kernel cannot tell of changes in ``folder``, as on Windows drives under WSL."""
    try:
        lines = os.fsdecode(mounts.read_bytes()).split("\n")
    except OSError:
        return False
    best, kind = "", ""
    real = os.path.realpath(folder)
    for line in lines:
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), parts[1])
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, parts[2]
    return kind.startswith(BLIND)


class Watcher:
    """Sets ``changed`` when something happens in ``folder``; a folder that is gone is waited for.

    Where the kernel has no more watches, ``changed`` is set every `RETRY` seconds, and ``told`` is False.
    """

    def __init__(self, folder: Path, changed: threading.Event) -> None:
        self.told = True
        self._folder = folder
        self._changed = changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drop-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        from watchfiles import watch

        while not self._stop.is_set():
            watched, new = self._identity(), True
            try:
                for changes in watch(
                    self._folder, watch_filter=None, stop_event=self._stop, recursive=False, rust_timeout=200,
                    yield_on_timeout=True, raise_interrupt=False, debounce=100, force_polling=False,
                ):  # fmt: skip
                    self.told = True
                    if changes or new:  # what came before the watch stood, nobody was told of
                        self._changed.set()
                    new = False
                    if self._identity() != watched:
                        break  # a watch outlives its folder, deaf to the next one of that name
            except FileNotFoundError:
                pass
            except (OSError, RuntimeError):
                self.told = False
            self._changed.set()
            self._stop.wait(RETRY)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._folder.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
