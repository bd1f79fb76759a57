"""What every kind of input gives: information, and frames that are accounted for one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from stages.names import legible
from stages.records import U8

Progress = Callable[[], None]
"""Called in the middle of what takes longer the longer an input is: it still goes on."""

DAMAGED_HERE = "the file is damaged here: parts of the picture may be made up"
DAMAGED_BEFORE = "it is built on a damaged frame: parts of the picture may be wrong"
DAMAGES = (DAMAGED_HERE, DAMAGED_BEFORE)
"""All that `Decoded.damaged` may say: a number is enough to hand it on."""


class SourceError(Exception):
    """An input that cannot be worked on at all.

    ``name`` is stable and meant for programs: missing-file, no-permission, empty-file, unsupported,
    unreadable-video, no-video-stream, no-such-stream, unreadable-image, no-images, too-large. The message is for a
    person.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(legible(message))
        self.name = name


@dataclass(frozen=True)
class SourceInfo:
    """What an input is.

    ``kind`` is video, images (a folder) or image; ``width`` and ``height`` are square pixels of the upright frame,
    ``working`` (width, height) those of the frames that are given; ``rate`` is nominal frames per second, 0 for a
    single image; ``frames`` is the count, or None where only decoding tells; ``duration`` in seconds. Have been
    applied already: a mirroring left to right where ``mirrored``, then ``rotation`` in degrees counter-clockwise.
    ``variable`` says that frames do not follow each other at one distance. ``stream`` is the number of a video's
    stream in its file, ``matrix`` the code of its colours' matrix (ITU-T H.273; 2 where it does not say), ``notes``
    what a person should know of how it was read.
    """

    kind: str
    width: int
    height: int
    rate: Fraction
    frames: int | None
    rotation: int
    codec: str
    duration: float | None
    working: tuple[int, int]
    mirrored: bool = False
    variable: bool = False
    stream: int | None = None
    matrix: int = 2
    notes: tuple[str, ...] = ()

    @property
    def fps(self) -> float:
        """``rate`` as a float."""
        return float(self.rate)

    def to_map(self) -> dict[str, Any]:
        """For messages and for ``summary.json``."""
        return {
            "kind": self.kind, "width": self.width, "height": self.height, "fps": self.fps,
            "rate": list(self.rate.as_integer_ratio()), "variable": self.variable, "frames": self.frames,
            "rotation": self.rotation, "mirrored": self.mirrored, "codec": self.codec, "duration": self.duration,
            "working": list(self.working), "stream": self.stream, "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """One frame: ``index`` from 0, ``time`` in seconds since the first frame, and either ``image`` (H, W, 3)
    uint8 BGR, upright, or ``failure``, the reason why there is none.

    ``damaged``, one of `DAMAGES`, says that the image is not wholly what was filmed; ``size`` is the (width, height)
    of a picture that had another size than `SourceInfo` says and was fitted into that, its middle in the middle.
    """

    index: int
    time: float
    image: U8 | None
    failure: str | None = None
    damaged: str | None = None
    size: tuple[int, int] | None = None


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

    def name_of(self, frame: int) -> str | None:
        """The file name of a frame that is a file of its own."""
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
        f" {max_pixels / 1e6:.1f} million allowed; set stages.max_pixels to {width * height} or more if it is"
        " meant, or scale it down",
    )
