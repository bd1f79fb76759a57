"""Inputs: videos, folders of numbered images and single images, behind one protocol.

What an input is, its content decides, not its name.
"""

from __future__ import annotations

import stat
from pathlib import Path

from stages.source.base import Decoded, Progress, Source, SourceError, SourceInfo
from stages.source.container import Opening
from stages.source.images import ImageSource
from stages.source.kinds import check_kind, unreadable
from stages.source.reading import is_image
from stages.source.video import VideoSource

__all__ = ["Decoded", "Source", "SourceError", "SourceInfo", "open_source"]


def open_source(
    path: str | Path,
    *,
    max_pixels: int,
    working: int | None = None,
    stream: int | None = None,
    threads: int = 1,
    progress: Progress = lambda: None,
) -> Source:
    """Open a video, an image or a folder of images.

    Args:
        path: of the file or folder.
        max_pixels: the largest frame allowed, in pixels.
        working: frames with more pixels are scaled down to this many; None gives all in the size that `SourceInfo`
            says, as drawing on them needs it.
        stream: the number of the video stream in its file; None for the likeliest.
        threads: threads that a video decoder may use.
        progress: called while an input is opened, and while what is before a frame is read: both take the longer
            the longer the input is.

    Raises:
        SourceError: the input cannot be worked on at all; its ``name`` says how (see `SourceError`).
    """
    path = Path(path)
    status = check_kind(path)
    try:
        if stat.S_ISDIR(status.st_mode) or is_image(path):
            return ImageSource(path, max_pixels, working, progress)
    except OSError as error:
        raise unreadable(path, error) from error
    return VideoSource(Opening(path, max_pixels, threads, stream), working, progress)
