"""Videos by PyAV: every frame of the file accounted for once, the same from wherever decoding starts."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
from av.sidedata.sidedata import Type as SideData

from stages.source.base import DAMAGED_BEFORE, DAMAGED_HERE, Decoded, Progress, SourceError, SourceInfo
from stages.source.container import Opening, choice_note, reason_of
from stages.source.geometry import Geometry, square_aspect, turn_of
from stages.source.index import packets_of, read_index
from stages.source.pictures import picture
from stages.source.rates import DEFAULT, believable, rate_of
from stages.source.timed import PROBED_PACKETS, TimedDecoding
from stages.source.tones import NAMES, is_hdr

PROBED_KEYS = 20
"""Key frames tried before a video counts as unreadable."""

UNTIMED_FORMATS = frozenset(("h264", "hevc", "vvc", "mpegvideo", "m4v", "h263", "cavsvideo", "obu", "vc1"))
"""Formats that are the codec's own stream and nothing around it: what they say of times is FFmpeg's guess."""


class VideoSource:
    """A video file. Constructing it reads the packets once and decodes the first frames.

    Args:
        opening: the file, and how it is opened.
        working: the most pixels that a frame is given with; larger ones are scaled down. None: any number.
        progress: called for each packet.

    Raises:
        SourceError: nothing in the file can be decoded.
    """

    def __init__(self, opening: Opening, working: int | None = None, progress: Progress = lambda: None) -> None:
        self._path = path = opening.path
        self._progress = progress
        self._running: contextlib.ExitStack | None = None
        with contextlib.ExitStack() as stack:
            container, stream = opening.open()
            stack.callback(container.close)
            self._opening = replace(opening, stream=stream.index)
            chosen = choice_note(container, stream) if opening.stream is None else None
            self._index = read_index(container, stream, path, progress)
            if not self._index.count:
                raise SourceError("unreadable-video", f"{path}: there is not one frame in it")
            self._time_base = Fraction(stream.time_base)
            claims = [stream.codec_context.framerate, stream.guessed_rate]
            if container.format.name not in UNTIMED_FORMATS:
                claims = [stream.base_rate, stream.average_rate, *claims]
            aspect, odd_aspect = square_aspect(stream.sample_aspect_ratio)
            codec = stream.codec_context.codec.canonical_name
        self.truncated = self._index.promised
        self._exact = self._index.exact
        self._timed = TimedDecoding(self._opening, self._index, codec, progress)
        first = self._probe()
        self._start = first.pts
        mirrored, rotation, odd_turn = _turn(first)
        self._geometry = Geometry((first.width, first.height), aspect, mirrored, rotation, working)
        self.expected = count = self._index.count
        rate, variable = self._rate(claims)
        hdr = NAMES[int(first.color_trc)] if is_hdr(first) else None
        toned = f"its colours are {hdr} (HDR): brought into the usual range" if hdr else None
        self.info = SourceInfo(
            kind="video",
            width=self._geometry.size[0],
            height=self._geometry.size[1],
            rate=rate,
            frames=count if self._exact else None,
            rotation=rotation,
            codec=codec,
            duration=float(self._time(self._index.end - 1) + 1 / rate if self._exact else count / rate),
            working=self._geometry.working,
            mirrored=mirrored,
            variable=variable,
            stream=self._opening.stream,
            matrix=int(first.colorspace),
            notes=tuple(note for note in (chosen, odd_aspect, odd_turn, toned) if note),
        )

    @property
    def start(self) -> float:
        """Second on the file's own clock at which frame 0 is shown; its sound lies on the same clock."""
        if self._exact:
            return float(self._index.stamps[self._index.first]) * self._time_base
        return float(self._start or 0) * self._time_base

    def frames(self, start: int = 0) -> Iterator[Decoded]:
        self.close()
        return self._by_time(start) if self._exact else self._by_count(start)

    def time_of(self, frame: int) -> float:
        number = frame + self._index.first
        if self._exact and number < self._index.end:
            return float(self._time(number))
        return float(frame / self.info.rate)

    def name_of(self, frame: int) -> str | None:
        del frame
        return None

    def next_start(self, frame: int) -> int | None:
        if not self._exact:
            return None
        return self._index.next_key(frame + self._index.first) - self._index.first

    def close(self) -> None:
        self._timed.close()
        if self._running is not None:
            self._running.close()
            self._running = None

    # -- opening ---------------------------------------------------------------------------------------

    def _open(self, stack: contextlib.ExitStack) -> tuple[Any, Any]:
        container, stream = self._opening.open()
        stack.callback(container.close)
        return container, stream

    def _probe(self) -> Any:
        """The first frame that decodes, a whole one if there is any. Also finds out whether frames keep their times
        through the decoder."""
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
        damaged = None
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            for frame, _, reason in self._decode_all(container, stream, PROBED_PACKETS * PROBED_KEYS):
                if reason is None:
                    return frame
                damaged = damaged or frame
        if damaged is None:
            raise SourceError("unreadable-video", f"{self._path}: its frames cannot be decoded")
        return damaged

    def _probe_from(self, key: int) -> tuple[int, list[tuple[int | None, Any]], bool]:
        """Decode a few packets: how many, the whole frames with their numbers, and whether all went well."""
        frames: list[Any] = []
        wanted, clean = 0, True
        with contextlib.ExitStack() as stack:
            container, stream = self._open(stack)
            packets = itertools.islice(self._timed.packets_from(container, stream, key), PROBED_PACKETS)
            try:
                for number, packet in packets:
                    wanted += self._index.first <= number < self._index.end
                    frames += packet.decode()
                frames += stream.codec_context.decode(None)
            except av.FFmpegError:
                clean = False
        whole = [(self._index.frame_at(frame.pts), frame) for frame in frames if not frame.is_corrupt]
        return wanted, whole, clean and len(whole) == len(frames)

    def _rate(self, claims: list[Fraction | None]) -> tuple[Fraction, bool]:
        if self._exact:
            return rate_of(self._index.stamps[self._index.first : self._index.end], self._time_base, claims)
        return (believable(claims) or [DEFAULT])[0], False

    def _time(self, frame: int) -> Fraction:
        return int(self._index.stamps[frame] - self._index.stamps[self._index.first]) * self._time_base

    # -- frames ----------------------------------------------------------------------------------------

    def _by_time(self, start: int) -> Iterator[Decoded]:
        first = self._index.first
        for found in self._timed.frames(start + first):
            number, time = found.number - first, float(self._time(found.number))
            if found.frame is None:
                yield Decoded(number, time, None, found.failure)
            else:
                yield picture(number, time, found.frame, self._geometry, found.damaged)

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
                if frame is None:
                    yield Decoded(number, time, None, f"the file is damaged here: {reason}")
                else:
                    damaged = None if trusted else DAMAGED_BEFORE if reason is None else DAMAGED_HERE
                    yield picture(number, time, frame, self._geometry, damaged)
            self._running = None

    def _counted_time(self, number: int, frame: Any, before: float) -> float:
        """The decoder's time if it is believable, else the packets' in order, else by the nominal rate."""
        if self._start is None:
            return float(number / self.info.rate)
        if self._ordered and frame is not None and frame.pts is not None:
            stamp = float((frame.pts - self._start) * self._time_base)
            if stamp > before:
                return stamp
        elif not self._ordered and number + self._index.first < len(self._index.stamps):
            return float(self._time(number + self._index.first))
        return before + float(1 / self.info.rate) if number else 0.0

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


def _turn(frame: Any) -> tuple[bool, int, str | None]:
    """By the display matrix that a frame carries: see `turn_of`."""
    try:
        matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    except ValueError:  # this PyAV does not know some other thing that the frame carries
        return False, round(frame.rotation / 90) * 90 % 360, None
    return (False, 0, None) if matrix is None else turn_of(bytes(matrix))
