"""Decoding by presentation time: numbered frames from any of them on, the same as from the first.

Frames are found by their presentation times in an index of the packets, so a frame that the decoder drops leaves a gap
with a number instead of shifting those behind it. A decoder that has met damage makes up what it lacks, out of whatever
it decoded before. So what it makes up is the same from anywhere, the group of frames around the damage is decoded
again from its key frame on, by a decoder that has seen nothing before.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import av

from stages.source.base import DAMAGED_BEFORE, DAMAGED_HERE, Progress, SourceError
from stages.source.container import Opening, reason_of
from stages.source.index import PacketIndex, packets_of

PROBED_PACKETS = 20
"""Decoded when a video is opened: enough to see its frames come out in order, each with its own time."""

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
    """Decoding met something wrong: frames from ``frame`` to before ``resume``, a key frame, may be made up."""

    frame: int
    resume: int


Numbered: TypeAlias = tuple[int, Any]
"""A frame's number, and its packet or what was decoded from it."""


@dataclass(frozen=True)
class Found:
    """A frame by its number in the index: the decoder's ``frame``, and what is wrong with it if anything is; or the
    ``failure`` for which there is none."""

    number: int
    frame: Any = None
    damaged: str | None = None
    failure: str | None = None


class TimedDecoding:
    """Decodes one video file whose packets have times. One iteration at a time.

    Args:
        opening: how the file is opened.
        index: of its packets.
        codec: its codec's canonical name.
        progress: called for each packet.
    """

    def __init__(self, opening: Opening, index: PacketIndex, codec: str, progress: Progress) -> None:
        self._opening = opening
        self._index = index
        self._codec = codec
        self._progress = progress
        self._running: contextlib.ExitStack | None = None

    def close(self) -> None:
        """End the iteration that is under way."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def frames(self, start: int) -> Iterator[Found]:
        """Every frame from ``start`` on to the index's end, once and in order."""
        expected = start
        while expected < self._index.end:
            if self._index.key_before(expected) is None:
                yield Found(expected, failure="it stands before the first key frame")
                expected += 1
                continue
            damage = None
            for item in self._begin(expected):
                if isinstance(item, Damage):
                    damage = item
                    break
                number, frame = item
                if expected <= number < self._index.end:
                    yield from self._lost(expected, number)
                    yield Found(number, frame)
                    expected = number + 1
            if damage is None:
                yield from self._lost(expected, self._index.end)
                return
            yield from self._concealed(expected, damage)
            expected = max(damage.resume, expected)

    def _lost(self, first: int, end: int, why: Mapping[int, str] | None = None) -> Iterator[Found]:
        for number in range(first, end):
            yield Found(number, failure=(why or {}).get(number, NO_PICTURE))

    def _concealed(self, expected: int, damage: Damage) -> Iterator[Found]:
        """From ``expected`` to where the damage ends: what a decoder makes of it that begins with the group's key
        frame, in one thread, and goes on whatever it meets."""
        key = self._index.key_before(damage.frame)
        key = self._index.key_before(expected) if key is None else key
        assert key is not None
        last = int(self._index.position[int(self._index.keys[key]) : damage.resume].max(initial=0))
        refused: dict[int, str] = {}
        with contextlib.ExitStack() as stack:
            try:
                container, stream = self._open(stack, replace(self._opening, threads=1))
            except SourceError as error:  # gone or changed since it was opened first
                for number in range(expected, damage.resume):
                    yield Found(number, failure=str(error))
                return
            self._running = stack
            for number, frame in self._numbered(self._whatever_decodes(container, stream, key, last, refused)):
                if not expected <= number < damage.resume:
                    continue
                yield from self._lost(expected, number, refused)
                here = frame.is_corrupt or number in refused
                marked = (DAMAGED_HERE if here else DAMAGED_BEFORE) if number >= damage.frame else None
                yield Found(number, frame, damaged=marked)
                expected = number + 1
        self._running = None
        yield from self._lost(expected, damage.resume, refused)

    def _whatever_decodes(
        self, container: Any, stream: Any, key: int, last: int, refused: dict[int, str]
    ) -> Iterator[Any]:
        """Frames from the ``key``-th key frame on, up to the packet at position ``last`` in the file; why packets were
        refused is entered into ``refused`` by frame."""
        for number, packet in self.packets_from(container, stream, key):
            try:
                yield from self._opening.decode(stream, packet)
            except av.FFmpegError as error:
                refused[number] = f"the file is damaged here: {reason_of(error)}"
            if self._index.position[number] >= last:
                break
        with contextlib.suppress(av.FFmpegError):
            yield from stream.codec_context.decode(None)

    def _begin(self, start: int) -> Iterator[Numbered | Damage]:
        """Decode from the key frame before ``start``, or from an earlier one if that gives no picture yet."""
        own = self._index.key_before(start)
        assert own is not None
        for key in range(own, max(own - MAX_STEPS_BACK, 0) - 1, -1):
            run = self._decode(key)
            for place, item in enumerate(run):
                if isinstance(item, Damage):
                    if key < own and not item.frame <= start < item.resume:
                        break
                    yield item
                    return
                if item[0] == start and (place or key < own or not self._lacks(own, item[0])):
                    yield item
                    yield from run
                    return
                if item[0] > start or (place == 0 and key == own and self._lacks(own, item[0])):
                    break
        yield from self._decode(own)

    def _lacks(self, key: int, number: int) -> bool:
        """Whether decoding from a key frame has begun with frame ``number``, and not with the key frame."""
        return number > int(self._index.keys[key]) and self._codec not in NOT_CODED

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
                    damage = self._damage(latest + 1)
                elif frame.is_corrupt:
                    damage = self._damage(number)
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
        strict = replace(self._opening, strict=True)
        with contextlib.ExitStack() as stack:
            try:
                container, stream = self._open(stack, strict)
            except SourceError:  # gone or changed since it was opened first
                yield Damage(0, self._index.end)
                return
            self._running = stack
            refused: Damage | None = None
            try:
                for place, packet in self.packets_from(container, stream, key):
                    try:
                        if packet.is_corrupt:
                            raise av.InvalidDataError(0, "the packet is incomplete")
                        frames = strict.decode(stream, packet)
                    except av.FFmpegError:
                        refused = self._damage(place)
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

    def _numbered(self, frames: Iterable[Any]) -> Iterator[Numbered]:
        for frame in frames:
            number = self._index.frame_at(frame.pts)
            if number is not None:
                yield number, frame

    def _damage(self, frame: int) -> Damage:
        return Damage(self._index.harmed_from(frame), self._index.next_key(frame))

    def _open(self, stack: contextlib.ExitStack, opening: Opening) -> tuple[Any, Any]:
        container, stream = opening.open()
        stack.callback(container.close)
        return container, stream

    def packets_from(self, container: Any, stream: Any, key: int) -> Iterator[Numbered]:
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
                # In a damaged file a container may count other times from here than from its beginning.
                if (
                    first is not None
                    and frame is not None
                    and (-1 if first.pos is None else first.pos) == self._index.offsets[frame]
                    and self._index.position[frame] <= self._index.position[self._index.keys[key]]
                ):
                    return itertools.chain([first], packets)
            with contextlib.suppress(av.FFmpegError):
                container.seek(int(self._index.stamps[0]), stream=stream, backward=True)
        return packets_of(container, stream, self._progress)
