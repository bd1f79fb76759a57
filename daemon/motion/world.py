"""From the camera's axes to those of programs for bodies: y or z up, the person at the origin, upright if asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daemon.motion.clip import F64
from daemon.motion.people import Motion, Person

TO_Y_UP = np.diag([1.0, -1.0, -1.0])
"""x right, y up, z towards the viewer."""
TO_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""x right, y away from the viewer, z up."""


LENS = 1.1
"""Focal length of a usual lens as a multiple of the picture's longer side."""
LONGEST_LENS = 4.0
"""Beyond this a focal length is no lens's but a convention for nearly parallel rays, such as HMR2's: people stand some
twenty times as far away as they did, and every error of their size is a step of metres. Then `LENS` is taken."""


def depth_scale(motion: Motion) -> float:
    """What depths are multiplied with so that they are those before a usual lens; 1 where the results' own is one."""
    header = motion.clip.header
    longest = header.focal / max(header.width, header.height)
    return LENS / longest if longest > LONGEST_LENS else 1.0


@dataclass(frozen=True)
class Placed:
    """A person in the world: ``pose`` (N, J, 3, 3) with the root's rotation into the world, ``root`` (N, 3) and
    ``joints`` (N, J, 3) metres in the world; ``up`` its axis up, (3,)."""

    person: Person
    pose: F64
    root: F64
    joints: F64
    up: F64


def before_camera(motion: Motion, person: Person, up: str = "y") -> Placed:
    """A person in a world whose axis ``up``, y or z, points up.

    Its root is over the origin in its first frame, and the lowest joint of the clip is at height 0. Up is the
    camera's, and depth as `depth_scale` has it.
    """
    turn = TO_Y_UP if up == "y" else TO_Z_UP
    pose = person.pose.copy()
    pose[:, 0] = turn @ pose[:, 0]
    camera = person.camera * [1.0, 1.0, depth_scale(motion)]
    joints = (person.joints + camera[:, None]) @ turn.T
    axis = np.array([0.0, 1.0, 0.0] if up == "y" else [0.0, 0.0, 1.0])
    origin = joints[0, 0] * (1 - axis) + axis * (joints @ axis).min()
    return Placed(person, pose, joints[:, 0] - origin, joints - origin, axis)
