"""The data that travels between stages, as numpy arrays with fixed shapes and dtypes.

N is the number of people in one frame, V the vertices of the body surface, J the joints (24 for SMPL).
Image coordinates are pixels of the upright frame, x right and y down; body coordinates are metres, x right,
y down, z away from the camera (the convention of HMR2's outputs).
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """One frame of the results. A failed frame has no tracks and a ``failed``."""

    frame: int
    time: float
    tracks: list[Track] = field(default_factory=list)
    failed: Failure | None = None


@dataclass(frozen=True)
class Header:
    """What holds for a whole result: size in pixels of the upright frame, nominal frames per second (0 for
    a single image), the backend, joint names and parents (``skeleton``), and the surface's triangles
    ``faces`` (F, 3) int32."""

    width: int
    height: int
    fps: float
    backend: str
    joint_names: tuple[str, ...]
    joint_parents: tuple[int, ...]
    faces: npt.NDArray[np.int32]
