"""Opening a video file by PyAV, so that it is only a video file and only of a size that is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from stages.names import spelled
from stages.source.base import SourceError, too_large

UNTRUSTED_FORMATS = frozenset(("hls", "dash", "concat", "imf", "image2", "tty", "lrc", "sdp", "rtsp"))
"""Lists that name other files or addresses, and text that is drawn as pictures: not videos."""

GUESSED_FORMATS = frozenset(("tty", "lrc", "sdp"))
"""Of these, what FFmpeg takes any text or noise for."""

DECODER_PADDING = 1 << 22
"""Pixels that a decoder's own buffers may take beyond the frame: a tight limit would refuse small frames."""

STILL_CODECS = frozenset(("mjpeg", "png", "bmp", "gif", "tiff", "webp", "jpeg2000", "jpegls", "jpegxl"))
"""Codecs of covers: taken for the video only where nothing else is there."""

ALONE_CODECS = frozenset(("mjpeg",))
"""Codecs whose frames stand alone, but whose decoder takes what one lacks from an earlier one without saying so:
each gets a decoder of its own."""

NOT_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails


@dataclass(frozen=True)
class Opening:
    """How a video file is opened: at most ``max_pixels`` a frame, with ``threads`` for its decoder, and the stream of
    number ``stream`` in the file, None for the one that the video is most likely to be. A ``strict`` decoder refuses
    what it could only make up, where it would not say so otherwise."""

    path: Path
    max_pixels: int
    threads: int = 1
    stream: int | None = None
    strict: bool = False

    def open(self) -> tuple[Any, Any]:
        """The opened container, to be closed by the caller, and the video stream, set up for decoding.

        Raises:
            SourceError: unreadable-video, unsupported, no-video-stream, no-such-stream or too-large.
        """
        try:
            with spelled(self.path) as name:
                # "file:" keeps a colon in the name from being taken for a protocol.
                container = av.open(f"file:{name}", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            why = reason_of(error)
            raise SourceError(
                "unreadable-video",
                f"{self.path} is neither a picture nor a video that can be read, or is cut off before its index: {why}",
            ) from error
        try:
            return container, self._set_up(self._chosen(container))
        except BaseException:
            container.close()
            raise

    def _chosen(self, container: Any) -> Any:
        formats = set(container.format.name.split(","))
        if GUESSED_FORMATS & formats:
            raise SourceError(
                "unreadable-video",
                f"{self.path} is neither a picture nor a video: its content is of no such format",
            )
        if UNTRUSTED_FORMATS & formats:
            raise SourceError("unsupported", f"{self.path} is a {container.format.long_name}, not a video file")
        if self.stream is not None:
            found = next((s for s in container.streams.video if s.index == self.stream), None)
            if found is None:
                raise SourceError(
                    "no-such-stream", f"{self.path} has no video in stream {self.stream}: {in_words(container)}"
                )
            return found
        videos = [s for s in container.streams.video if not s.disposition & NOT_VIDEO]
        if not videos:
            raise SourceError("no-video-stream", f"{self.path} has no video stream: {in_words(container)}")
        return max(videos, key=_likelihood)

    def _set_up(self, stream: Any) -> Any:
        context = stream.codec_context
        if context is None:
            raise SourceError(
                "unsupported",
                f"{self.path}: this build of FFmpeg has no decoder for its video stream {stream.index}",
            )
        if context.width * context.height > self.max_pixels:
            raise too_large(self.path, context.width, context.height, self.max_pixels)
        # Frame threads stop without a word where a file is damaged; slice threads report it.
        context.thread_type = "SLICE"
        context.thread_count = self.threads
        context.options = self._limits
        return stream

    @property
    def _limits(self) -> dict[str, str]:
        return {"max_pixels": str(2 * self.max_pixels + DECODER_PADDING)}

    def decode(self, stream: Any, packet: Any) -> list[Any]:
        """The frames that come with a packet of ``stream``.

        Raises:
            av.FFmpegError: it is damaged.
        """
        used = stream.codec_context
        if used.name not in ALONE_CODECS:
            return list(packet.decode())
        context: Any = av.CodecContext.create(used.name, "r")
        context.extradata = used.extradata
        context.options = {**self._limits, **({"err_detect": "explode"} if self.strict else {})}
        return [*context.decode(packet), *context.decode(None)]


def in_words(container: Any) -> str:
    """What streams a file has, by number."""
    return "it has " + (", ".join(map(_described, container.streams)) or "nothing known")


def choice_note(container: Any, chosen: Any) -> str | None:
    """Which stream was chosen, where there are several that could be meant."""
    videos = [s for s in container.streams.video if not s.disposition & NOT_VIDEO]
    if len(videos) < 2:
        return None
    others = ", ".join(_described(stream) for stream in videos if stream is not chosen)
    return f"of its video streams, {_described(chosen)} is read; also there: {others} (--stream N reads another)"


def _likelihood(stream: Any) -> tuple[bool, bool, bool, int, int]:
    context = stream.codec_context
    if context is None:
        return False, False, False, 0, -stream.index
    still = context.name in STILL_CODECS
    flagged = bool(stream.disposition & Disposition.default)
    return True, not still, flagged, context.width * context.height, -stream.index


def _described(stream: Any) -> str:
    context = stream.codec_context
    codec = "unknown" if context is None else context.codec.canonical_name
    if stream.type != "video":
        return f"{stream.index}: {stream.type} {codec}"
    cover = " (a cover picture)" if stream.disposition & NOT_VIDEO else ""
    size = "" if context is None else f" {context.width}x{context.height}"
    return f"{stream.index}: {codec}{size}{cover}"


def reason_of(error: Exception) -> str:
    """FFmpeg's own words for an error, without its codes."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
