"""The sound of a video, beside its overlay: copied as it is, or encoded anew where MP4 does not take it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

IN_MP4 = frozenset(("aac", "mp3", "mp2", "ac3", "eac3", "opus", "flac", "alac", "dts"))
"""Codecs that are copied."""
Timed = tuple[float, Any]
"""A packet with the second at which it begins."""


class Sound:
    """The sound of ``path``, as `daemon.exports.film.join` wants it.

    Args:
        start: seconds on the file's own clock at which frame 0 stands.
    """

    def __init__(self, path: Path, start: float) -> None:
        self._path = path
        self._start = start

    def packets(self, container: Any, end: float) -> Iterator[Timed]:
        """Add a stream to ``container`` and return what belongs into it, from frame 0 to second ``end``."""
        try:
            source = av.open(str(self._path))
        except (av.FFmpegError, OSError):
            return iter(())  # the pictures came from somewhere: it is gone only now
        stream: Any = source.streams.best("audio")
        if stream is None:
            source.close()
            return iter(())
        if stream.codec_context.name in IN_MP4:
            return self._copied(source, stream, container.add_stream_from_template(stream), end)
        made = container.add_stream("aac", rate=stream.codec_context.sample_rate or 48_000)
        made.layout = "stereo" if stream.codec_context.channels > 1 else "mono"
        return self._encoded(source, stream, made, end)

    def _copied(self, source: Any, stream: Any, to: Any, end: float) -> Iterator[Timed]:
        with source:
            for packet in _readable(source, stream):
                if packet.pts is None:
                    continue
                time = float(packet.pts * packet.time_base) - self._start
                if time >= end:
                    break
                if time < 0:
                    continue
                packet.pts = packet.dts = packet.pts - round(self._start / packet.time_base)
                packet.stream = to
                yield time, packet

    def _encoded(self, source: Any, stream: Any, to: Any, end: float) -> Iterator[Timed]:
        context = to.codec_context
        resampler = av.AudioResampler(
            context.format, context.layout, context.sample_rate, context.frame_size or 1024
        )
        base = Fraction(1, context.sample_rate)
        first: int | None = None
        count = 0
        with source:
            for frame in _decoded(source, stream):
                if frame is not None and frame.pts is not None:
                    time = float(frame.pts * frame.time_base) - self._start
                    if time >= end:
                        break
                    if time < 0:
                        continue
                    first = round(time / base) if first is None else first
                for piece in resampler.resample(frame):
                    if first is None:
                        continue
                    piece.pts, piece.time_base = first + count, base
                    count += piece.samples
                    yield from _timed(context.encode(piece), to)
            yield from _timed(context.encode(None), to)


def _timed(packets: list[Any], to: Any) -> Iterator[Timed]:
    for packet in packets:
        packet.stream = to
        yield float(packet.pts * packet.time_base), packet


def _readable(source: Any, stream: Any) -> Iterator[Any]:
    """Packets up to where the file cannot be read any further."""
    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None or packet.size == 0:
            return
        if not packet.is_corrupt:
            yield packet


def _decoded(source: Any, stream: Any) -> Iterator[Any]:
    for packet in _readable(source, stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue
    yield None
