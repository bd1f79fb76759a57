"""The data that travels between stages, as numpy arrays with fixed shapes and dtypes.

N is the number of people in one frame, V the vertices of the body surface, J the joints (24 for SMPL).
Image coordinates are pixels of the upright frame, x right and y down; body coordinates are metres, x right,
y down, z away from the camera (the convention of HMR2's outputs).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """One decoded frame: ``image`` (H, W, 3) uint8 BGR, a view into the ring that is valid only during
    the call it is passed to; ``index`` from 0; ``time`` in seconds from the stream's own stamps."""

    image: U8
    index: int
    time: float


@dataclass
class Detections:
    """The people found in one frame, best first.

    ``boxes`` (N, 4) float32 x0 y0 x1 y1 in pixels; ``scores`` (N,) float32 in [0, 1]; ``extra`` holds what
    this backend's mesh regressor needs besides: arrays whose first axis is N, or msgpack-able values.
    """

    boxes: F32
    scores: F32
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class People:
    """The meshes of one frame.

    ``boxes`` (N, 4), ``scores`` (N,) as in `Detections`; ``camera`` (N, 3) full-image translation in metres;
    ``pose`` (N, 24, 3, 3) rotation matrices, root first, each relative to its parent; ``betas`` (N, 10);
    ``joints_3d`` (N, 24, 3) metres relative to the root; ``joints_2d`` (N, 24, 2) pixels; ``vertices``
    (N, V, 3) metres relative to the root, or None; all float32. ``extra`` as in `Detections`: what this
    backend's tracker needs besides.
    """

    boxes: F32
    scores: F32
    camera: F32
    pose: F32
    betas: F32
    joints_3d: F32
    joints_2d: F32
    vertices: F32 | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> People:
        def zeros(*shape: int) -> F32:
            return np.zeros(shape, np.float32)

        return cls(
            zeros(0, 4), zeros(0), zeros(0, 3), zeros(0, 24, 3, 3), zeros(0, 10), zeros(0, 24, 3),
            zeros(0, 24, 2),
        )  # fmt: skip


@dataclass
class Track:
    """One tracked person in one frame: the fields of `People` without the first axis, and an identity.

    ``detected`` is False where the tracker predicted the person through an occlusion.
    """

    id: int
    box: F32
    confidence: float
    camera: F32
    pose: F32
    betas: F32
    joints_3d: F32
    joints_2d: F32
    vertices: F32 | None = None
    detected: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a frame has no result: the stage that failed on it and a reason for a person."""

    stage: str
    reason: str


@dataclass
class FrameRecord:
    """One frame of the results. A failed frame has no tracks and a ``failed``.

    ``damaged`` says why the picture is not wholly the one that was filmed, though it was worked on; ``source`` is the
    image's file name in a folder of images; ``size`` is (width, height) in pixels of a picture that had another size
    than the header says, and was fitted into that with its middle in the middle.
    """

    frame: int
    time: float
    tracks: list[Track] = field(default_factory=list)
    failed: Failure | None = None
    damaged: str | None = None
    source: str | None = None
    size: tuple[int, int] | None = None


HMR2_FOCAL = 5000 / 256
"""Focal length of the full image over its longer side, by HMR2's convention."""


@dataclass(frozen=True)
class Header:
    """What holds for a whole result: size in square pixels of the upright frame, nominal frames per second (0 for
    a single image), the backend, joint names and parents (``skeleton``), and the surface's triangles
    ``faces`` (F, 3) int32.

    ``rate`` is ``fps`` as an exact fraction, such as (30000, 1001); ``variable`` says that the frames do not follow
    each other at one distance, so that only their times are right. A point p in the camera's axes, in metres, is at
    pixel ``focal * p[:2] / p[2] + principal``; both are in pixels, and those of HMR2 unless a backend says otherwise.
    """

    width: int
    height: int
    fps: float
    backend: str
    joint_names: tuple[str, ...]
    joint_parents: tuple[int, ...]
    faces: npt.NDArray[np.int32]
    rate: tuple[int, int] = (0, 0)
    """Taken from ``fps`` where it is left out; (0, 1) for a single image."""
    variable: bool = False
    focal: float = 0.0
    principal: tuple[float, float] = (0.0, 0.0)
    stream: int | None = None
    """Number of the video stream that was read, as its file counts them; None for pictures."""

    def __post_init__(self) -> None:
        if self.rate[1] <= 0:
            object.__setattr__(self, "rate", Fraction(self.fps).limit_denominator(1001).as_integer_ratio())
        if self.focal <= 0:
            object.__setattr__(self, "focal", HMR2_FOCAL * max(self.width, self.height))
            object.__setattr__(self, "principal", (self.width / 2, self.height / 2))
