"""Results as arrays: each track's movement over time, without the surfaces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.records import F32, FrameRecord, Header, Track
from stages.results import read_results

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

NEAREST = 0.05
"""Metres: nobody stands nearer to the camera, or behind it."""
LONGEST_REPEAT = 60
"""Frames for which a tracker may repeat a lost person (PHALP: 50). Longer, and it is the picture that stands
still."""


@dataclass(frozen=True)
class Series:
    """One track over the N frames that have it, in order.

    ``frames`` (N,) numbers; ``pose`` (N, J, 3, 3) rotations; ``betas`` (N, B); ``camera`` (N, 3) and ``joints`` (N,
    J, 3) metres, camera axes; ``joints_2d`` (N, J, 2) and ``boxes`` (N, 4) pixels; ``confidence`` (N,); ``seen`` (N,)
    whether the picture shows the person there, or the tracker only goes on with what it knew.
    """

    id: int
    frames: I64
    pose: F32
    betas: F32
    camera: F32
    joints: F32
    joints_2d: F32
    boxes: F32
    confidence: F32
    seen: Bool

    def only(self, keep: Bool) -> Series:
        """The same track at some of its frames; ``keep`` (N,)."""
        return Series(
            self.id, self.frames[keep], self.pose[keep], self.betas[keep], self.camera[keep], self.joints[keep],
            self.joints_2d[keep], self.boxes[keep], self.confidence[keep], self.seen[keep],
        )  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A whole result. ``times`` (F,) seconds of its frames, ``failed`` and ``damaged`` (F,) their marks."""

    header: Header
    times: F64
    failed: Bool
    damaged: Bool
    tracks: tuple[Series, ...]


@dataclass
class _Growing:
    rows: list[Track] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)


def read_clip(results: Path) -> Clip:
    """Read a ``frames.msgpack`` without its surfaces: some 2 KB a person and frame are held.

    Raises:
        ResultsError: it cannot be read.
    """
    with read_results(results) as found:
        return collect(found.header, found)


def collect(header: Header, records: Iterable[FrameRecord]) -> Clip:
    """The arrays of records."""
    growing: dict[int, _Growing] = {}
    times: list[float] = []
    failed: list[bool] = []
    damaged: list[bool] = []
    for record in records:
        times.append(record.time)
        failed.append(record.failed is not None)
        damaged.append(record.damaged is not None)
        for track in record.tracks:
            rows = growing.setdefault(track.id, _Growing())
            rows.frames.append(record.frame)
            rows.rows.append(_without_surface(track))
    stamps = np.array(times, np.float64)
    tracks = tuple(_series(identity, growing[identity]) for identity in sorted(growing))
    return Clip(header, stamps, np.array(failed, np.bool_), np.array(damaged, np.bool_), tracks)


def _without_surface(track: Track) -> Track:
    """A copy: views of the message would keep the whole of it in memory."""

    def own(array: F32) -> F32:
        return np.array(array, np.float32)

    return Track(
        track.id, own(track.box), track.confidence, own(track.camera), own(track.pose), own(track.betas),
        own(track.joints_3d), own(track.joints_2d), None, track.detected,
    )  # fmt: skip


def _series(identity: int, growing: _Growing) -> Series:
    rows = growing.rows

    def stack(name: str) -> F32:
        # A backend's numbers may be anything; what is none would spread over the whole track.
        return np.nan_to_num(np.stack([getattr(row, name) for row in rows]).astype(np.float32))

    frames = np.array(growing.frames, np.int64)
    pose, camera, boxes = _rotations(stack("pose")), stack("camera"), stack("box")
    camera[:, 2] = np.maximum(camera[:, 2], NEAREST)
    detected = np.array([row.detected for row in rows], np.bool_)
    return Series(
        identity, frames, pose, stack("betas"), camera, stack("joints_3d"), stack("joints_2d"), boxes,
        np.array([row.confidence for row in rows], np.float32),
        detected & ~repeated(frames, pose, camera, boxes),
    )  # fmt: skip


def _rotations(pose: F32) -> F32:
    """Poses (N, J, 3, 3) with the identity where a backend gave no rotation."""
    wrong = ~(np.linalg.det(pose.astype(np.float64)) > 0.1)
    pose[wrong] = np.eye(3, dtype=np.float32)
    return pose


def repeated(frames: I64, pose: F32, camera: F32, boxes: F32) -> Bool:
    """Which of N frames are the one before over again, to the last bit: PHALP keeps a lost person's last pose for up
    to 50 frames. No network finds the same in two pictures, unless the pictures are the same: then it goes on for
    longer.

    Args:
        frames: (N,) numbers; ``pose`` (N, J, 3, 3), ``camera`` (N, 3), ``boxes`` (N, 4).
    """
    same = np.zeros(len(frames), np.bool_)
    if len(frames) > 1:
        flat = np.concatenate([pose.reshape(len(frames), -1), camera, boxes], axis=1)
        same[1:] = (flat[1:] == flat[:-1]).all(axis=1) & (np.diff(frames) == 1)
    for first, last in runs(same):
        if last - first + 1 > LONGEST_REPEAT:
            same[first : last + 1] = False
    return same


def runs(marks: Bool) -> list[tuple[int, int]]:
    """First and last index of every unbroken run of True in ``marks`` (N,)."""
    edges = np.diff(np.concatenate([[0], marks.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True))
