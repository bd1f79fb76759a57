"""Angles of poses whose angles are known, masses and speeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from daemon.motion.clip import collect
from daemon.motion.mass import centre_of_mass
from daemon.motion.measures import Measures, measure
from daemon.motion.options import MotionOptions
from daemon.motion.people import find_motion
from stages.body.skeleton import JOINT, JOINT_NAMES
from stages.records import FrameRecord
from tests.daemon.motion_clips import DISTANCE, F64, FACING_CAMERA, FACING_RIGHT, body, header, make_track

PLACE = np.array([0.0, 0.0, DISTANCE])
RAW = MotionOptions(raw=True)


def of(poses: list[F64], places: list[F64] | None = None, up: str = "y") -> Measures:
    found = [
        FrameRecord(frame, frame / 30, [make_track(1, pose, PLACE if places is None else places[frame])])
        for frame, pose in enumerate(poses)
    ]
    motion = find_motion(collect(header(), found), RAW)
    return measure(motion, motion.people[0], up)


def standing(facing: F64 = FACING_CAMERA, **joints: tuple[str, float]) -> F64:
    """Arms hang straight down; each of ``joints`` is turned about an axis of the template by degrees."""
    pose = np.repeat(np.eye(3)[None], 24, axis=0)
    pose[0] = facing
    for side, sign in (("left", 1.0), ("right", -1.0)):
        pose[JOINT[f"{side}_shoulder"]] = Rotation.from_euler("z", -sign * 90, degrees=True).as_matrix()
    for name, (axis, degrees) in joints.items():
        turn = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        pose[JOINT[name]] = turn @ pose[JOINT[name]]
    return pose


def angle(pose: F64, name: str, up: str = "y") -> float:
    return float(of([pose], up=up).angles[name][0])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("joint", "axis", "degrees", "name", "expected"),
    [
        ("hip", "x", -40, "hip_flexion", 40),  # the template's x is to the left: forwards is negative
        ("hip", "x", 20, "hip_flexion", -20),
        ("hip", "z", 25, "hip_adduction", -25),  # outwards, mirrored below
        ("hip", "y", 30, "hip_rotation", -30),  # outwards
        ("knee", "x", 60, "knee_flexion", 60),
        ("ankle", "x", -15, "ankle_dorsiflexion", 15),
        ("shoulder", "x", -50, "shoulder_flexion", 50),
        ("shoulder", "x", -50, "shoulder_elevation", 50),
        ("shoulder", "x", -50, "shoulder_plane", 90),
        ("shoulder", "z", 35, "shoulder_abduction", 35),
        ("shoulder", "z", 35, "shoulder_plane", 0),
        ("shoulder", "z", 90, "shoulder_elevation", 90),
    ],
)
def test_one_joint_at_a_time(side: str, joint: str, axis: str, degrees: float, name: str, expected: float) -> None:
    sign = -1 if side == "right" and axis != "x" else 1  # the right side's outwards is the other way round
    pose = standing(**{f"{side}_{joint}": (axis, sign * degrees)})
    assert angle(pose, f"{side}_{name}") == pytest.approx(expected, abs=0.05)
    other = "left" if side == "right" else "right"
    straight = angle(standing(), f"{other}_{name}")
    assert angle(pose, f"{other}_{name}") == pytest.approx(straight, abs=0.05)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("degrees", [30, 90, 130])
def test_an_elbow_bends(side: str, degrees: float) -> None:
    sign = 1 if side == "right" else -1
    pose = standing()
    # In the T-pose it bends forwards about the vertical.
    pose[JOINT[f"{side}_elbow"]] = Rotation.from_euler("y", sign * degrees, degrees=True).as_matrix()
    measures = of([pose])
    assert measures.angles[f"{side}_elbow_flexion"][0] == pytest.approx(degrees, abs=0.5)
    straight = float(of([standing()]).angles[f"{side}_elbow_angle"][0])
    assert straight - measures.angles[f"{side}_elbow_angle"][0] == pytest.approx(degrees, abs=3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bend_tells_the_turn_of_a_limb_that_nobody_measured(side: str) -> None:
    """A knee that bends sideways, after a thigh that is not turned: the thigh is turned, and the knee bends."""
    sign = 1 if side == "left" else -1
    pose = standing(**{f"{side}_knee": ("z", sign * 90)})
    angles = of([pose]).angles
    assert angles[f"{side}_knee_flexion"][0] == pytest.approx(90, abs=3)
    assert abs(angles[f"{side}_knee_adduction"][0]) < 5
    assert angles[f"{side}_hip_rotation"][0] == pytest.approx(90, abs=6)  # inwards: the foot goes out


@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize("facing", [FACING_CAMERA, FACING_RIGHT])
@pytest.mark.parametrize(
    ("axis", "degrees", "name", "expected"),
    [("x", 20, "pelvis_tilt", 20), ("z", -10, "pelvis_list", 10), ("z", 10, "pelvis_list", -10)],
)
def test_the_pelvis_leans_as_it_faces(
    up: str, facing: F64, axis: str, degrees: float, name: str, expected: float
) -> None:
    pose = standing(facing @ Rotation.from_euler(axis, degrees, degrees=True).as_matrix())
    assert angle(pose, name, up) == pytest.approx(expected, abs=1e-3)
    assert angle(pose, "trunk_inclination", up) == pytest.approx(abs(degrees), abs=5)
    if axis == "x":
        level = angle(standing(facing), "trunk_lean_forward", up)
        assert angle(pose, "trunk_lean_forward", up) - level == pytest.approx(degrees, abs=1e-3)
    else:
        assert angle(pose, "trunk_lean_right", up) == pytest.approx(degrees, abs=0.1)


@pytest.mark.parametrize(
    ("axis", "degrees", "name", "expected"),
    [("x", 30, "trunk_flexion", 30), ("z", -15, "trunk_bending", -15), ("y", 25, "trunk_rotation", 25)],
)
def test_the_trunk_against_the_pelvis(axis: str, degrees: float, name: str, expected: float) -> None:
    assert angle(standing(spine2=(axis, degrees)), name) == pytest.approx(expected, abs=1e-3)


def test_angular_velocity_and_speed_are_by_the_real_times() -> None:
    poses = [standing(left_knee=("x", 3.0 * frame)) for frame in range(20)]
    places = [PLACE + np.array([0.05 * frame, 0.0, 0.0]) for frame in range(20)]
    measures = of(poses, places)
    assert measures.velocities["left_knee_flexion"] == pytest.approx(90.0, abs=1.0)
    assert measures.speeds["pelvis"] == pytest.approx(1.5, abs=1e-3)


def test_a_step_towards_the_camera_is_not_twenty_times_as_long() -> None:
    """HMR2's focal length puts people far away; a body that grows by a tenth has not come six metres nearer."""
    places = [PLACE * [1, 1, 1 - 0.01 * frame] for frame in range(10)]
    measures = of([standing()] * 10, places)
    assert np.ptp(measures.placed.root[:, 2]) == pytest.approx(0.09 * DISTANCE * 1.1 * 256 / 5000, rel=1e-3)


def test_the_centre_of_mass_is_in_the_body_and_goes_with_it() -> None:
    _, joints = body().skeleton(standing(), np.zeros(10))
    centre = centre_of_mass(joints[None], JOINT_NAMES)[0]
    # Of a standing adult it is near the pelvis, at 55 to 58 % of the height (here: above the root's joint).
    assert abs(centre[0]) < 0.01 and abs(centre[2]) < 0.05
    floor = joints[:, 1].max()
    assert 0.54 < (floor - centre[1]) / 1.69 < 0.60
    assert np.allclose(centre_of_mass(joints[None] + [1, 2, 3], JOINT_NAMES)[0], centre + [1, 2, 3])
    with pytest.raises(ValueError, match="no joint 'neck'"):
        centre_of_mass(joints[None], [name.replace("neck", "nape") for name in JOINT_NAMES])
