"""What is given as a video and cannot even be looked at."""

from __future__ import annotations

import os
from pathlib import Path


def hindrance(video: Path) -> tuple[str, str] | None:
    """Why there is nothing to be opened: a stable name and a message; None where there is something."""
    try:
        os.stat(video)
    except (FileNotFoundError, NotADirectoryError):
        if video.is_symlink():
            return "no-such-file", f"{video} is a link to {os.readlink(video)}, which is not there"
        return "no-such-file", f"{video}: no such file"
    except OSError as error:  # links that lead in a circle, a folder that may not be entered, a name too long
        return "unreadable-file", f"{video} cannot be read: {error.strerror}"
    return None
