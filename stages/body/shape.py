"""One person's shape: what his bones' lengths say over all the time that he was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.body.model import LinearBody
from stages.body.skeleton import JOINT
from stages.body.window import Sighting

F64 = npt.NDArray[np.float64]

DOUBT = 0.15
"""Standard deviation of a bone's mean length, relative, against coefficients of deviation 1: a single camera errs alike
for a long time, so that many frames do not make a length much surer."""
FITTED_SHAPES = (0, 2, 3, 4, 5, 6)
"""Coefficients that bone lengths can tell: height, leg, arm and torso length, shoulder and hip width."""
FIRST = 10.0
"""Seconds of sightings after which the shape stays as it is."""

BONES: tuple[tuple[str, str, int, int], ...] = (
    ("left_hip", "left_knee", 23, 25), ("right_hip", "right_knee", 24, 26), ("left_knee", "left_ankle", 25, 27),
    ("right_knee", "right_ankle", 26, 28), ("left_shoulder", "left_elbow", 11, 13),
    ("right_shoulder", "right_elbow", 12, 14), ("left_elbow", "left_wrist", 13, 15),
    ("right_elbow", "right_wrist", 14, 16), ("left_shoulder", "right_shoulder", 11, 12),
    ("left_hip", "right_hip", 23, 24), ("left_hip", "left_shoulder", 23, 11), ("right_hip", "right_shoulder", 24, 12),
)  # fmt: skip
"""Lengths that are measured: between which joints, and between which landmarks."""


class ShapeFit:
    """From bone lengths to coefficients: ridge regression towards the average body."""

    def __init__(self, body: LinearBody) -> None:
        starts = np.array([JOINT[first] for first, *_ in BONES])
        ends = np.array([JOINT[second] for _, second, *_ in BONES])
        rest = np.asarray(body.joints_rest, np.float64)
        bones = rest[ends] - rest[starts]
        self._lengths = np.linalg.norm(bones, axis=1)
        shapes = np.asarray(body.joint_shapedirs, np.float64)[:, :, list(FITTED_SHAPES)]
        change = np.einsum("bc,bcs->bs", bones, shapes[ends] - shapes[starts]) / self._lengths[:, None]
        # Relative change of each length per unit of each coefficient; with the prior it is always solvable.
        jacobian = change / self._lengths[:, None]
        square = jacobian.T @ jacobian + DOUBT**2 * np.eye(len(FITTED_SHAPES))
        self._solve: F64 = np.linalg.solve(square, jacobian.T)
        self._count = body.joint_shapedirs.shape[2]

    def betas(self, seen: Lengths) -> F64:
        """Coefficients (10,)."""
        weight, length = seen.sums[:, 0], seen.sums[:, 1]
        known = weight > 1e-6
        mean = np.where(known, length / np.where(known, weight, 1.0), self._lengths)
        betas = np.zeros(self._count)
        betas[list(FITTED_SHAPES)] = np.clip(self._solve @ np.clip(mean / self._lengths - 1, -0.3, 0.3), -4, 4)
        return betas


class Lengths:
    """Weighted sums (bones, 2) of one person's bone lengths: of the weights, and of the lengths with them."""

    def __init__(self, sums: npt.NDArray[Any] | None = None) -> None:
        self.sums = np.zeros((len(BONES), 2)) if sums is None else np.array(sums, np.float64)

    def add(self, seen: Sighting) -> None:
        starts, ends = np.array([a for *_, a, _ in BONES]), np.array([b for *_, b in BONES])
        weight = (seen.visibility[starts] * seen.visibility[ends]) ** 2
        self.sums[:, 0] += weight
        self.sums[:, 1] += weight * np.linalg.norm(seen.world[starts] - seen.world[ends], axis=1)
