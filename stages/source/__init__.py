"""Inputs: videos, folders of numbered images and single images, behind one protocol.

What an input is, its content decides, not its name.
"""

from __future__ import annotations

import stat
from pathlib import Path

from stages.source.base import Decoded, Progress, Source, SourceError, SourceInfo
from stages.source.images import ImageSource, is_image
from stages.source.video import VideoSource

__all__ = ["Decoded", "Source", "SourceError", "SourceInfo", "open_source"]


def open_source(
    path: str | Path, *, max_pixels: int, threads: int = 1, progress: Progress = lambda: None
) -> Source:
    """Open a video, an image or a folder of images.

    Args:
        path: of the file or folder.
        max_pixels: the largest frame allowed, in pixels.
        threads: threads that a video decoder may use.
        progress: called while an input is opened, and while what is before a frame is read: both take the longer
            the longer the input is.

    Raises:
        SourceError: the input cannot be worked on at all; its ``name`` says how (see `SourceError`).
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return ImageSource(path, max_pixels, progress)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError("unsupported", f"{path} is neither a file nor a folder")
        if status.st_size == 0:
            raise SourceError("empty-file", f"{path} is empty; was it still being copied?")
        if is_image(path):
            return ImageSource(path, max_pixels)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError("missing-file", f"{path} does not exist") from error
    except PermissionError as error:
        raise SourceError(
            "no-permission", f"{path} may not be read by this user; check its permissions"
        ) from error
    except OSError as error:
        raise SourceError("unreadable-file", f"{path} cannot be read: {error.strerror}") from error
    return VideoSource(path, max_pixels, threads, progress)
