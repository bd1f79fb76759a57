"""Skinning weights and shape directions of our own body, from where a vertex lies on it.

Used when the template is built, never when bodies are posed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.body.skeleton import JOINT, JOINT_NAMES, JOINT_PARENTS

Array = npt.NDArray[np.float64]

SHAPES: tuple[str, ...] = (
    "height", "mass", "leg_length", "arm_length", "torso_length", "shoulder_width", "hip_width", "head_size",
    "limb_thickness", "lower_limb_share",
)  # fmt: skip
"""What each of the ten shape coefficients does; one unit is about one standard deviation of adults."""


def _step(u: Array, width: float) -> Array:
    """0 to 1, smoothly, as ``u`` goes from -width/2 to width/2."""
    t = np.clip(u / width + 0.5, 0.0, 1.0)
    step: Array = t * t * (3 - 2 * t)
    return step


def skin_weights(points: Array, joints: Array, mean: Any, rounds: int = 6) -> Array:
    """Weights (V, 24), at most four a vertex, rows sum to 1.

    For each joint a smooth plane says how far a vertex lies beyond it, that is, moves with the joint or its
    descendants; the weight is that less the children's. ``mean`` (V, V) averages neighbours; it smooths the
    result ``rounds`` times.
    """
    x, y, z = points.T
    beyond = {"pelvis": np.ones(len(points))}

    def at(name: str, axis: int) -> float:
        return float(joints[JOINT[name], axis])

    beyond["spine1"] = _step(y - at("spine1", 1), 0.14)
    beyond["spine2"] = _step(y - at("spine2", 1), 0.13)
    beyond["spine3"] = _step(y - at("spine3", 1), 0.12)
    near_neck = _step(0.105 - np.abs(x), 0.09)
    beyond["neck"] = _step(y + 0.3 * z - 1.437, 0.09) * near_neck
    beyond["head"] = _step(y + 0.45 * z - 1.515, 0.065)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        out = sign * x
        collar = _step(out - 0.065, 0.11) * _step(y - 1.315, 0.15) * _step(1.50 - y, 0.08)
        beyond[f"{side}_collar"] = collar
        beyond[f"{side}_shoulder"] = _step(out + 0.25 * (y - 1.388) - 0.168, 0.135)
        beyond[f"{side}_elbow"] = _step(out - at("left_elbow", 0), 0.10)
        beyond[f"{side}_wrist"] = _step(out - at("left_wrist", 0), 0.07)
        beyond[f"{side}_hand"] = _step(out - at("left_hand", 0), 0.035)
        groin = 0.800 + 0.62 * np.clip(out, 0, 0.2) - 0.15 * np.clip(z, -0.1, 0.1)
        beyond[f"{side}_hip"] = _step(groin - y, 0.15) * _step(out, 0.03)
        beyond[f"{side}_knee"] = _step(at("left_knee", 1) - y, 0.12)
        beyond[f"{side}_ankle"] = _step(at("left_ankle", 1) + 0.012 - y + 0.3 * (z + 0.02), 0.07)
        beyond[f"{side}_foot"] = _step(z - 0.098, 0.06)
    weights = np.zeros((len(points), len(JOINT_NAMES)))
    for joint, (name, parent) in enumerate(zip(JOINT_NAMES, JOINT_PARENTS, strict=True)):
        if parent >= 0:
            beyond[name] = beyond[name] * beyond[JOINT_NAMES[parent]]
        weights[:, joint] = beyond[name]
    for joint in range(len(JOINT_NAMES) - 1, 0, -1):
        # What lies beyond a child is no longer the parent's, whatever the child passes on to its own.
        weights[:, JOINT_PARENTS[joint]] -= beyond[JOINT_NAMES[joint]]
    # Where both collars or both hips claim a vertex, what is left for the parent may dip below nothing.
    weights = np.maximum(weights, 0.0)
    for _ in range(rounds):
        weights = 0.5 * weights + 0.5 * (mean @ weights)
    smallest_kept = np.sort(weights, axis=1)[:, -4][:, None]
    weights = np.where(weights >= np.maximum(smallest_kept, 1e-3), weights, 0.0)
    normalised: Array = weights / weights.sum(1, keepdims=True)
    return normalised


def _bone_axes(joints: Array) -> Array:
    """Unit direction (24, 3) of the bone that each joint carries, zero where it carries none or several."""
    axes = np.zeros((len(JOINT_NAMES), 3))
    for joint in range(len(JOINT_NAMES)):
        children = [child for child, parent in enumerate(JOINT_PARENTS) if parent == joint]
        if len(children) == 1:
            bone = joints[children[0]] - joints[joint]
            axes[joint] = bone / np.linalg.norm(bone)
    return axes


def _stretch(joints: Array, weights: Array, points: Array, maps: Array, shifts: Array) -> tuple[Array, Array]:
    """Displacements of vertices and joints when each joint's part is deformed by ``maps`` (24, 3, 3), the
    parts hanging together at the joints, and joints are moved by ``shifts`` (24, 3) beside."""
    moved = np.zeros_like(joints)
    for joint, parent in enumerate(JOINT_PARENTS):
        if parent >= 0:
            moved[joint] = moved[parent] + maps[parent] @ (joints[joint] - joints[parent]) + shifts[joint]
    local = points[:, None] - joints[None]
    each = moved[None] + np.einsum("jab,vjb->vja", maps, local)
    return np.einsum("vj,vja->va", weights, each), moved


def shape_directions(
    points: Array, faces: npt.NDArray[np.int64], joints: Array, weights: Array
) -> tuple[Array, Array]:
    """Shape directions (V, 3, 10) and those of the joints (24, 3, 10), metres per unit, in SHAPES' order."""
    count = len(JOINT_NAMES)
    axes = _bone_axes(joints)
    normals = _normals(points, faces)
    shapes, joint_shapes = np.zeros((len(points), 3, 10)), np.zeros((count, 3, 10))

    def along(amounts: dict[str, float]) -> Array:
        maps = np.zeros((count, 3, 3))
        for name, amount in amounts.items():
            for joint in _both(name):
                maps[joint] += amount * np.outer(axes[joint], axes[joint])
        return maps

    def put(shape: str, maps: Array, shifts: Array | None = None) -> None:
        index = SHAPES.index(shape)
        none = np.zeros((count, 3))
        moved = _stretch(joints, weights, points, maps, none if shifts is None else shifts)
        shapes[..., index], joint_shapes[..., index] = moved

    put("height", np.tile(0.04 * np.eye(3), (count, 1, 1)))
    put("leg_length", along({"hip": 0.05, "knee": 0.05}))
    put("arm_length", along({"shoulder": 0.05, "elbow": 0.05}))
    put("lower_limb_share", along({"hip": -0.04, "knee": 0.04, "shoulder": -0.04, "elbow": 0.04}))
    torso = np.zeros((count, 3, 3))
    for name in ("pelvis", "spine1", "spine2", "spine3"):
        torso[JOINT[name], 1, 1] = 0.05
    torso[0, 1, 1] = 0.0
    lift = np.zeros((count, 3))
    lift[JOINT["spine1"], 1] = 0.05 * (joints[JOINT["spine1"], 1] - joints[0, 1])
    put("torso_length", torso, lift)
    for name, parts in (("shoulder_width", ("spine2", "spine3", "collar")), ("hip_width", ("pelvis", "spine1"))):
        wide = np.zeros((count, 3, 3))
        for part in parts:
            for joint in _both(part):
                wide[joint, 0, 0] = 0.06
        put(name, wide)
    head = np.zeros((count, 3, 3))
    head[JOINT["head"]] = 0.06 * np.eye(3)
    put("head_size", head)

    def share(*names: str) -> Array:
        found: Array = weights[:, [joint for name in names for joint in _both(name)]].sum(1)
        return found

    trunk = share("pelvis", "spine1", "spine2", "spine3")
    belly = np.exp(-(((points[:, 1] - 1.03) / 0.14) ** 2)) * trunk
    thick = share("hip") + 0.7 * share("knee", "shoulder") + 0.5 * share("elbow") + 0.3 * share("collar", "neck")
    mass = 0.010 * trunk + 0.012 * belly * (1 + 0.6 * np.maximum(normals[:, 2], 0)) + 0.007 * thick
    shapes[..., SHAPES.index("mass")] = (mass + 0.002 * share("head"))[:, None] * normals
    shapes[..., SHAPES.index("limb_thickness")] = 0.005 * thick[:, None] * normals
    return shapes, joint_shapes


def _both(name: str) -> list[int]:
    return [JOINT[full] for full in (name, f"left_{name}", f"right_{name}") if full in JOINT]


def _normals(points: Array, faces: npt.NDArray[np.int64]) -> Array:
    a, b, c = points[faces].transpose(1, 0, 2)
    flat = np.cross(b - a, c - a)
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], flat)
    unit: Array = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return unit
