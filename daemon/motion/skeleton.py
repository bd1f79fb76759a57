"""The skeleton that a person's own joints tell: bone lengths, forward kinematics, projection. Needs no body model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def rest_offsets(pose: npt.NDArray[np.floating], joints: npt.NDArray[np.floating], parents: Sequence[int]) -> F64:
    """Each joint's place seen from its parent in the rest pose, in the body's own axes (x to its left, y up, z the
    way it faces) in metres: the median over the N frames. Zero for the root.

    Args:
        pose: (N, J, 3, 3) rotations, each relative to its parent; ``joints`` (N, J, 3) metres relative to the root.

    Returns:
        (J, 3).
    """
    return np.median(frame_offsets(pose, joints, parents), axis=0)


def frame_offsets(pose: npt.NDArray[np.floating], joints: npt.NDArray[np.floating], parents: Sequence[int]) -> F64:
    """As `rest_offsets`, of every frame: (N, J, 3)."""
    world = world_rotations(np.asarray(pose, np.float64), parents)
    places = np.asarray(joints, np.float64)
    offsets = np.zeros_like(places)
    for joint, parent in enumerate(parents):
        if parent >= 0:
            bone = places[:, joint] - places[:, parent]
            offsets[:, joint] = np.einsum("nab,na->nb", world[:, parent], bone)
    return offsets


def world_rotations(pose: F64, parents: Sequence[int]) -> F64:
    """From each joint's axes to the camera's, (N, J, 3, 3), of rotations relative to the parents."""
    world = np.empty_like(pose)
    for joint, parent in enumerate(parents):
        world[:, joint] = pose[:, joint] if parent < 0 else world[:, parent] @ pose[:, joint]
    return world


def place_joints(world: F64, offsets: F64, parents: Sequence[int]) -> F64:
    """Joints (N, J, 3) in metres relative to the root: forward kinematics over ``offsets`` (J, 3)."""
    joints = np.zeros((len(world), len(parents), 3))
    for joint, parent in enumerate(parents):
        if parent >= 0:
            joints[:, joint] = joints[:, parent] + world[:, parent] @ offsets[joint]
    return joints


def project(points: F64, focal: float, principal: tuple[float, float]) -> F64:
    """Pixels (…, 2) of points (…, 3) in the camera's axes; those behind the camera as if 5 cm before it."""
    depth = np.maximum(points[..., 2:], 0.05)
    flat: F64 = points[..., :2] / depth * focal + np.array(principal)
    return flat
