"""Whether the results folder is the one that it was, and not what is left where its disk was mounted.

An empty mount point looks as if all results had been removed: jobs would be computed again, onto the wrong disk.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from daemon.jobs import summary

MARK = ".poseward-results"
RECORD = "results.json"


class ResultsFolder:
    """A results folder on a disk of its own is given a mark; where that is missing later, the disk is.

    One on the same disk as the state folder needs none: it is there when the daemon is.

    Args:
        folder: the results folder, absolute.
        state: the daemon's state folder.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self._state = state

    def away(self) -> str | None:
        """Why the folder must not be used now, for a person; None where it may. Changes nothing."""
        if not self._was_marked() or self._is_marked():
            return None
        return (
            f"results.folder = {self.folder} is not the folder that it was: mount its disk. If it was emptied or moved"
            f" on purpose: mkdir -p {self.folder}; touch {self.folder / MARK}"
        )

    def mark(self) -> None:
        """Have the folder recognised from now on."""
        with contextlib.suppress(OSError):
            if _device(self.folder) == _device(self._state) or self.away() is not None:
                return
            (self.folder / MARK).touch()
            if not self._was_marked():
                summary.write_json(self._state / RECORD, {"folder": str(self.folder)})

    def _was_marked(self) -> bool:
        try:
            return bool(json.loads((self._state / RECORD).read_text())["folder"] == str(self.folder))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _is_marked(self) -> bool:
        try:
            return (self.folder / MARK).exists()
        except OSError:
            return False


def _device(folder: Path) -> int:
    return folder.stat().st_dev
