"""Poses the body so that its points come to lie where landmarks were seen, by damped least squares.

What is seen counts by how well each thing is known: across the view, landmarks are exact to about two centimetres;
along it, to about ten. Bones have one length, so that a limb that looks short must point to or from the camera.
Joints have angles that bodies have: the farther from them, the more it costs (in the spirit of SMPLify, Bogo et al.
2016; the increments are rotations in the camera's axes, about each joint, as in inverse kinematics).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from stages.body.model import forward_kinematics
from stages.body.skeleton import JOINT, JOINT_PARENTS

F64 = npt.NDArray[np.float64]

ROUNDS = 3
"""Steps of every fit: a fixed number, so that a fit costs the same whatever is seen."""
ACROSS, ALONG = 0.025, 0.3
"""Standard deviations of a well-seen landmark in metres, across the view and along it."""
DAMPING = 1e-3

POINTS: tuple[tuple[int, str, tuple[float, float, float]], ...] = (
    (0, "head", (0.0, 0.045, 0.125)), (7, "head", (0.07, 0.075, 0.0)), (8, "head", (-0.07, 0.075, 0.0)),
    (11, "left_shoulder", (0, 0, 0)), (12, "right_shoulder", (0, 0, 0)), (13, "left_elbow", (0, 0, 0)),
    (14, "right_elbow", (0, 0, 0)), (15, "left_wrist", (0, 0, 0)), (16, "right_wrist", (0, 0, 0)),
    (19, "left_wrist", (0.11, 0.0, 0.02)), (20, "right_wrist", (-0.11, 0.0, 0.02)),
    (17, "left_wrist", (0.10, 0.0, -0.03)), (18, "right_wrist", (-0.10, 0.0, -0.03)),
    (23, "left_hip", (0, 0, 0)), (24, "right_hip", (0, 0, 0)), (25, "left_knee", (0, 0, 0)),
    (26, "right_knee", (0, 0, 0)), (27, "left_ankle", (0, 0, 0)), (28, "right_ankle", (0, 0, 0)),
    (29, "left_ankle", (0.0, -0.06, -0.05)), (30, "right_ankle", (0.0, -0.06, -0.05)),
    (31, "left_ankle", (0.01, -0.06, 0.15)), (32, "right_ankle", (-0.01, -0.06, 0.15)),
)  # fmt: skip
"""Landmark (BlazePose's numbers), the joint that carries it, and where it lies from there in the template's axes."""

WORTH = {0: 0.5, 7: 0.5, 8: 0.5, 17: 0.3, 18: 0.3, 19: 0.4, 20: 0.4, 29: 0.4, 30: 0.4, 31: 0.5, 32: 0.5}
"""Weight of a landmark that is not a joint; joints have 1."""

HABITS: tuple[tuple[str, tuple[float, float, float], tuple[float, float, float]], ...] = (
    ("spine1", (0, 0, 0), (0.30, 0.20, 0.20)), ("spine2", (0, 0, 0), (0.25, 0.20, 0.20)),
    ("spine3", (0, 0, 0), (0.20, 0.20, 0.20)), ("neck", (0, 0, 0), (0.35, 0.35, 0.30)),
    ("head", (0, 0, 0), (0.35, 0.45, 0.30)),
    ("left_collar", (0, 0, 0), (0.10, 0.15, 0.20)), ("right_collar", (0, 0, 0), (0.10, 0.15, 0.20)),
    ("left_shoulder", (0, 0, -1.2), (1.0, 1.0, 1.0)), ("right_shoulder", (0, 0, 1.2), (1.0, 1.0, 1.0)),
    ("left_elbow", (0, -0.6, 0), (0.5, 0.9, 0.25)), ("right_elbow", (0, 0.6, 0), (0.5, 0.9, 0.25)),
    ("left_wrist", (0, 0, 0), (0.3, 0.4, 0.4)), ("right_wrist", (0, 0, 0), (0.3, 0.4, 0.4)),
    ("left_hip", (-0.2, 0, 0), (0.9, 0.4, 0.4)), ("right_hip", (-0.2, 0, 0), (0.9, 0.4, 0.4)),
    ("left_knee", (0.4, 0, 0), (0.8, 0.15, 0.15)), ("right_knee", (0.4, 0, 0), (0.8, 0.15, 0.15)),
    ("left_ankle", (0, 0, 0), (0.4, 0.25, 0.25)), ("right_ankle", (0, 0, 0), (0.4, 0.25, 0.25)),
)  # fmt: skip
"""Joint, its usual rotation vector and how far bodies depart from it (one standard deviation), in radians about the
template's axes: x bends knees and the back, y turns, z raises arms."""

LIMITS: tuple[tuple[str, int, float, float], ...] = (
    ("left_knee", 0, 0.0, 2.6), ("right_knee", 0, 0.0, 2.6), ("left_elbow", 1, -2.6, 0.0),
    ("right_elbow", 1, 0.0, 2.6),
)  # fmt: skip
"""Hinges: the axis they bend about and how far, in radians; beyond, each of 0.05 rad is a standard deviation."""
STOP = 0.05


class Solver:
    """Fits poses over one rest skeleton."""

    def __init__(self) -> None:
        self._turned = [0, *(JOINT[name] for name, *_ in HABITS)]
        column = {joint: i for i, joint in enumerate(self._turned)}
        self._carriers = np.array([JOINT[name] for _, name, _ in POINTS])
        self._offsets = np.array([offset for *_, offset in POINTS], np.float64)
        self._landmarks = np.array([number for number, *_ in POINTS])
        self._worth = np.array([WORTH.get(number, 1.0) for number, *_ in POINTS])
        self._moves = np.zeros((len(POINTS), len(self._turned)))
        """Whether a turned joint moves a point."""
        for point, joint in enumerate(self._carriers):
            while joint >= 0:
                if joint in column:
                    self._moves[point, column[joint]] = 1.0
                joint = JOINT_PARENTS[joint]
        self._habit = np.array([centre for _, centre, _ in HABITS], np.float64)
        self._spread = np.array([spread for *_, spread in HABITS], np.float64)
        self._parents = np.array([JOINT_PARENTS[joint] for joint in self._turned[1:]])
        self._limits = [(self._turned.index(JOINT[name]) - 1, axis, low, high) for name, axis, low, high in LIMITS]

    def solve(
        self, pose: F64, root: F64, rest: F64, points: F64, sight: npt.NDArray[Any], rounds: int = ROUNDS
    ) -> tuple[F64, F64]:
        """Improve a pose.

        Args:
            pose: (24, 3, 3) rotations to begin with, root first, each relative to its parent.
            root: (3,) where the root joint is from the camera, metres.
            rest: (24, 3) joints of the rest pose, template's axes.
            points: (33, 3) landmarks from the camera, metres: x and y on their rays at the depth z.
            sight: (33,) how well each is seen, in [0, 1].

        Returns:
            Rotations (24, 3, 3) and the root's place (3,).
        """
        targets = points[self._landmarks]
        weight = self._worth * (0.02 + np.asarray(sight, np.float64)[self._landmarks])
        scale = np.sqrt(weight)[:, None] / np.array([ACROSS, ACROSS, ALONG])
        turned = self._turned
        count = len(turned)
        local = Rotation.from_matrix(pose[turned])
        pose, root = pose.copy(), root.astype(np.float64)
        for _ in range(rounds):
            pose[turned] = local.as_matrix()
            world, joints = forward_kinematics(pose, rest)
            places = joints[self._carriers] + (world[self._carriers] @ self._offsets[..., None])[..., 0] + root
            arms = (places[:, None] - (joints[turned] + root)[None]) * self._moves[..., None]
            moved = np.zeros((len(targets), 3, 1 + count, 3))
            moved[:, :, 0] = np.eye(3)
            _turn(moved[:, :, 1:], arms)
            jacobian = moved.reshape(len(targets), 3, 3 + 3 * count)
            # Across the view, what counts is the distance from the ray through the landmark, at the point's depth.
            rays = targets[:, :2] / targets[:, 2:]
            apart = np.empty_like(places)
            apart[:, :2] = places[:, :2] - rays * places[:, 2:]
            apart[:, 2] = places[:, 2] - targets[:, 2]
            jacobian[:, :2] -= rays[:, :, None] * jacobian[:, 2:3]
            rows = (jacobian * scale[..., None]).reshape(-1, 3 + 3 * count)
            errors = (apart * scale).reshape(-1)
            square = rows.T @ rows
            right = rows.T @ errors
            self._add_habits(square, right, local, world)
            square[np.diag_indices_from(square)] += DAMPING * (1 + square.diagonal())
            step = -np.linalg.solve(square, right)
            root = root + step[:3]
            turns = step[3:].reshape(count, 3)
            length = np.linalg.norm(turns, axis=1, keepdims=True)
            turns = turns * np.minimum(1.0, 0.6 / np.maximum(length, 1e-12))
            # A turn in the camera's axes, seen from the parent.
            inner = np.concatenate([turns[:1], (turns[1:, None] @ world[self._parents])[:, 0]])
            local = Rotation.from_rotvec(inner) * local
        pose[turned] = local.as_matrix()
        return pose, root

    def _add_habits(self, square: F64, right: F64, local: Rotation, world: F64) -> None:
        vectors = local.as_rotvec()[1:]
        size = 1 / self._spread**2
        error = (vectors - self._habit) * size
        for joint, axis, low, high in self._limits:
            beyond = vectors[joint, axis] - np.clip(vectors[joint, axis], low, high)
            if beyond:
                error[joint, axis] += beyond / STOP**2
                size[joint, axis] += 1 / STOP**2
        frames = world[self._parents]
        blocks = (frames * size[:, None]) @ frames.transpose(0, 2, 1)
        first = 6 + 3 * np.arange(len(vectors))
        index = first[:, None] + np.arange(3)
        square[index[:, :, None], index[:, None, :]] += blocks
        right[index.reshape(-1)] += (frames @ error[..., None]).reshape(-1)


def _turn(jacobian: F64, arms: F64) -> None:
    """Write into ``jacobian`` (P, 3, J, 3) how points at the ends of ``arms`` (P, J, 3) move by small rotation
    vectors: -[arm]x."""
    x, y, z = arms[..., 0], arms[..., 1], arms[..., 2]
    jacobian[:, 0, :, 1], jacobian[:, 0, :, 2] = z, -y
    jacobian[:, 1, :, 0], jacobian[:, 1, :, 2] = -z, x
    jacobian[:, 2, :, 0], jacobian[:, 2, :, 1] = y, -x
