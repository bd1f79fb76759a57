"""Joint angles in degrees, as biomechanics defines them.

Segments have X forward, Y up and Z to the right in the neutral position, and rotations are taken apart as the
International Society of Biomechanics recommends: G. Wu et al., "ISB recommendation on definitions of joint coordinate
system … part I: ankle, hip, and spine", Journal of Biomechanics 35 (2002), "… part II: shoulder, elbow, wrist and
hand", 38 (2005); the knee after E. Grood and W. Suntay, Journal of Biomechanical Engineering 105 (1983). Flexion first
(about Z), then adduction (X), then rotation (Y); the shoulder by plane of elevation, elevation and rotation (Y, X,
Y). Left limbs are mirrored, so that both sides have the same signs. Neutral is the body model's rest pose, with its
arms let down.

Some backends do not measure how a limb is turned about its own length. Then the plane in which knee or elbow bends
tells it (the second humerus definition of Wu et al. 2005), as far as they bend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from daemon.motion.clip import F64
from daemon.motion.skeleton import world_rotations
from daemon.motion.world import Placed

ISB = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""Columns are ISB's X, Y, Z in the template's axes (x to the person's left, y up, z forward)."""
MIRROR = np.diag([1.0, 1.0, -1.0])
ARM_DOWN = Rotation.from_euler("x", -90, degrees=True).as_matrix()
"""The right upper arm's axes in the T-pose, seen from the thorax: lifted sideways by a right angle."""
UNTURNED = np.deg2rad(2.0)
"""A limb that is never turned about its own length by more than this is one whose turn nobody measured."""
BENT = (np.deg2rad(10), np.deg2rad(35))
"""Bend from which its plane tells the turn of the limb, and from which it does so wholly."""

Angles = dict[str, F64]


def joint_angles(placed: Placed, names: Sequence[str], parents: Sequence[int]) -> Angles:
    """Angles over the N frames, each (N,) degrees, by name.

    ``SIDE_hip_flexion``, ``_adduction``, ``_rotation`` (internal); ``SIDE_knee_flexion``, ``_adduction``,
    ``_rotation`` and ``SIDE_knee_angle``, the plain angle between thigh and shank, 180 when straight;
    ``SIDE_ankle_dorsiflexion``, ``_inversion``, ``_rotation``; ``SIDE_shoulder_plane`` of elevation (0 sideways, 90
    forward), ``_elevation``, ``_rotation`` (internal) and, plainer, ``_flexion`` and ``_abduction`` as seen from the
    side and from the front; ``SIDE_elbow_flexion``, ``_pronation`` and ``SIDE_elbow_angle``; ``pelvis_tilt``
    (forward), ``pelvis_list`` (right side up), ``pelvis_heading``; ``trunk_flexion``, ``trunk_bending`` (to the
    right), ``trunk_rotation`` (to the left) against the pelvis; ``trunk_inclination`` of hips to neck against the
    vertical, ``trunk_lean_forward`` and ``trunk_lean_right`` of it as the pelvis faces.

    Raises:
        ValueError: the skeleton lacks a joint; names it.
    """
    at = JointNumbers(names)
    pose = with_turned_limbs(placed.pose, placed.person.offsets, at)
    world = world_rotations(pose, parents)
    found: Angles = {}
    for side in ("right", "left"):
        _leg(found, side, pose, placed.joints, at)
        _arm(found, side, pose, world, placed.joints, at)
    _trunk(found, placed, world, at)
    return {name: np.rad2deg(_continuous(values)) for name, values in found.items()}


def velocities(angles: Mapping[str, F64], times: F64) -> Angles:
    """Angular velocities, degrees a second, by central differences over the real times."""
    return {name: rate_of_change(values, times) for name, values in angles.items()}


def rate_of_change(values: F64, times: F64) -> F64:
    """Derivative (N, …) by time of values (N, …); zero where there is one moment only."""
    if len(times) < 2:
        return np.zeros_like(values)
    return np.gradient(values, times, axis=0)


class JointNumbers:
    """Numbers of a skeleton's joints by name; one that it lacks is a ValueError that names it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)

    def __getitem__(self, name: str) -> int:
        if name not in self._names:
            raise ValueError(f"the skeleton has no joint {name!r}, which joint angles need")
        return self._names.index(name)


def with_turned_limbs(pose: F64, offsets: F64, at: JointNumbers) -> F64:
    """The same movement with thighs and upper arms turned about their length as the knees and elbows bend, where
    nobody measured that turn; what is below them stays where it is. ``pose`` (N, J, 3, 3), ``offsets`` (J, 3)."""
    pose = pose.copy()
    for side in ("left", "right"):
        # A knee bends back; an elbow of the T-pose bends forward.
        for upper, lower, end, towards in (("hip", "knee", "ankle", -1.0), ("shoulder", "elbow", "wrist", 1.0)):
            joint, below, last = at[f"{side}_{upper}"], at[f"{side}_{lower}"], at[f"{side}_{end}"]
            axis = offsets[below] / np.linalg.norm(offsets[below])
            turns = np.abs(_turn_about(pose[:, joint], axis))
            if len(turns) == 0 or np.median(turns) > UNTURNED:
                continue
            bone = pose[:, below] @ (offsets[last] / np.linalg.norm(offsets[last]))
            across = np.array([0.0, 0.0, towards])
            across = across - axis * (axis @ across)
            across /= np.linalg.norm(across)
            third = np.cross(axis, across)
            angle = np.arctan2(bone @ third, bone @ across)
            bend = np.arccos(np.clip(bone @ axis, -1, 1))
            share = np.clip((bend - BENT[0]) / (BENT[1] - BENT[0]), 0, 1)
            turn = Rotation.from_rotvec((angle * share)[:, None] * axis).as_matrix()
            pose[:, joint] = pose[:, joint] @ turn
            pose[:, below] = turn.transpose(0, 2, 1) @ pose[:, below]
    return pose


def _turn_about(rotations: F64, axis: F64) -> F64:
    """How far rotations (N, 3, 3) turn about ``axis`` (3,), in radians: the twist of swing and twist."""
    quaternions = Rotation.from_matrix(rotations).as_quat()
    angle = 2 * np.arctan2(quaternions[:, :3] @ axis, quaternions[:, 3])
    return (angle + np.pi) % (2 * np.pi) - np.pi  # type: ignore[no-any-return]


def _isb(rotations: F64, side: str) -> F64:
    """Rotations between template axes as rotations between ISB's; those of the left side mirrored to the right."""
    found = ISB.T @ rotations @ ISB
    return MIRROR @ found @ MIRROR if side == "left" else found  # type: ignore[no-any-return]


def cardan(rotations: F64) -> tuple[F64, F64, F64]:
    """Angles in radians of rotations (…, 3, 3) about Z, the X that comes of it, and the Y that comes of that: flexion,
    adduction, rotation. At the pole, where the first and the last are one, any that add up."""
    x = np.arcsin(np.clip(rotations[..., 2, 1], -1, 1))
    z = np.arctan2(-rotations[..., 0, 1], rotations[..., 1, 1])
    return z, x, np.arctan2(-rotations[..., 2, 0], rotations[..., 2, 2])


def _three_points(a: F64, b: F64, c: F64) -> F64:
    """The angle at b (N,), radians."""
    first, second = a - b, c - b
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.arccos(np.clip((first * second).sum(1) / np.maximum(lengths, 1e-9), -1, 1))  # type: ignore


def _leg(found: Angles, side: str, pose: F64, joints: F64, at: JointNumbers) -> None:
    flexion, adduction, rotation = cardan(_isb(pose[:, at[f"{side}_hip"]], side))
    found |= {f"{side}_hip_flexion": flexion, f"{side}_hip_adduction": adduction, f"{side}_hip_rotation": rotation}
    flexion, adduction, rotation = cardan(_isb(pose[:, at[f"{side}_knee"]], side))
    found |= {
        f"{side}_knee_flexion": -flexion,
        f"{side}_knee_adduction": adduction,
        f"{side}_knee_rotation": rotation,
    }
    found[f"{side}_knee_angle"] = _three_points(
        *(joints[:, at[f"{side}_{name}"]] for name in ("hip", "knee", "ankle"))
    )
    flexion, inversion, rotation = cardan(_isb(pose[:, at[f"{side}_ankle"]], side))
    found |= {
        f"{side}_ankle_dorsiflexion": flexion,
        f"{side}_ankle_inversion": inversion,
        f"{side}_ankle_rotation": rotation,
    }


def humerus(pose: F64, side: str, at: JointNumbers) -> F64:
    """The upper arm's rotation (N, 3, 3) seen from the thorax, from the arm let down, of the right side or
    mirrored."""
    return _isb(pose[:, at[f"{side}_collar"]] @ pose[:, at[f"{side}_shoulder"]], side) @ ARM_DOWN  # type: ignore[no-any-return]


def forearm(pose: F64, side: str, at: JointNumbers) -> F64:
    """The forearm's rotation (N, 3, 3) seen from the upper arm."""
    return ARM_DOWN.T @ _isb(pose[:, at[f"{side}_elbow"]], side) @ ARM_DOWN  # type: ignore[no-any-return]


def _arm(found: Angles, side: str, pose: F64, world: F64, joints: F64, at: JointNumbers) -> None:
    del world
    arm = humerus(pose, side, at)
    # About Y, the -X that comes of it, and the Y that comes of that.
    found[f"{side}_shoulder_plane"] = np.arctan2(-arm[:, 0, 1], -arm[:, 2, 1])
    found[f"{side}_shoulder_elevation"] = np.arccos(np.clip(arm[:, 1, 1], -1, 1))
    found[f"{side}_shoulder_rotation"] = np.arctan2(-arm[:, 1, 0], arm[:, 1, 2])
    down = -arm[:, :, 1]
    found[f"{side}_shoulder_flexion"] = np.arctan2(down[:, 0], -down[:, 1])
    found[f"{side}_shoulder_abduction"] = np.arctan2(down[:, 2], -down[:, 1])
    flexion, _, pronation = cardan(forearm(pose, side, at))
    found[f"{side}_elbow_flexion"], found[f"{side}_elbow_pronation"] = flexion, pronation
    found[f"{side}_elbow_angle"] = _three_points(
        *(joints[:, at[f"{side}_{name}"]] for name in ("shoulder", "elbow", "wrist"))
    )


def _trunk(found: Angles, placed: Placed, world: F64, at: JointNumbers) -> None:
    # The world with its Y up, as ISB has it; which way is X there does not matter for tilt and list.
    up = placed.up
    level = np.eye(3) if up[1] else np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    pelvis = level @ world[:, at["pelvis"]] @ ISB
    # Heading first (Y), then list (X), then tilt (Z): a person who turns keeps tilt and list.
    heading = np.arctan2(pelvis[:, 0, 2], pelvis[:, 2, 2])
    found["pelvis_tilt"] = -np.arctan2(pelvis[:, 1, 0], pelvis[:, 1, 1])
    found["pelvis_list"] = np.arcsin(np.clip(pelvis[:, 1, 2], -1, 1))
    found["pelvis_heading"] = heading
    thorax = _isb(world[:, at["pelvis"]].transpose(0, 2, 1) @ world[:, at["spine3"]], "right")
    flexion, bending, rotation = cardan(thorax)
    found |= {"trunk_flexion": -flexion, "trunk_bending": bending, "trunk_rotation": rotation}
    joints = placed.joints
    spine = joints[:, at["neck"]] - (joints[:, at["left_hip"]] + joints[:, at["right_hip"]]) / 2
    spine = (spine / np.maximum(np.linalg.norm(spine, axis=1, keepdims=True), 1e-9)) @ level.T
    found["trunk_inclination"] = np.arccos(np.clip(spine[:, 1], -1, 1))
    ahead = np.column_stack([np.cos(heading), np.zeros(len(heading)), -np.sin(heading)])
    right = np.column_stack([np.sin(heading), np.zeros(len(heading)), np.cos(heading)])
    found["trunk_lean_forward"] = np.arctan2((spine * ahead).sum(1), spine[:, 1])
    found["trunk_lean_right"] = np.arctan2((spine * right).sum(1), spine[:, 1])


def _continuous(angles: F64) -> F64:
    """Without jumps of a whole turn from frame to frame."""
    return np.unwrap(angles)
