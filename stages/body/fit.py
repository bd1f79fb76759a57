"""Fits the body to 33 landmarks of one person in one frame.

Closed form, from the root outwards: pelvis from hips and spine, chest from shoulders and spine with the twist shared by
the spine's joints, limbs by the least rotation that points each bone at its landmark, head from ears and nose.
Image coordinates say where things are across the view, world landmarks how far away: the image is the more exact of the
two. Landmarks' numbers are BlazePose's (Bazarevsky et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.body.model import LinearBody
from stages.body.skeleton import JOINT
from stages.records import F32

F64 = npt.NDArray[np.float64]

NOSE, LEFT_EAR, RIGHT_EAR = 0, 7, 8
LEFT, RIGHT = 0, 1
SHOULDERS, ELBOWS, WRISTS = (11, 12), (13, 14), (15, 16)
PINKIES, INDEXES = (17, 18), (19, 20)
HIPS, KNEES, ANKLES, HEELS, TOES = (23, 24), (25, 26), (27, 28), (29, 30), (31, 32)

SEEN = 0.1
"""Visibility from which a landmark moves a limb; below, the limb hangs at rest."""
RELAXED_ARM = np.deg2rad(70)
"""How far the resting arm hangs below the template's horizontal one."""
EARS_FROM_HEAD = np.array([0.0, 0.075, 0.0])
"""From the head's joint to the middle of the ears, metres in the template's axes."""
NOSE_DROP = np.deg2rad(-12)
"""How far below the ears' level the nose stands, seen from the ears, when the head is upright."""
SHAPE_PRIOR = 0.03
"""Standard deviation of a measured bone length, relative, against coefficients of deviation 1: the smaller, the more
the measurement counts."""
FITTED_SHAPES = (0, 2, 3, 4, 5, 6)
"""Coefficients that bone lengths can tell: height, leg, arm and torso length, shoulder and hip width."""
FOCAL_FOR_CROP = 5000.0 / 256.0
"""HMR2's focal length as a multiple of the image's longer side."""

BONES: tuple[tuple[str, str, int, int], ...] = (
    ("left_hip", "left_knee", 23, 25), ("right_hip", "right_knee", 24, 26), ("left_knee", "left_ankle", 25, 27),
    ("right_knee", "right_ankle", 26, 28), ("left_shoulder", "left_elbow", 11, 13),
    ("right_shoulder", "right_elbow", 12, 14), ("left_elbow", "left_wrist", 13, 15),
    ("right_elbow", "right_wrist", 14, 16), ("left_shoulder", "right_shoulder", 11, 12),
    ("left_hip", "right_hip", 23, 24), ("left_hip", "left_shoulder", 23, 11), ("right_hip", "right_shoulder", 24, 12),
)  # fmt: skip
"""Lengths that are measured: between which joints, and between which landmarks."""

ANCHORS: tuple[tuple[str, int], ...] = (
    ("left_shoulder", 11), ("right_shoulder", 12), ("left_elbow", 13), ("right_elbow", 14), ("left_wrist", 15),
    ("right_wrist", 16), ("left_hip", 23), ("right_hip", 24), ("left_knee", 25), ("right_knee", 26),
    ("left_ankle", 27), ("right_ankle", 28),
)  # fmt: skip
"""Joints that have a landmark: these place the body before the camera."""


@dataclass(frozen=True)
class Fitted:
    """A fitted body, all float32: ``pose`` (24, 3, 3) rotations, root first, each relative to its parent; ``betas``
    (10,); ``camera`` (3,) full-image translation in metres; ``joints_3d`` (24, 3) and ``vertices`` (V, 3) metres
    relative to the root, camera axes; ``joints_2d`` (24, 2) pixels."""

    pose: F32
    betas: F32
    camera: F32
    joints_3d: F32
    joints_2d: F32
    vertices: F32


class BodyFit:
    """Fits one body model; what depends on the model alone is computed once."""

    def __init__(self, body: LinearBody) -> None:
        self._body = body
        starts = np.array([JOINT[first] for first, *_ in BONES])
        ends = np.array([JOINT[second] for _, second, *_ in BONES])
        rest = np.asarray(body.joints_rest, np.float64)
        bones = rest[ends] - rest[starts]
        self._lengths = np.linalg.norm(bones, axis=1)
        shapes = np.asarray(body.joint_shapedirs, np.float64)[:, :, list(FITTED_SHAPES)]
        change = np.einsum("bc,bcs->bs", bones, shapes[ends] - shapes[starts]) / self._lengths[:, None]
        # Relative change of each length per unit of each coefficient; with the prior it is always solvable.
        self._jacobian = change / self._lengths[:, None]

    def fit(
        self,
        image: npt.NDArray[Any],
        world: npt.NDArray[Any],
        visibility: npt.NDArray[Any],
        width: int,
        height: int,
    ) -> Fitted:
        """Fit pose, shape and camera.

        Args:
            image: (33, 2) or (33, 3) landmarks, x and y in pixels of the full image.
            world: (33, 3) landmarks in metres, camera axes.
            visibility: (33,) in [0, 1].
            width: of the full image in pixels, and ``height``.
        """
        pixels = np.nan_to_num(np.asarray(image, np.float64)[:, :2])
        seen = np.nan_to_num(np.asarray(visibility, np.float64)) >= SEEN
        points = _blend(pixels, np.nan_to_num(np.asarray(world, np.float64)))
        betas = self._shape(points)
        rest = self._body.rest_joints(betas)
        pose = _Poser(rest, points, seen).pose()
        vertices, joints = self._body.surface(pose[None].astype(np.float32), betas[None].astype(np.float32))
        focal = FOCAL_FOR_CROP * max(width, height)
        centre = np.array([width / 2, height / 2])
        camera = _place(joints[0].astype(np.float64), pixels - centre, seen, focal)
        placed = joints[0] + camera
        return Fitted(
            pose=pose.astype(np.float32),
            betas=betas.astype(np.float32),
            camera=camera.astype(np.float32),
            joints_3d=joints[0],
            joints_2d=(focal * placed[:, :2] / placed[:, 2:] + centre).astype(np.float32),
            vertices=vertices[0],
        )

    def _shape(self, points: F64) -> F64:
        """Coefficients (10,) from bone lengths: ridge regression towards the average body."""
        measured = np.array([np.linalg.norm(points[b] - points[a]) for *_, a, b in BONES])
        deviation = np.clip(measured / self._lengths - 1, -0.3, 0.3)
        square = self._jacobian.T @ self._jacobian + SHAPE_PRIOR**2 * np.eye(len(FITTED_SHAPES))
        betas = np.zeros(self._body.joint_shapedirs.shape[2])
        betas[list(FITTED_SHAPES)] = np.clip(np.linalg.solve(square, self._jacobian.T @ deviation), -4, 4)
        return betas


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
        self._set("pelvis", pelvis)
        self._joints[0] = middle - pelvis @ (middle_rest - rest[0])
        self._spine(pelvis, chest)
        self._head()
        for side, name in ((LEFT, "left"), (RIGHT, "right")):
            self._leg(side, name)
            self._arm(side, name)
        return self._pose

    def _spine(self, pelvis: F64, chest: F64) -> None:
        """Share the turn from pelvis to chest, then lean at the lowest joint until the shoulders' middle is where it
        should be: hips that are not level would carry it aside."""
        rest = self._rest
        target = (self._points[SHOULDERS[LEFT]] + self._points[SHOULDERS[RIGHT]]) / 2
        offset = (rest[JOINT["left_shoulder"]] + rest[JOINT["right_shoulder"]]) / 2 - rest[JOINT["spine3"]]
        first = third = _power(pelvis.T @ chest, 1 / 3)
        for _ in range(3):
            self._follow("spine1", "pelvis", first)
            self._follow("spine2", "spine1", third)
            self._follow("spine3", "spine2", self._world[JOINT["spine2"]].T @ chest)
            base = self._joints[JOINT["spine1"]]
            reached = self._joints[JOINT["spine3"]] + chest @ offset
            lean = _limited(_least_rotation(reached - base, target - base), np.deg2rad(40))
            first = pelvis.T @ lean @ pelvis @ first

    def _head(self) -> None:
        points = self._points
        chest = self._world[JOINT["spine3"]]
        if not self._seen[[NOSE, LEFT_EAR, RIGHT_EAR]].all():
            self._follow("neck", "spine3", np.eye(3))
            self._follow("head", "neck", np.eye(3))
            return
        ears = (points[LEFT_EAR] + points[RIGHT_EAR]) / 2
        across = points[LEFT_EAR] - points[RIGHT_EAR]
        # The nose lies a little below the ears when the head is upright.
        head = _frame(across, np.cross(points[NOSE] - ears, across)) @ _about_x(NOSE_DROP)
        head = chest @ _limited(chest.T @ head, np.deg2rad(80))
        self._reach("neck", "spine3")
        base = ears - head @ EARS_FROM_HEAD
        bone = self._rest[JOINT["head"]] - self._rest[JOINT["neck"]]
        swing = _least_rotation(bone, chest.T @ (base - self._joints[JOINT["neck"]]))
        self._follow("neck", "spine3", _limited(swing, np.deg2rad(50)))
        self._follow("head", "neck", self._world[JOINT["neck"]].T @ head)

    def _leg(self, side: int, name: str) -> None:
        self._point(f"{name}_hip", "pelvis", f"{name}_knee", KNEES[side])
        self._point(f"{name}_knee", f"{name}_hip", f"{name}_ankle", ANKLES[side])
        toe = self._points[TOES[side]] - self._points[HEELS[side]]
        self._aim(f"{name}_ankle", f"{name}_knee", f"{name}_foot", toe, bool(self._seen[TOES[side]]), flat=True)
        self._follow(f"{name}_foot", f"{name}_ankle", np.eye(3))

    def _arm(self, side: int, name: str) -> None:
        self._reach(f"{name}_collar", "spine3")
        collar = self._rest[JOINT[f"{name}_shoulder"]] - self._rest[JOINT[f"{name}_collar"]]
        shoulder = self._points[SHOULDERS[side]] - self._joints[JOINT[f"{name}_collar"]]
        shrug = _least_rotation(collar, self._world[JOINT["spine3"]].T @ shoulder)
        self._follow(f"{name}_collar", "spine3", _limited(shrug, np.deg2rad(25)))
        hang = RELAXED_ARM if side == RIGHT else -RELAXED_ARM
        self._point(f"{name}_shoulder", f"{name}_collar", f"{name}_elbow", ELBOWS[side], _about_z(hang))
        self._point(f"{name}_elbow", f"{name}_shoulder", f"{name}_wrist", WRISTS[side])
        knuckles = (self._points[PINKIES[side]] + self._points[INDEXES[side]]) / 2
        reach = knuckles - self._points[WRISTS[side]]
        self._aim(
            f"{name}_wrist", f"{name}_elbow", f"{name}_hand", reach, bool(self._seen[INDEXES[side]]), flat=False
        )
        self._follow(f"{name}_hand", f"{name}_wrist", np.eye(3))

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

    def _aim(self, name: str, parent: str, child: str, towards: F64, seen: bool, *, flat: bool) -> None:
        """Rotate a hand or foot to a direction. ``flat`` compares without height: a foot's joint lies over its sole."""
        if not seen or np.linalg.norm(towards) < 1e-6:
            self._follow(name, parent, np.eye(3))
            return
        bone = self._rest[JOINT[child]] - self._rest[JOINT[name]]
        if flat:
            bone = bone * np.array([1.0, 0.0, 1.0])
        turn = _least_rotation(bone, self._world[JOINT[parent]].T @ towards)
        self._follow(name, parent, _limited(turn, np.deg2rad(60)))

    def _follow(self, name: str, parent: str, local: F64) -> None:
        self._reach(name, parent)
        self._set(name, self._world[JOINT[parent]] @ local)
        self._pose[JOINT[name]] = local

    def _reach(self, name: str, parent: str) -> None:
        joint, above = JOINT[name], JOINT[parent]
        self._joints[joint] = self._joints[above] + self._world[above] @ (self._rest[joint] - self._rest[above])

    def _set(self, name: str, rotation: F64) -> None:
        self._world[JOINT[name]] = rotation
        if name == "pelvis":
            self._pose[0] = rotation


def _blend(pixels: F64, world: F64) -> F64:
    """Landmarks in metres (33, 3): across the view from the image, scaled to the world landmarks, depth from those."""
    body = np.arange(11, 33)
    flat = pixels - pixels[body].mean(axis=0)
    metres = world[:, :2] - world[body, :2].mean(axis=0)
    spread = float((flat[body] ** 2).sum())
    scale = float((flat[body] * metres[body]).sum()) / spread if spread > 1e-9 else 0.0
    if scale <= 1e-9:
        return world
    return np.column_stack([flat * scale, world[:, 2]])


def _place(joints: F64, pixels: F64, seen: npt.NDArray[np.bool_], focal: float) -> F64:
    """The translation (3,) in metres that projects the anchored joints onto their landmarks best: least squares, linear
    in the translation once both sides of u = f (X + tx) / (Z + tz) are multiplied by the depth."""
    chosen = [(JOINT[name], landmark) for name, landmark in ANCHORS if seen[landmark]]
    if len(chosen) < 3:
        chosen = [(JOINT[name], landmark) for name, landmark in ANCHORS]
    points = joints[[joint for joint, _ in chosen]]
    targets = pixels[[landmark for _, landmark in chosen]]
    rows, right = [], []
    for axis in range(2):
        row = np.zeros((len(points), 3))
        row[:, axis] = focal
        row[:, 2] = -targets[:, axis]
        rows.append(row)
        right.append(targets[:, axis] * points[:, 2] - focal * points[:, axis])
    found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0]
    # The equations cannot tell a body in front of the camera from one behind it when the landmarks are rubbish.
    found[2] = np.clip(found[2], 1.0, 1e5)
    result: F64 = found
    return result


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
    axis = np.cross(a, b)
    if cosine < -1 + 1e-9:
        axis = np.cross(a, np.eye(3)[int(np.argmin(np.abs(a)))])
        return _rotation(_unit(axis, np.array([1.0, 0.0, 0.0])) * np.pi)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turned: F64 = np.eye(3) + cross + cross @ cross / (1 + cosine)
    return turned


def _rotation(vector: F64) -> F64:
    """Rotation matrix of an axis-angle vector (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: F64 = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned


def _vector(rotation: F64) -> F64:
    """Axis-angle vector of a rotation matrix, by its quaternion: exact near half turns too."""
    trace = float(np.trace(rotation))
    candidates = np.array([trace, *np.diag(rotation)])
    which = int(np.argmax(candidates))
    if which == 0:
        w = 1 + trace
        axis = np.array(
            [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
        )
    else:
        i = which - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        axis = np.zeros(3)
        axis[i] = 1 + rotation[i, i] - rotation[j, j] - rotation[k, k]
        axis[j] = rotation[j, i] + rotation[i, j]
        axis[k] = rotation[k, i] + rotation[i, k]
        w = rotation[k, j] - rotation[j, k]
    length = float(np.linalg.norm(axis))
    if length < 1e-12:
        return np.zeros(3)
    angle = 2 * np.arctan2(length, w)
    if angle > np.pi:
        angle -= 2 * np.pi
    found: F64 = axis / length * angle
    return found


def _power(rotation: F64, share: float) -> F64:
    """A share of a rotation about the same axis."""
    return _rotation(_vector(rotation) * share)


def _limited(rotation: F64, most: float) -> F64:
    """The rotation, by at most the angle ``most``."""
    vector = _vector(rotation)
    angle = float(np.linalg.norm(vector))
    return rotation if angle <= most else _rotation(vector * (most / angle))


def _about_x(angle: float) -> F64:
    return _rotation(np.array([angle, 0.0, 0.0]))


def _about_z(angle: float) -> F64:
    return _rotation(np.array([0.0, 0.0, angle]))
