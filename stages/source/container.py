"""Opening a video file by PyAV, so that it is only a video file and only of a size that is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from stages.names import spelled
from stages.source.base import SourceError, too_large

UNTRUSTED_FORMATS = frozenset(("hls", "dash", "concat", "imf", "image2", "tty", "lrc", "sdp", "rtsp"))
"""Lists that name other files or addresses, and text that is drawn as pictures: not videos."""

DECODER_PADDING = 1 << 22
"""Pixels that a decoder's own buffers may take beyond the frame: a tight limit would refuse small frames."""


def open_stream(path: Path, max_pixels: int, threads: int) -> tuple[Any, Any]:
    """The opened container, to be closed by the caller, and its first video stream, set up for decoding.

    Raises:
        SourceError: unreadable-video, unsupported, no-video-stream or too-large.
    """
    try:
        with spelled(path) as name:
            # "file:" keeps a colon in the name from being taken for a protocol.
            container = av.open(f"file:{name}", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SourceError(
            "unreadable-video", f"{path} is not a video, or is cut off before its index: {reason_of(error)}"
        ) from error
    try:
        return container, _video_stream(container, path, max_pixels, threads)
    except BaseException:
        container.close()
        raise


def _video_stream(container: Any, path: Path, max_pixels: int, threads: int) -> Any:
    if UNTRUSTED_FORMATS & set(container.format.name.split(",")):
        raise SourceError("unsupported", f"{path} is a {container.format.long_name}, not a video file")
    cover = Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing known"
        raise SourceError("no-video-stream", f"{path} has no video stream (it has: {kinds})")
    context = stream.codec_context
    if context is None:
        raise SourceError("unsupported", f"{path}: this build of FFmpeg has no decoder for its video stream")
    if context.width * context.height > max_pixels:
        raise too_large(path, context.width, context.height, max_pixels)
    # Frame threads stop without a word where a file is damaged; slice threads report it.
    context.thread_type = "SLICE"
    context.thread_count = threads
    context.options = {"max_pixels": str(2 * max_pixels + DECODER_PADDING)}
    return stream


def reason_of(error: Exception) -> str:
    """FFmpeg's own words for an error, without its codes."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
