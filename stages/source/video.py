"""Videos by PyAV: every frame of the file accounted for once, the same from wherever decoding starts.

Frames are found by their presentation times in an index of the packets, so a frame that the decoder drops
leaves a gap with a number instead of shifting those behind it. A decoder that has met damage goes on giving
pictures that look almost right; none is believed until the next key frame, where decoding starts afresh as
it would if it had begun there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import av
import cv2
import numpy as np

from stages.records import U8
from stages.source.base import Decoded, SourceError, SourceInfo, too_large
from stages.source.index import packets_of, read_index

PROBED_PACKETS = 20
"""Decoded when a video is opened: enough to see its frames come out in order, each with its own time."""

PROBED_KEYS = 20
"""Key frames tried before a video counts as unreadable."""

MAX_STEPS_BACK = 3
"""Key frames to go back from one that does not give a picture by itself (streams refreshed gradually)."""

UNTRUSTED_FORMATS = frozenset(("hls", "dash", "concat", "imf", "image2", "tty", "lrc", "sdp", "rtsp"))
"""Lists that name other files or addresses, and text that is drawn as pictures: not videos."""

NO_PICTURE = "the decoder gave no picture for this frame"


@dataclass(frozen=True)
class Damage:
    """Decoding met something wrong: no frame is believed from here to ``resume``, a key frame."""

    resume: int
    reason: str


Numbered: TypeAlias = tuple[int, Any]
"""A frame's number, and its packet or what was decoded from it."""


class VideoSource:
    """A video file. Constructing it reads the packets once and decodes the first frames.

    Args:
        path: of a regular file.
        max_pixels: a larger frame is an error before memory for it is asked for.
        threads: of the decoder.

    Raises:
        SourceError: nothing in the file can be decoded.
    """

    def __init__(self, path: Path, max_pixels: int, threads: int) -> None:
        self._path = path
        self._max_pixels = max_pixels
        self._threads = threads
        self._running: contextlib.ExitStack | None = None
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            self._index = read_index(container, stream, path.stat().st_size)
            if not self._index.count:
                raise SourceError("unreadable-video", f"{path}: there is not one frame in it")
            self._time_base = float(stream.time_base)
            rate = next((r for r in (stream.average_rate, stream.guessed_rate) if r and 0 < r <= 1000), None)
            codec = stream.codec_context.codec.canonical_name
        self.truncated = self._index.promised
        self._exact = self._index.exact
        first = self._probe()
        self._shape = (first.height, first.width)
        self._rotation = int(first.rotation)
        upright = self._shape if self._rotation % 180 == 0 else self._shape[::-1]
        count = self._index.count
        fps = float(rate) if rate else self._mean_rate()
        self.info = SourceInfo(
            kind="video",
            width=upright[1],
            height=upright[0],
            fps=fps,
            frames=count if self._exact else None,
            rotation=self._rotation,
            codec=codec,
            duration=self._time(count - 1) + 1 / fps if self._exact else count / fps,
        )

    def frames(self, start: int = 0) -> Iterator[Decoded]:
        self.close()
        return self._by_time(start) if self._exact else self._by_count(start)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    # -- opening ---------------------------------------------------------------------------------------

    def _open(self, stack: contextlib.ExitStack) -> tuple[Any, Any]:
        try:
            # "file:" keeps a colon in the name from being taken for a protocol.
            container = av.open(f"file:{self._path.absolute()}", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(
                "unreadable-video",
                f"{self._path} is not a video, or is cut off before its index: {_reason(error)}",
            ) from error
        stack.callback(container.close)
        if UNTRUSTED_FORMATS & set(container.format.name.split(",")):
            raise SourceError("unsupported", f"{self._path} is a {container.format.long_name}, not a video file")
        covers = av.stream.Disposition.attached_pic
        stream = next((s for s in container.streams.video if not s.disposition & covers), None)
        if stream is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing known"
            raise SourceError("no-video-stream", f"{self._path} has no video stream (it has: {kinds})")
        context = stream.codec_context
        if context is None:
            raise SourceError("unsupported", f"{self._path}: no decoder for its video stream in this FFmpeg build")
        if context.width * context.height > self._max_pixels:
            raise too_large(self._path, context.width, context.height, self._max_pixels)
        # Frame threads stop without a word where a file is damaged; slice threads report it.
        context.thread_type = "SLICE"
        context.thread_count = self._threads
        context.options = {"max_pixels": str(self._max_pixels)}
        return container, stream

    def _probe(self) -> Any:
        """The first frame that decodes; also finds out whether frames keep their times through the decoder."""
        if self._exact:
            for key in range(min(len(self._index.keys), PROBED_KEYS)):
                with contextlib.ExitStack() as stack:
                    found: list[tuple[int | None, Any]] = []
                    clean = True
                    wanted: list[int] = []
                    container, stream = self._open(stack)
                    for number, packet in self._packets_from(container, stream, key):
                        if len(wanted) == PROBED_PACKETS:
                            break
                        wanted.append(number)
                        try:
                            found += [(self._index.frame_at(frame.pts), frame) for frame in packet.decode()]
                        except av.FFmpegError:
                            clean = False
                            break
                    with contextlib.suppress(av.FFmpegError):
                        found += [(self._index.frame_at(f.pts), f) for f in stream.codec_context.decode(None)]
                if clean and not any(frame.is_corrupt for _, frame in found):
                    self._exact = [number for number, _ in found] == sorted(wanted)
                good = [frame for _, frame in found if not frame.is_corrupt]
                if good:
                    return good[0]
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            for number, packet in enumerate(packets_of(container, stream)):
                if number > PROBED_PACKETS * PROBED_KEYS:
                    break
                with contextlib.suppress(av.FFmpegError):
                    for frame in packet.decode():
                        return frame
        raise SourceError("unreadable-video", f"{self._path}: its frames cannot be decoded")

    def _mean_rate(self) -> float:
        span = self._time(self._index.count - 1) if self._exact else 0.0
        return (self._index.count - 1) / span if span > 0 else 30.0

    def _time(self, frame: int) -> float:
        return float(self._index.stamps[frame] - self._index.stamps[0]) * self._time_base

    # -- by presentation time ----------------------------------------------------------------------------

    def _by_time(self, start: int) -> Iterator[Decoded]:
        expected = start
        while expected < self._index.count:
            if self._index.key_before(expected) is None:
                yield self._failed(expected, "it stands before the first key frame")
                expected += 1
            else:
                expected = yield from self._until_damage(expected)

    def _until_damage(self, start: int) -> Generator[Decoded, None, int]:
        """Frames from ``start`` to the end, or to the key frame after the next damage; returns where."""
        expected = start
        for item in self._begin(start):
            if isinstance(item, Damage):
                for number in range(expected, item.resume):
                    yield self._failed(number, item.reason)
                return max(item.resume, expected)
            number, frame = item
            if number < expected:
                continue
            for lost in range(expected, number):
                yield self._failed(lost, NO_PICTURE)
            yield self._picture(number, frame)
            expected = number + 1
        for lost in range(expected, self._index.count):
            yield self._failed(lost, NO_PICTURE)
        return self._index.count

    def _begin(self, start: int) -> Iterator[Numbered | Damage]:
        """Decode from the key frame before ``start``, or from an earlier one if that gives no picture yet."""
        own = self._index.key_before(start)
        assert own is not None
        for key in range(own, max(own - MAX_STEPS_BACK, 0) - 1, -1):
            run = self._decode(key)
            for item in run:
                if isinstance(item, Damage) and key < own:
                    break
                if isinstance(item, Damage) or item[0] == start:
                    yield item
                    yield from run
                    return
                if item[0] > start:
                    break
        yield from self._decode(own)

    def _decode(self, key: int) -> Iterator[Numbered | Damage]:
        """Decode from the ``key``-th key frame on, as numbered frames; damage is the last item if there is any."""
        self.close()
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            self._running = stack
            try:
                for place, packet in self._packets_from(container, stream, key):
                    try:
                        if packet.is_corrupt:
                            raise av.InvalidDataError(0, "the packet is incomplete")
                        frames = packet.decode()
                    except av.FFmpegError as error:
                        yield from self._damaged_packet(stream, place, error)
                        return
                    for frame in frames:
                        number = self._index.frame_at(frame.pts)
                        if number is not None and frame.is_corrupt:
                            yield self._damage(number, number, "parts of the picture could not be decoded")
                            return
                        if number is not None:
                            yield number, frame
                yield from self._drain(stream)
            finally:
                self._running = None

    def _damaged_packet(self, stream: Any, packet: int, error: Exception) -> Iterator[Numbered | Damage]:
        """The frames that were decoded before the packet in the file, and then the damage."""
        harmed = self._index.harmed_from(packet)
        for number, frame in self._drain(stream):
            if number < harmed:
                yield number, frame
        yield self._damage(packet, harmed, _reason(error))

    def _drain(self, stream: Any) -> Iterator[Numbered]:
        with contextlib.suppress(av.FFmpegError):
            for frame in stream.codec_context.decode(None):
                number = self._index.frame_at(frame.pts)
                if number is not None and not frame.is_corrupt:
                    yield number, frame

    def _damage(self, frame: int, harmed: int, reason: str) -> Damage:
        resume = self._index.next_key(frame)
        return Damage(resume, f"the file is damaged at frames {min(frame, harmed)} to {resume - 1}: {reason}")

    def _packets_from(self, container: Any, stream: Any, key: int) -> Iterator[Numbered]:
        """The packets from that of the ``key``-th key frame on, without those that need what is before it."""
        first = int(self._index.keys[key])
        begun = False
        for packet in self._seek(container, stream, key):
            frame = self._index.frame_at(packet.pts)
            begun = begun or frame == first
            if begun and frame is not None and frame >= first:
                yield frame, packet

    def _seek(self, container: Any, stream: Any, key: int) -> Iterator[Any]:
        """Packets from somewhere not behind that key frame: what containers call seeking is only a hint."""
        if key:
            for target in self._index.keys[[key, key - 1]]:
                try:
                    container.seek(int(self._index.stamps[target]), stream=stream, backward=True)
                except av.FFmpegError:
                    break
                packets = packets_of(container, stream)
                first = next(packets, None)
                frame = self._index.frame_at(first.pts) if first is not None else None
                if (
                    frame is not None
                    and self._index.position[frame] <= self._index.position[self._index.keys[key]]
                ):
                    return itertools.chain([first], packets)
            with contextlib.suppress(av.FFmpegError):
                container.seek(int(self._index.stamps[0]), stream=stream, backward=True)
        return packets_of(container, stream)

    # -- by counting -------------------------------------------------------------------------------------

    def _by_count(self, start: int) -> Iterator[Decoded]:
        """For files whose frames have no times of their own: decode all, number them as they come."""
        numbers = itertools.count()
        time, trusted = -1.0, True
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            self._running = stack
            first: float | None = None
            for frame, key, reason in self._decode_all(container, stream):
                trusted = reason is None and (trusted or key)
                stamp = None if frame is None or frame.pts is None else frame.pts * self._time_base
                first = stamp if first is None else first
                step = time + 1 / self.info.fps if time >= 0 else 0.0
                time = stamp - (first or 0.0) if stamp is not None and stamp - (first or 0.0) > time else step
                number = next(numbers)
                if number < start:
                    continue
                if frame is None or not trusted:
                    why = f"the file is damaged here: {reason or 'an earlier frame that it builds on is'}"
                    yield Decoded(number, time, None, why)
                else:
                    yield self._picture(number, frame, time)
            self._running = None

    def _decode_all(self, container: Any, stream: Any) -> Iterator[tuple[Any, bool, str | None]]:
        """Frames, whether each is a key frame, and what is wrong with it."""
        packets = packets_of(container, stream)
        while True:
            try:
                packet = next(packets, None)
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                yield None, False, _reason(error)
                if packet is None:
                    return
                continue
            for frame in frames:
                yield frame, bool(frame.key_frame), "it is incomplete" if frame.is_corrupt else None
            if packet is None:
                return

    # -- frames ----------------------------------------------------------------------------------------

    def _picture(self, number: int, frame: Any, time: float | None = None) -> Decoded:
        time = self._time(number) if time is None else time
        if (frame.height, frame.width) != self._shape:
            height, width = self._shape
            size = f"{frame.width}x{frame.height} in a video of {width}x{height}"
            return Decoded(number, time, None, f"the frame is {size}; frames that change size are left out")
        try:
            image = frame.to_ndarray(format="bgr24")
        except (av.FFmpegError, ValueError) as error:
            return Decoded(number, time, None, f"the pixel format {frame.format.name}: {error}")
        return Decoded(number, time, _upright(image, self._rotation))

    def _failed(self, number: int, reason: str) -> Decoded:
        return Decoded(number, self._time(number), None, reason)


def _upright(image: U8, rotation: int) -> U8:
    """Turn by ``rotation`` degrees counter-clockwise, a multiple of 90."""
    turn = _TURNS.get(rotation % 360)
    return image if turn is None else np.asarray(cv2.rotate(image, turn), np.uint8)


_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
