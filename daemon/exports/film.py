"""``overlay.mp4``, encoded in parts that are joined in the end.

A part is a file of its own, whole or not there, so that an encoding that was killed goes on behind its last part. No
frame is built on a later one (no B-frames): parts can be put behind each other as they are, with times that hold in
every player, and equal pictures give equal bytes wherever the encoding was interrupted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from daemon.exports.sound import Sound, Timed
from stages.records import U8

TICKS = 90_000
"""Times are counted in ticks of which a second has this many."""
ENCODER_THREADS = 2
"""Always as many: what x264 makes depends on it."""
OPTIONS = {"preset": "ultrafast", "crf": "22", "bf": "0", "x264-params": "cabac=1:deblock=1,1"}
"""About half the time of the next slower preset, in hardly more bytes."""
BT709, BT601 = 1, 6
"""Codes of colour matrix, primaries and transfer (ITU-T H.273)."""
HD = 720
"""Rows from which players take a video for BT.709 that does not say."""


@dataclass(frozen=True)
class Look:
    """What all parts have in common: ``width`` and ``height`` in square pixels, both even; ``matrix``, BT709 or BT601,
    that the colours are written in; ``rate`` in frames per second, for the last frame's duration."""

    width: int
    height: int
    matrix: int
    rate: Fraction

    @classmethod
    def of(cls, width: int, height: int, rate: Fraction, matrix: int, side: int) -> Look:
        """For an input of this size and these colours, no side longer than ``side`` pixels (0: as it is)."""
        scale = min(1.0, side / max(width, height)) if side else 1.0
        # The codec halves the colour planes.
        even = [max(2, int(size * scale + 1e-6) // 2 * 2) for size in (width, height)]
        if matrix not in (BT709, 5, BT601):
            matrix = BT709 if min(width, height) >= HD or max(width, height) >= 1280 else BT601
        return cls(even[0], even[1], BT709 if matrix == BT709 else BT601, rate if rate > 0 else Fraction(30))

    def fit(self, picture: U8) -> U8:
        """A picture (H, W, 3) in this size; one that is larger by an odd row is cut."""
        height, width = picture.shape[:2]
        if max(width - self.width, height - self.height) > 1:
            return np.asarray(
                cv2.resize(picture, (self.width, self.height), interpolation=cv2.INTER_AREA), np.uint8
            )
        missing = max(0, self.height - height), max(0, self.width - width)
        if any(missing):
            picture = np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        return np.ascontiguousarray(picture[: self.height, : self.width])


class Part:
    """One part while it is written. Its own times begin at 0, a frame a tick: the real ones are given to `join`."""

    def __init__(self, path: Path, look: Look) -> None:
        self._look = look
        self._space = Colorspace.ITU709 if look.matrix == BT709 else Colorspace.ITU601
        self._container: Any = av.open(str(path), "w", format="mp4")
        stream: Any = self._container.add_stream(_encoder(), rate=look.rate.limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = look.width, look.height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS)
        context.max_b_frames = 0
        context.thread_count = ENCODER_THREADS
        context.colorspace = context.color_primaries = context.color_trc = look.matrix
        context.color_range = ColorRange.MPEG
        if context.name == "libx264":
            stream.options = OPTIONS
        self._stream = stream
        self._path = path
        self._count = 0

    def add(self, picture: U8) -> None:
        """Encode the next picture (H, W, 3) BGR, of the look's size."""
        frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(
            format="yuv420p", dst_colorspace=self._space, dst_color_range=ColorRange.MPEG, threads=1,
            dst_color_trc=self._look.matrix, dst_color_primaries=self._look.matrix,
        )  # fmt: skip
        # A rate of its own for the rate control: a part knows nothing of the stamps.
        frame.pts = round(self._count * TICKS / self._look.rate)
        frame.time_base = Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))
        self._count += 1

    def close(self) -> None:
        """Finish it, and force it to the disk."""
        self._container.mux(self._stream.encode())
        self._container.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def leave(self) -> None:
        """Let go of it as it is."""
        with contextlib.suppress(av.FFmpegError, OSError):
            self._container.close()


def join(
    parts: Sequence[tuple[Path, Sequence[int]]],
    look: Look,
    path: Path,
    sound: Sound | None,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Put parts behind each other, and the sound beside them, without encoding the pictures again.

    Args:
        parts: each file with the times of its frames, in ticks since the first frame of all.
        path: of the file to be written; it is whole when this returns.
        sound: of the input.
        progress: called for each packet.
    """
    stamps = [stamp for _, times in parts for stamp in times]
    last = stamps[-1] + max(1, round(TICKS / look.rate))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        with av.open(str(parts[0][0])) as first:
            stream = container.add_stream_from_template(first.streams.video[0])
        stream.time_base = Fraction(1, TICKS)
        heard = sound.packets(container, last / TICKS) if sound is not None else iter(())
        for _, packet in merge(_pictures(parts, stream, last), heard, key=lambda one: one[0]):
            progress()
            container.mux(packet)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _pictures(parts: Sequence[tuple[Path, Sequence[int]]], stream: Any, last: int) -> Iterator[Timed]:
    for number, (path, times) in enumerate(parts):
        after = parts[number + 1][1][0] if number + 1 < len(parts) else last
        with av.open(str(path)) as container:
            packets = (packet for packet in container.demux(video=0) if packet.size)
            for packet, (begin, end) in zip(packets, zip(times, [*times[1:], after], strict=True), strict=True):
                packet.stream = stream
                packet.time_base = Fraction(1, TICKS)
                packet.pts = packet.dts = begin
                packet.duration = end - begin
                yield begin / TICKS, packet


def _encoder() -> str:
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"
