"""What every kind of input gives: information, and frames that are accounted for one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from stages.names import legible
from stages.records import U8

Progress = Callable[[], None]
"""Called in the middle of what takes longer the longer an input is: it still goes on."""


class SourceError(Exception):
    """An input that cannot be worked on at all.

    ``name`` is stable and meant for programs: missing-file, no-permission, empty-file, unsupported,
    unreadable-video, no-video-stream, unreadable-image, no-images, too-large. The message is for a person.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(legible(message))
        self.name = name


@dataclass(frozen=True)
class SourceInfo:
    """What an input is.

    ``kind`` is video, images (a folder) or image; ``width`` and ``height`` are pixels of the upright frame;
    ``fps`` is nominal, 0 for a single image; ``frames`` is the count, or None where only decoding tells;
    ``rotation`` in degrees counter-clockwise has been applied already; ``duration`` in seconds.
    """

    kind: str
    width: int
    height: int
    fps: float
    frames: int | None
    rotation: int
    codec: str
    duration: float | None


@dataclass(frozen=True)
class Decoded:
    """One frame: ``index`` from 0, ``time`` in seconds since the first frame, and either ``image`` (H, W, 3)
    uint8 BGR, upright, or ``failure``, the reason why there is none."""

    index: int
    time: float
    image: U8 | None
    failure: str | None = None


class Source(Protocol):
    """An opened input."""

    info: SourceInfo
    expected: int
    """``info.frames``, or where only decoding tells, how many there should be."""
    truncated: str | None
    """Why there are fewer frames than promised; complete once the frames have been read to their end."""

    def frames(self, start: int = 0) -> Iterator[Decoded]:
        """Every frame from ``start`` on, once and in order: the same from any start. One iteration at a
        time: a new one ends the one before."""
        ...

    def time_of(self, frame: int) -> float:
        """The ``time`` that ``frame`` has or would have, without decoding it; nominal where only decoding tells."""
        ...

    def next_start(self, frame: int) -> int | None:
        """The first frame behind ``frame`` for which nothing before it has to be decoded, the end if there is none;
        None where decoding has to begin with the first frame of all, whichever is wanted."""
        ...

    def close(self) -> None: ...


def too_large(path: object, width: int, height: int, max_pixels: int) -> SourceError:
    """The error for a frame beyond the limit."""
    return SourceError(
        "too-large",
        f"{path}: {width}x{height} is {width * height / 1e6:.1f} million pixels, more than the"
        f" {max_pixels / 1e6:.1f} million allowed; raise stages.max_pixels and stages.ring_mb, or scale it down",
    )
