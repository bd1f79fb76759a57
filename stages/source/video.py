"""Videos by PyAV: every frame of the file accounted for once, the same from wherever decoding starts.

Frames are found by their presentation times in an index of the packets, so a frame that the decoder drops
leaves a gap with a number instead of shifting those behind it. A decoder that has met damage goes on giving
pictures that look almost right; none is believed until the next key frame, where decoding starts afresh as
it would if it had begun there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import av

from stages.source.base import Decoded, Progress, SourceError, SourceInfo
from stages.source.container import open_stream, reason_of
from stages.source.index import packets_of, read_index
from stages.source.pictures import picture

PROBED_PACKETS = 20
"""Decoded when a video is opened: enough to see its frames come out in order, each with its own time."""

PROBED_KEYS = 20
"""Key frames tried before a video counts as unreadable."""

DEFAULT_RATE = 30.0
"""Frames per second of a video that does not say."""

MAX_STEPS_BACK = 3
"""Key frames to go back from one that does not give a picture by itself (streams refreshed gradually)."""

SEEKABLE_FORMATS = frozenset(("mov", "matroska", "mpegts", "avi", "flv", "asf"))
"""Formats that store a time with every packet. In others a packet's time depends on where reading began, so
there all packets are read, though not decoded, from the first on."""

NOT_CODED = frozenset(("mpeg4",))
"""Codecs in which a packet may say that nothing has changed, and become no frame."""

NO_PICTURE = "the decoder gave no picture for this frame"


@dataclass(frozen=True)
class Damage:
    """Decoding met something wrong: frames from ``frame`` to before ``resume``, a key frame, are not believed."""

    frame: int
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
        progress: called for each packet.

    Raises:
        SourceError: nothing in the file can be decoded.
    """

    def __init__(self, path: Path, max_pixels: int, threads: int, progress: Progress = lambda: None) -> None:
        self._path = path
        self._progress = progress
        self._max_pixels = max_pixels
        self._threads = threads
        self._running: contextlib.ExitStack | None = None
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            self._index = read_index(container, stream, path, progress)
            if not self._index.count:
                raise SourceError("unreadable-video", f"{path}: there is not one frame in it")
            self._time_base = float(stream.time_base)
            rate = next((r for r in (stream.average_rate, stream.guessed_rate) if r and 0 < r <= 1000), None)
            codec = stream.codec_context.codec.canonical_name
        self.truncated = self._index.promised
        self._exact = self._index.exact
        first = self._probe()
        self._codec = codec
        self._start = first.pts
        self._shape = (first.height, first.width)
        self._rotation = int(first.rotation) % 360
        upright = self._shape[::-1] if self._rotation in (90, 270) else self._shape
        self.expected = count = self._index.count
        fps = self._nominal_rate(float(rate) if rate else None)
        self.info = SourceInfo(
            kind="video",
            width=upright[1],
            height=upright[0],
            fps=fps,
            frames=count if self._exact else None,
            rotation=self._rotation,
            codec=codec,
            duration=self._time(self._index.end - 1) + 1 / fps if self._exact else count / fps,
        )

    def frames(self, start: int = 0) -> Iterator[Decoded]:
        self.close()
        return self._by_time(start) if self._exact else self._by_count(start)

    def time_of(self, frame: int) -> float:
        number = frame + self._index.first
        if self._exact and number < self._index.end:
            return self._time(number)
        return frame / self.info.fps

    def next_start(self, frame: int) -> int | None:
        if not self._exact:
            return None
        return self._index.next_key(frame + self._index.first) - self._index.first

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    # -- opening ---------------------------------------------------------------------------------------

    def _open(self, stack: contextlib.ExitStack) -> tuple[Any, Any]:
        container, stream = open_stream(self._path, self._max_pixels, self._threads)
        stack.callback(container.close)
        return container, stream

    def _probe(self) -> Any:
        """The first frame that decodes. Also finds out whether frames keep their times through the decoder."""
        self._ordered = self._exact
        for key in range(min(len(self._index.keys), PROBED_KEYS) if self._exact else 0):
            wanted, found, clean = self._probe_from(key)
            if clean and wanted:
                numbers = [number for number, _ in found if number is not None]
                self._ordered = all(a < b for a, b in pairwise(numbers))
                # One or two may be lost to damage that nobody noticed; half of them are if two packets make
                # one frame, as fields do.
                self._exact = self._ordered and len(numbers) > 0.75 * wanted
            if found:
                return found[0][1]
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            for frame, _, reason in self._decode_all(container, stream, PROBED_PACKETS * PROBED_KEYS):
                if reason is None:
                    return frame
        raise SourceError("unreadable-video", f"{self._path}: its frames cannot be decoded")

    def _probe_from(self, key: int) -> tuple[int, list[tuple[int | None, Any]], bool]:
        """Decode a few packets: how many, the whole frames with their numbers, and whether all went well."""
        frames: list[Any] = []
        wanted, clean = 0, True
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            packets = itertools.islice(self._packets_from(container, stream, key), PROBED_PACKETS)
            try:
                for number, packet in packets:
                    wanted += self._index.first <= number < self._index.end
                    frames += packet.decode()
                frames += stream.codec_context.decode(None)
            except av.FFmpegError:
                clean = False
        whole = [(self._index.frame_at(frame.pts), frame) for frame in frames if not frame.is_corrupt]
        return wanted, whole, clean and len(whole) == len(frames)

    def _nominal_rate(self, claimed: float | None) -> float:
        """The header's rate, unless the frames' times say otherwise (a variable rate)."""
        span = self._time(self._index.end - 1) if self._exact else 0.0
        mean = (self._index.count - 1) / span if span > 0 else None
        if claimed is None or (mean is not None and abs(mean - claimed) > 0.02 * mean):
            return mean or claimed or DEFAULT_RATE
        return claimed

    def _time(self, frame: int) -> float:
        return float(self._index.stamps[frame] - self._index.stamps[self._index.first]) * self._time_base

    # -- by presentation time ----------------------------------------------------------------------------

    def _by_time(self, start: int) -> Iterator[Decoded]:
        expected = start + self._index.first
        while expected < self._index.end:
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
            if not expected <= number < self._index.end:
                continue
            for lost in range(expected, number):
                yield self._failed(lost, NO_PICTURE)
            yield self._picture(number - self._index.first, self._time(number), frame)
            expected = number + 1
        for lost in range(expected, self._index.end):
            yield self._failed(lost, NO_PICTURE)
        return self._index.end

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
        """Decode from the ``key``-th key frame on, as numbered frames; damage is the last item if there is any.

        A frame may be built on one that is shown later but was decoded before it, and of which only then is
        it known whether it was whole. So each is held back until those have come out.
        """
        held: deque[Numbered] = deque()
        latest: int | None = None
        for item in self._decode_at_once(key):
            damage = item if isinstance(item, Damage) else None
            if not isinstance(item, Damage):
                number, frame = item
                if latest is not None and number > latest + 1 and self._codec not in NOT_CODED:
                    damage = self._damage(latest + 1, NO_PICTURE)
                elif frame.is_corrupt:
                    damage = self._damage(number, "parts of the picture could not be decoded")
                latest = number
            if damage is not None:
                yield from (one for one in held if one[0] < damage.frame)
                yield damage
                return
            held.append((number, frame))
            while held and number >= self._index.leans_on(held[0][0]):
                yield held.popleft()
        yield from held

    def _decode_at_once(self, key: int) -> Iterator[Numbered | Damage]:
        """Numbered frames as the decoder gives them, up to the first packet that it refuses."""
        self.close()
        with contextlib.ExitStack() as stack:
            try:
                container, stream = self._open(stack)
            except SourceError as error:  # gone or changed since it was opened first
                yield Damage(0, self._index.end, str(error))
                return
            self._running = stack
            refused: Damage | None = None
            try:
                for place, packet in self._packets_from(container, stream, key):
                    try:
                        if packet.is_corrupt:
                            raise av.InvalidDataError(0, "the packet is incomplete")
                        frames = packet.decode()
                    except av.FFmpegError as error:
                        refused = self._damage(place, reason_of(error))
                        break
                    yield from self._numbered(frames)
                with contextlib.suppress(av.FFmpegError):
                    for number, frame in self._numbered(stream.codec_context.decode(None)):
                        if refused is None or (number < refused.frame and not frame.is_corrupt):
                            yield number, frame
                if refused is not None:
                    yield refused
            finally:
                self._running = None

    def _numbered(self, frames: list[Any]) -> Iterator[Numbered]:
        for frame in frames:
            number = self._index.frame_at(frame.pts)
            if number is not None:
                yield number, frame

    def _damage(self, frame: int, reason: str) -> Damage:
        first, resume = self._index.harmed_from(frame), self._index.next_key(frame)
        begin, end = max(first - self._index.first, 0), resume - 1 - self._index.first
        return Damage(first, resume, f"the file is damaged at frames {begin} to {end}: {reason}")

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
        if key and SEEKABLE_FORMATS & set(container.format.name.split(",")):
            for target in self._index.keys[[key, key - 1]]:
                try:
                    container.seek(int(self._index.stamps[target]), stream=stream, backward=True)
                except av.FFmpegError:
                    break
                packets = packets_of(container, stream, self._progress)
                first = next(packets, None)
                frame = self._index.frame_at(first.pts) if first is not None else None
                if (
                    frame is not None
                    and self._index.position[frame] <= self._index.position[self._index.keys[key]]
                ):
                    return itertools.chain([first], packets)
            with contextlib.suppress(av.FFmpegError):
                container.seek(int(self._index.stamps[0]), stream=stream, backward=True)
        return packets_of(container, stream, self._progress)

    # -- by counting -------------------------------------------------------------------------------------

    def _by_count(self, start: int) -> Iterator[Decoded]:
        """For files whose frames have no times of their own: decode all, number them as they come."""
        time, trusted = -1.0, True
        with contextlib.ExitStack() as stack:
            try:
                container, stream = self._open(stack)
            except SourceError as error:  # gone or changed since it was opened first
                self.truncated = str(error)
                return
            self._running = stack
            for number, (frame, key, reason) in enumerate(self._decode_all(container, stream)):
                trusted = reason is None and (trusted or key)
                time = self._counted_time(number, frame, time)
                if number < start:
                    continue
                if frame is None or not trusted:
                    why = f"the file is damaged here: {reason or 'an earlier frame that it builds on is'}"
                    yield Decoded(number, time, None, why)
                else:
                    yield self._picture(number, time, frame)
            self._running = None

    def _counted_time(self, number: int, frame: Any, before: float) -> float:
        """The decoder's time if it is believable, else the packets' in order, else by the nominal rate."""
        if self._ordered and frame is not None and frame.pts is not None and self._start is not None:
            stamp = float(frame.pts - self._start) * self._time_base
            if stamp > before:
                return stamp
        elif not self._ordered and number + self._index.first < len(self._index.stamps):
            return self._time(number + self._index.first)
        return before + 1 / self.info.fps if number else 0.0

    def _decode_all(
        self, container: Any, stream: Any, limit: int | None = None
    ) -> Iterator[tuple[Any, bool, str | None]]:
        """Frames, whether each is a key frame, and what is wrong with it; from ``limit`` packets if given."""
        packets = itertools.islice(packets_of(container, stream, self._progress), limit)
        while True:
            try:
                packet = next(packets, None)
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                yield None, False, reason_of(error)
                if packet is None:
                    return
                continue
            for frame in frames:
                yield frame, bool(frame.key_frame), "it is incomplete" if frame.is_corrupt else None
            if packet is None:
                return

    # -- frames ----------------------------------------------------------------------------------------

    def _picture(self, number: int, time: float, frame: Any) -> Decoded:
        return picture(number, time, frame, self._shape, self._rotation)

    def _failed(self, number: int, reason: str) -> Decoded:
        return Decoded(number - self._index.first, self._time(number), None, reason)
