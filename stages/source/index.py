"""A video's packets without decoding them: how many frames there are, when, and where decoding can start."""

from __future__ import annotations

import contextlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from stages.source.base import Progress
from stages.source.cut import missing_bytes

MAX_REORDER = 64
"""No codec shows a frame this many frames away from where it stands in the file."""


@dataclass(frozen=True)
class PacketIndex:
    """One entry for each packet of the video, 24 bytes each.

    Frames are numbered by presentation here, from the file's very first. Of these, ``first`` to before
    ``end`` are shown: a video that was trimmed without coding it anew still has what others build on. There
    are ``count`` frames to show.

    ``stamps`` (n,) int64: presentation times in units of the stream's time base, rising. ``order`` (n,) int32:
    the frame, by presentation, that the packet at a position in the file becomes; ``position`` is its
    inverse; ``offsets`` (n,) int64: where the packet of a frame begins in the file, in bytes, -1 where it does not say.
    ``keys``: the frames at which decoding can start, rising; never empty. ``exact`` is False where a
    decoded frame's number can only be had by counting from the first, since packets lack times of their own
    (then ``stamps`` is empty) or are out of any order. ``promised`` says what should be in the file but is not.
    """

    count: int
    first: int
    end: int
    exact: bool
    stamps: npt.NDArray[np.int64]
    order: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    keys: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    promised: str | None

    def frame_at(self, stamp: int | None) -> int | None:
        """The frame of a presentation time, or None if there is none."""
        if stamp is None:
            return None
        found = int(np.searchsorted(self.stamps, stamp))
        return found if found < len(self.stamps) and self.stamps[found] == stamp else None

    def key_before(self, frame: int) -> int | None:
        """Which of ``keys`` to start from for ``frame``; None for frames before the first."""
        found = bisect_right(self.keys, frame) - 1
        return found if found >= 0 else None

    def next_key(self, frame: int) -> int:
        """The first key frame after ``frame``, or the end of what is shown."""
        found = bisect_right(self.keys, frame)
        return min(int(self.keys[found]), self.end) if found < len(self.keys) else self.end

    def harmed_from(self, frame: int) -> int:
        """The first frame, by presentation, that may be decoded from the packet of ``frame``: frames shown
        earlier may refer to one shown later."""
        begin = int(self.position[frame])
        following = bisect_right(self.keys, begin, key=lambda key: int(self.position[key]))
        end = int(self.position[self.keys[following]]) if following < len(self.keys) else len(self.order)
        return int(self.order[begin : min(end, begin + MAX_REORDER)].min())

    def leans_on(self, frame: int) -> int:
        """The last frame, by presentation, that stands before ``frame`` in the file, or ``frame`` itself."""
        place = int(self.position[frame])
        return int(self.order[max(place - MAX_REORDER, 0) : place + 1].max())


def packets_of(container: Any, stream: Any, progress: Progress) -> Iterator[Any]:
    """Packets with something in them, until the end or until the container cannot be read on."""
    with contextlib.suppress(av.FFmpegError):
        yield from _packets(container, stream, progress)


def _packets(container: Any, stream: Any, progress: Progress) -> Iterator[Any]:
    for packet in container.demux(stream):
        progress()
        if packet.size:
            yield packet


def read_index(container: Any, stream: Any, path: Path, progress: Progress) -> PacketIndex:
    """Read all packets of ``stream`` of the freshly opened ``container``, which is the file ``path``."""
    stamps, keys, shows, offsets = array("q"), array("q"), array("b"), array("q")
    distinct, broken = True, None
    try:
        for place, packet in enumerate(_packets(container, stream, progress)):
            distinct &= packet.pts is not None
            stamps.append(packet.pts if packet.pts is not None else place)
            shows.append(not packet.is_discard)
            offsets.append(-1 if packet.pos is None else packet.pos)
            if packet.is_keyframe:
                keys.append(place)
    except av.FFmpegError as error:
        broken = f"the file cannot be read beyond frame {len(stamps)}: {error.strerror}"
    total, count = len(stamps), sum(shows)
    times = np.asarray(stamps, np.int64)
    position = np.argsort(times, kind="stable").astype(np.int32)
    order = np.empty(total, np.int32)
    order[position] = np.arange(total, dtype=np.int32)
    times = times[position]
    starts = order[np.asarray(keys or [0] * bool(total), np.int64)]
    shown = np.flatnonzero(np.asarray(shows, np.int8)[position])
    first, end = (int(shown[0]), int(shown[-1]) + 1) if count else (0, 0)
    distinct = distinct and bool(np.all(np.diff(times) > 0))
    exact = (
        distinct
        and count == end - first > 0
        and int(np.abs(order - np.arange(total)).max()) <= MAX_REORDER
        and bool(np.all(np.diff(starts) > 0))
    )
    if not distinct:
        times = np.empty(0, np.int64)
    promised = broken or _cut(stream, total, path)
    places = np.asarray(offsets, np.int64)[position]
    return PacketIndex(count, first, end, exact, times, order, position, starts, places, promised)


def _cut(stream: Any, count: int, path: Path) -> str | None:
    """What the file's framing promises beyond its end.

    A header's count of frames by itself means nothing: files with one packet a field count twice.
    """
    missing = missing_bytes(path)
    if not missing:
        return None
    promised = len(stream.index_entries)
    frames = f"{count} of {promised}" if promised > count else f"{count}"
    return f"the file is cut off: {missing} bytes are missing at its end; {frames} frames are in it"
