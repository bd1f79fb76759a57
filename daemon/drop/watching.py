"""When to look into the folder: told by the kernel where that works, by the clock elsewhere."""

from __future__ import annotations

import os
import threading
from pathlib import Path

BLIND = ("9p", "drvfs", "cifs", "smb", "nfs", "fuse", "vboxsf", "virtiofs", "prl_fs", "vmhgfs")
"""File systems whose changes from outside the kernel does not tell of."""
RETRY = 2.0


def is_blind(folder: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether the kernel cannot tell of changes in ``folder``, as on Windows drives under WSL."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return False
    best, kind = "", ""
    real = os.path.realpath(folder)
    for line in lines:
        parts = line.split()
        if len(parts) < 3:
            continue
        point = parts[1].replace("\\040", " ")
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, parts[2]
    return kind.startswith(BLIND)


class Watcher:
    """Sets ``changed`` when something happens in ``folder``; a folder that is gone is waited for."""

    def __init__(self, folder: Path, changed: threading.Event) -> None:
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
            try:
                for changes in watch(
                    self._folder, watch_filter=None, stop_event=self._stop, recursive=False, rust_timeout=200,
                    yield_on_timeout=True, raise_interrupt=False, debounce=100,
                ):  # fmt: skip
                    if changes:
                        self._changed.set()
                    elif not self._folder.exists():
                        break  # a watch outlives its folder, deaf to the next one of that name
            except (OSError, RuntimeError):  # the folder is gone, or the kernel has no more watches
                pass
            self._changed.set()
            self._stop.wait(RETRY)
