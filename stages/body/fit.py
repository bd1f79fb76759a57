"""Fits the body to 33 landmarks of one person at one moment.

A first pose in closed form, from the root outwards: pelvis from hips and spine, chest from shoulders and spine with the
twist shared by the spine's joints, limbs by the least rotation that points each bone at its landmark. Then the solver
(`stages.body.solve`) weighs what is seen against what bodies can do. Image coordinates say where things are across the
view, world landmarks roughly how far away. Landmarks' numbers are BlazePose's (Bazarevsky et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from stages.body.model import LinearBody, forward_kinematics
from stages.body.skeleton import JOINT
from stages.body.solve import Solver
from stages.body.window import Sighting
from stages.records import F32

F64 = npt.NDArray[np.float64]

LEFT, RIGHT = 0, 1
SHOULDERS, ELBOWS, WRISTS = (11, 12), (13, 14), (15, 16)
HIPS, KNEES, ANKLES = (23, 24), (25, 26), (27, 28)

SEEN = 0.1
"""Visibility from which a landmark moves a limb; below, the limb hangs at rest."""
HANGING = tuple(Rotation.from_rotvec([0.0, 0.0, np.deg2rad(turn)]).as_matrix() for turn in (-70, 70))
"""How the resting arms, left and right, hang below the template's horizontal ones."""
LENS = 1.0
"""Focal length over the longer side of the picture: that of an everyday camera (a telephone's is 0.7 to 1). The true
one is not known; what matters is that near things are seen larger, and from 0.7 to 1.3 that errs little."""
NEAREST = 0.3
"""Metres from the camera at which a body may be."""

ANCHORS: tuple[tuple[str, int], ...] = (
    ("left_shoulder", 11), ("right_shoulder", 12), ("left_elbow", 13), ("right_elbow", 14), ("left_wrist", 15),
    ("right_wrist", 16), ("left_hip", 23), ("right_hip", 24), ("left_knee", 25), ("right_knee", 26),
    ("left_ankle", 27), ("right_ankle", 28),
)  # fmt: skip
"""Joints that have a landmark: these place the body before the camera."""


@dataclass(frozen=True)
class Fitted:
    """A fitted body, all float32: ``pose`` (24, 3, 3) rotations, root first, each relative to its parent; ``betas``
    (10,); ``camera`` (3,) the root's place in metres, camera axes; ``joints_3d`` (24, 3) and ``vertices`` (V, 3)
    metres relative to the root, camera axes; ``joints_2d`` (24, 2) pixels."""

    pose: F32
    betas: F32
    camera: F32
    joints_3d: F32
    joints_2d: F32
    vertices: F32


def focal_length(width: int, height: int) -> float:
    """In pixels; the middle of the picture is its principal point."""
    return LENS * max(width, height)


class BodyFit:
    """Fits one body model to landmarks in pictures of ``width`` x ``height`` pixels."""

    def __init__(self, body: LinearBody, width: int, height: int) -> None:
        self._body = body
        self._solver = Solver()
        self._focal = focal_length(width, height)
        self._centre = np.array([width / 2, height / 2])

    def fit(self, seen: Sighting, betas: npt.NDArray[np.floating]) -> Fitted:
        """Fit pose and place of a body of the shape ``betas`` (10,)."""
        points = self.points(seen)
        rest = self._body.rest_joints(betas)
        first = _Poser(rest, points, seen.visibility >= SEEN).pose()
        _, begun = forward_kinematics(first, rest)
        root = points[list(HIPS)].mean(axis=0) - begun[[JOINT["left_hip"], JOINT["right_hip"]]].mean(axis=0)
        pose, root = self._solver.solve(first, root, rest, points, seen.visibility)
        root[2] = max(root[2], NEAREST)
        vertices, joints = self._body.surface(pose[None].astype(np.float32), np.asarray(betas, np.float32)[None])
        placed = joints[0].astype(np.float64) + root
        return Fitted(
            pose=pose.astype(np.float32),
            betas=np.asarray(betas, np.float32),
            camera=root.astype(np.float32),
            joints_3d=joints[0],
            joints_2d=(self._focal * placed[:, :2] / np.maximum(placed[:, 2:], 0.1) + self._centre).astype(
                np.float32
            ),
            vertices=vertices[0],
        )

    def points(self, seen: Sighting) -> F64:
        """Landmarks (33, 3) in metres from the camera: on their rays, as far apart in depth as the network says, and
        as far away as makes them as large as it says: u (Z + z) = t + x, linear in the distance Z and in t."""
        rays = (seen.image - self._centre) / self._focal
        world = seen.world - seen.world[list(HIPS)].mean(axis=0)
        chosen = np.array([number for _, number in ANCHORS])
        weight = np.sqrt(0.05 + seen.visibility[chosen] ** 2)
        rows, right = np.zeros((2, len(chosen), 3)), np.zeros((2, len(chosen)))
        for axis in range(2):
            rows[axis, :, 0] = rays[chosen, axis] * weight
            rows[axis, :, 1 + axis] = -weight
            right[axis] = (world[chosen, axis] - rays[chosen, axis] * world[chosen, 2]) * weight
        distance = float(np.linalg.lstsq(rows.reshape(-1, 3), right.reshape(-1), rcond=None)[0][0])
        depth = np.maximum(np.clip(distance, 2 * NEAREST, 1e4) + world[:, 2], NEAREST)
        return np.column_stack([rays * depth[:, None], depth])


class _Poser:
    """Walks the skeleton from the root outwards; rotations are from the template's axes to the camera's."""

    def __init__(self, rest: F64, points: F64, seen: npt.NDArray[np.bool_]) -> None:
        self._rest = rest
        self._points = points
        self._seen = seen
        self._pose = np.repeat(np.eye(3)[None], len(rest), axis=0)
        self._world = np.repeat(np.eye(3)[None], len(rest), axis=0)
        self._joints = np.zeros_like(rest)

    def pose(self) -> F64:
        """Local rotations (24, 3, 3)."""
        points, rest = self._points, self._rest
        hips = points[HIPS[LEFT]] - points[HIPS[RIGHT]]
        shoulders = points[SHOULDERS[LEFT]] - points[SHOULDERS[RIGHT]]
        middle = (points[HIPS[LEFT]] + points[HIPS[RIGHT]]) / 2
        spine = (points[SHOULDERS[LEFT]] + points[SHOULDERS[RIGHT]]) / 2 - middle
        pelvis, chest = _frame(hips, spine), _frame(shoulders, spine)
        # The template's own hips and shoulders need not lie exactly along its axes.
        middle_rest = (rest[JOINT["left_hip"]] + rest[JOINT["right_hip"]]) / 2
        spine_rest = (rest[JOINT["left_shoulder"]] + rest[JOINT["right_shoulder"]]) / 2 - middle_rest
        tilt = _least_rotation(np.array([0.0, 1.0, 0.0]), spine_rest)
        pelvis, chest = pelvis @ tilt.T, chest @ tilt.T
        self._pose[0] = self._world[0] = pelvis
        self._joints[0] = middle - pelvis @ (middle_rest - rest[0])
        third = Rotation.from_rotvec(Rotation.from_matrix(pelvis.T @ chest).as_rotvec() / 3).as_matrix()
        for name, parent in (("spine1", "pelvis"), ("spine2", "spine1"), ("spine3", "spine2")):
            self._follow(name, parent, third)
        for name, parent in (("neck", "spine3"), ("head", "neck")):
            self._follow(name, parent, np.eye(3))
        for side, name in ((LEFT, "left"), (RIGHT, "right")):
            self._point(f"{name}_hip", "pelvis", f"{name}_knee", KNEES[side])
            self._point(f"{name}_knee", f"{name}_hip", f"{name}_ankle", ANKLES[side])
            self._follow(f"{name}_collar", "spine3", np.eye(3))
            self._point(f"{name}_shoulder", f"{name}_collar", f"{name}_elbow", ELBOWS[side], HANGING[side])
            self._point(f"{name}_elbow", f"{name}_shoulder", f"{name}_wrist", WRISTS[side])
        return self._pose

    def _point(self, name: str, parent: str, child: str, landmark: int, rest: F64 | None = None) -> None:
        """Rotate a joint so that its child comes to lie towards the child's landmark, seen from where the joint
        really is: errors of the bones before do not add up."""
        self._reach(name, parent)
        towards = self._points[landmark] - self._joints[JOINT[name]]
        if not self._seen[landmark] or np.linalg.norm(towards) < 1e-6:
            self._follow(name, parent, np.eye(3) if rest is None else rest)
            return
        bone = self._rest[JOINT[child]] - self._rest[JOINT[name]]
        self._follow(name, parent, _least_rotation(bone, self._world[JOINT[parent]].T @ towards))

    def _follow(self, name: str, parent: str, local: F64) -> None:
        self._reach(name, parent)
        self._world[JOINT[name]] = self._world[JOINT[parent]] @ local
        self._pose[JOINT[name]] = local

    def _reach(self, name: str, parent: str) -> None:
        joint, above = JOINT[name], JOINT[parent]
        self._joints[joint] = self._joints[above] + self._world[above] @ (self._rest[joint] - self._rest[above])


def _frame(across: F64, up: F64) -> F64:
    """Rotation whose columns are x along ``across``, y along ``up`` as far as that allows, and z before the body."""
    x = _unit(across, np.array([1.0, 0.0, 0.0]))
    y = up - x * (x @ up)
    spare = np.cross(np.array([0.0, 0.0, -1.0]), x)
    if np.linalg.norm(spare) < 1e-6:
        spare = np.array([0.0, -1.0, 0.0]) - x * -x[1]
    y = _unit(y, _unit(spare, np.array([0.0, -1.0, 0.0])))
    return np.column_stack([x, y, np.cross(x, y)])


def _unit(vector: F64, otherwise: F64) -> F64:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-9 else otherwise


def _least_rotation(start: F64, end: F64) -> F64:
    """The smallest rotation that turns ``start`` into the direction of ``end``."""
    a, b = _unit(start, np.array([0.0, 1.0, 0.0])), _unit(end, np.array([0.0, 1.0, 0.0]))
    cosine = float(a @ b)
    if cosine < -1 + 1e-9:
        axis = _unit(np.cross(a, np.eye(3)[int(np.argmin(np.abs(a)))]), a)
        return 2 * np.outer(axis, axis) - np.eye(3)
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: F64 = np.eye(3) + cross + cross @ cross / (1 + cosine)
    return turned
