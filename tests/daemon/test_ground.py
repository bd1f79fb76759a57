"""The ground from the feet: upright before a tilted camera, and standing feet that stay where they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from daemon.motion.clip import collect
from daemon.motion.ground import place
from daemon.motion.options import MotionOptions
from daemon.motion.people import find_motion
from daemon.motion.world import Placed
from stages.body.skeleton import JOINT
from stages.records import FrameRecord
from tests.daemon.motion_clips import DISTANCE, F64, body, header, make_track, noisy, walking

COUNT = 150
TOES = (JOINT["left_foot"], JOINT["right_foot"])


def stepping() -> tuple[list[F64], list[F64], list[int]]:
    """A walk whose lower foot stays where it is: poses, places in a level camera's axes, and which toes stand."""
    actor, at = walking(), np.array([-2.0, 0.0, DISTANCE * 1.1 * 256 / 5000])
    poses, places, standing = [], [], []
    before, last = None, -1
    for frame in range(COUNT):
        pose = actor.pose(frame / 30 / 1.5)
        _, joints = body().skeleton(pose, np.zeros(10))
        toe = max(TOES, key=lambda joint: joints[joint, 1])
        if toe != last:
            before, last = None, toe
        if before is not None:
            at = at + (before - joints[toe])
        before = joints[toe]
        at = np.array([at[0], -joints[toe, 1], at[2]])
        poses.append(pose)
        places.append(at)
        standing.append(toe)
    return poses, places, standing


def seen(tilt: F64, *, noise: bool, up: str = "y", ground: bool = True) -> tuple[Placed, list[int]]:
    poses, places, standing = stepping()
    random, found = np.random.default_rng(4), []
    for frame, (pose, at) in enumerate(zip(poses, places, strict=True)):
        turned = pose.copy()
        turned[0] = tilt @ pose[0]
        # Before a usual lens; the results have HMR2's.
        far = (tilt @ (at - [0, 0, 3.0]) + [0, 0, 3.4]) * [1, 1, 5000 / 256 / 1.1]
        track = make_track(1, turned, far)
        found.append(FrameRecord(frame, frame / 30, [noisy(track, random, 1.0, 0.004) if noise else track]))
    motion = find_motion(collect(header(), found), MotionOptions(ground=ground))
    return place(motion, motion.people[0], up), standing


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize(("axis", "degrees"), [("x", 15), ("x", -10), ("z", 12), ("x", 0)])
def test_a_tilted_camera_does_not_tilt_who_walks(noise: bool, up: str, axis: str, degrees: float) -> None:
    tilt = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    placed, _ = seen(tilt, noise=noise, up=up)
    spine = placed.joints[:, JOINT["neck"]] - placed.joints[:, JOINT["pelvis"]]
    mean = spine.mean(axis=0)
    lean = np.rad2deg(np.arccos(mean @ placed.up / np.linalg.norm(mean)))
    # The template itself leans by some degrees from the pelvis to the neck.
    assert lean < 6
    toes = placed.joints[:, list(TOES)] @ placed.up
    assert np.quantile(toes.min(axis=1), 0.05) > -0.03 and np.median(toes.min(axis=1)) < 0.06


@pytest.mark.parametrize("noise", [False, True])
def test_a_standing_foot_slides_less_than_a_centimetre(noise: bool) -> None:
    slides, before = [], []
    for ground, into in ((True, slides), (False, before)):
        placed, standing = seen(Rotation.from_euler("x", 10, degrees=True).as_matrix(), noise=noise, ground=ground)
        changes = np.flatnonzero(np.diff(standing)) + 1
        for first, last in zip([0, *changes], [*changes, COUNT], strict=True):
            # The middle of each step: at its ends both feet may stand.
            inner = slice(first + 3, last - 3)
            if last - first > 10:
                track = placed.joints[inner, standing[first]]
                level = track - np.outer(track @ placed.up, placed.up)
                into.append(float(np.linalg.norm(level - level.mean(axis=0), axis=1).max()))
    assert len(slides) >= 4
    assert max(slides) < 0.01, slides
    if noise:
        assert max(before) > 2 * max(slides)


def test_who_never_stands_keeps_the_camera_s_up() -> None:
    """Somebody who glides, as on a board: no foot stands, and nothing is held back."""
    pose = walking().pose(0.0)
    places = [np.array([-2.0 + 0.1 * frame, 0.0, DISTANCE]) for frame in range(40)]
    found = [FrameRecord(frame, frame / 30, [make_track(1, pose, at)]) for frame, at in enumerate(places)]
    motion = find_motion(collect(header(), found), MotionOptions(ground=True))
    placed = place(motion, motion.people[0])
    assert placed.root[-1, 0] - placed.root[0, 0] == pytest.approx(3.9, abs=0.01)
    assert (placed.joints @ placed.up).min() == pytest.approx(0, abs=1e-6)
