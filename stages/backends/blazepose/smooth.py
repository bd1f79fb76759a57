"""Mends poses over time: what a single frame cannot know about itself.

Three things, each of which leaves pose, joints and surface consistent by posing the body anew:

- A joint whose rotation fits neither the motion before nor after it, for a frame or two, is an outlier; it takes the
  rotation that its neighbours lead to. Motion that is merely fast fits at least one of them.
- The less the network sees of a limb, the slower that limb moves: the guess for a hidden arm flaps.
- A person who was not seen for a few frames moves from the last sighting to the next.

Rotations are interpolated along the shortest arc (Shoemake 1985).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from stages.body.skeleton import JOINT
from stages.protocols import BodyModel
from stages.records import F32, Track

F64 = npt.NDArray[np.float64]

REACH = 2
"""Frames before and after that a rotation is compared with."""
OUTLIER = np.deg2rad(30)
"""Smallest distance of a rotation from everything that its neighbours lead to, for it to be an outlier."""
SEEN = 0.5
"""Visibility from which a limb follows its landmarks at once."""
SLOWEST = 0.02
"""Least share of the way to the measured rotation that a limb goes in one frame."""
NOTICEABLE = np.deg2rad(1)
"""Least change of a rotation for which the body is posed anew."""
FILLED_CONFIDENCE = 0.5
"""Confidence of a filled-in frame, as a share of the lower one of the two sightings around it."""
FOCAL_FOR_CROP = 5000.0 / 256.0
"""HMR2's focal length as a multiple of the image's longer side."""

LIMBS: tuple[tuple[str, int, int], ...] = (
    ("shoulder", 13, 14), ("elbow", 15, 16), ("wrist", 19, 20), ("hip", 25, 26), ("knee", 27, 28), ("ankle", 31, 32),
)  # fmt: skip
"""Joints that turn a limb, and BlazePose's landmarks, left and right, that show how."""


def gains(visibility: npt.NDArray[np.float32]) -> F32:
    """How fast each joint may follow what was measured: (24,) in [SLOWEST, 1], from visibilities (33,) in [0, 1]."""
    found = np.ones(len(JOINT), np.float32)
    for name, *landmarks in LIMBS:
        for side, landmark in zip(("left", "right"), landmarks, strict=True):
            share = np.clip(visibility[landmark] / SEEN, 0.0, 1.0) ** 2
            found[JOINT[f"{side}_{name}"]] = max(share, SLOWEST)
    return found


class Mender:
    """Mends the tracks of one video of ``width`` x ``height`` pixels."""

    def __init__(self, body: BodyModel, width: int, height: int) -> None:
        self._body = body
        self._focal = FOCAL_FOR_CROP * max(width, height)
        self._centre = np.array([width / 2, height / 2])

    def mend(self, track: Track, gain: F32, near: Mapping[int, F32]) -> Track:
        """The track with its outliers replaced and its hidden limbs slowed down.

        Args:
            track: one sighting.
            gain: (24,), from `gains`.
            near: poses (24, 3, 3) of the same person by their distance in frames, -2 to 2: before, as they
                were mended, and after, as they were measured; those that there are.
        """
        pose = np.array(track.pose, np.float64)
        if len(near) > REACH:
            odd = np.stack([_angle(other, pose) for other in near.values()]).min(axis=0) > OUTLIER
            if odd.any():
                pose[odd] = _expected(pose[odd], {distance: other[odd] for distance, other in near.items()})
        if -1 in near and (slow := gain < 1).any():
            pose[slow] = _along(near[-1][slow], pose[slow], gain[slow])
        if _angle(pose, track.pose).max() < NOTICEABLE:
            return track
        return self._posed(track, pose.astype(np.float32))

    def between(self, before: Track, after: Track, share: float) -> Track:
        """A frame in which the person was not seen, ``share`` of the way between two sightings."""

        def mix(name: str) -> F32:
            first, second = (np.asarray(getattr(track, name), np.float64) for track in (before, after))
            return (first + share * (second - first)).astype(np.float32)

        track = replace(
            before,
            box=mix("box"),
            camera=mix("camera"),
            betas=mix("betas"),
            confidence=FILLED_CONFIDENCE * min(before.confidence, after.confidence),
            detected=False,
        )
        return self._posed(track, _along(before.pose, after.pose, share).astype(np.float32))

    def _posed(self, track: Track, pose: F32) -> Track:
        vertices, joints = self._body.surface(pose[None], np.asarray(track.betas, np.float32)[None])
        placed = joints[0].astype(np.float64) + track.camera
        return replace(
            track,
            pose=pose,
            joints_3d=joints[0],
            joints_2d=(self._focal * placed[:, :2] / placed[:, 2:] + self._centre).astype(np.float32),
            vertices=None if track.vertices is None else vertices[0],
        )


def _expected(rotations: F64, near: Mapping[int, F32]) -> F64:
    """The rotations (N, 3, 3), those that fit no motion of their neighbours replaced by what most of these lead to."""
    guesses = np.stack([_along(near[a], near[b], -a / (b - a)) for a, b in combinations(sorted(near), 2)])
    outliers = np.stack([_angle(guess, rotations) for guess in guesses]).min(axis=0) > OUTLIER
    # The guess that the others agree with most: one that leans on another outlier stands alone.
    apart = np.stack([np.sum([_angle(a, b) for b in guesses], axis=0) for a in guesses])
    best = guesses[apart.argmin(axis=0), np.arange(len(rotations))]
    return np.where(outliers[:, None, None], best, rotations)


def _along(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating], share: float | F32) -> F64:
    """Rotations (N, 3, 3) ``share`` of the way from ``first`` to ``second``; below 0 and above 1, beyond them."""
    start = Rotation.from_matrix(first)
    arc = (start.inv() * Rotation.from_matrix(second)).as_rotvec()
    found: F64 = (start * Rotation.from_rotvec(arc * np.reshape(share, (-1, 1)))).as_matrix()
    return found


def _angle(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> F64:
    """Angles (N,) in radians between rotations (N, 3, 3)."""
    trace = np.einsum("nij,nij->n", first, second)
    found: F64 = np.arccos(np.clip((trace - 1) / 2, -1.0, 1.0))
    return found


def window(poses: Sequence[tuple[int, F32]], frame: int) -> dict[int, F32]:
    """Of (frame, pose), those within reach of ``frame``, by their distance from it."""
    return {other - frame: pose for other, pose in poses if 0 < abs(other - frame) <= REACH}
