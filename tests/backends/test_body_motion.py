"""A person's bodies over time: noise, outliers, gaps, swapped sides, cuts, and going on from a snapshot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stages.backends.blazepose.bodies import Bodies, Body, Observation
from stages.body.fit import focal_length
from stages.body.model import load_body
from stages.body.skeleton import JOINT
from stages.body.solve import POINTS
from stages.body.window import MIRRORED
from stages.records import Track
from stages.transport.wire import pack_value, unpack_value

WIDTH, HEIGHT, FPS, FRAMES = 1280, 720, 30.0, 45
BODY = load_body({})
SHARED = Bodies(BODY, WIDTH, HEIGHT, FPS)
LIMBS = [
    JOINT[f"{side}_{name}"]
    for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    for side in ("left", "right")
]


def walk(frame: int, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Pose (24, 3, 3) and place (3,) of somebody who strides, seen from the side for ``turn`` = pi / 2."""
    swing = np.sin(2 * np.pi * frame / 30)
    pose = np.repeat(np.eye(3)[None], 24, axis=0)
    pose[0] = (Rotation.from_rotvec([np.pi, 0, 0]) * Rotation.from_rotvec([0, turn, 0])).as_matrix()
    for side, sign in (("left", 1.0), ("right", -1.0)):
        pose[JOINT[f"{side}_hip"]] = Rotation.from_rotvec([-0.5 * sign * swing, 0, 0]).as_matrix()
        pose[JOINT[f"{side}_knee"]] = Rotation.from_rotvec([0.5 - 0.4 * sign * swing, 0, 0]).as_matrix()
        arm = Rotation.from_rotvec([0.5 * sign * swing, 0, 0]) * Rotation.from_rotvec([0, 0, -1.2 * sign])
        pose[JOINT[f"{side}_shoulder"]] = arm.as_matrix()
        pose[JOINT[f"{side}_elbow"]] = Rotation.from_rotvec([0, -0.6 * sign, 0]).as_matrix()
    return pose, np.array([0.02 * frame - 0.4, 0.1, 4.0])


def truth(frame: int, turn: float) -> np.ndarray:
    pose, _ = walk(frame, turn)
    return BODY.skeleton(pose, np.zeros(10))[1]


def seen(frame: int, turn: float, rng: np.random.Generator, noise: float = 0.01) -> Observation:
    """``noise`` is in metres across the view; along it, three times that."""
    pose, place = walk(frame, turn)
    rotations, joints = BODY.skeleton(pose, np.zeros(10))
    world = np.tile(joints[JOINT["head"]], (33, 1))
    for number, name, offset in POINTS:
        world[number] = joints[JOINT[name]] + rotations[JOINT[name]] @ np.array(offset)
    world += rng.normal(0, 1, (33, 3)) * noise * [1, 1, 3]
    placed = world + place
    image = np.zeros((33, 3), np.float32)
    image[:, :2] = placed[:, :2] / placed[:, 2:] * focal_length(WIDTH, HEIGHT) + [WIDTH / 2, HEIGHT / 2]
    box = np.concatenate([image[:, :2].min(axis=0), image[:, :2].max(axis=0)])
    return Observation(
        box, 0.9, image, world.astype(np.float32), np.full(33, 0.95, np.float32), np.zeros(4, np.float32)
    )


def bodies(sightings: list[Observation | None], cuts: tuple[int, ...] = ()) -> dict[int, Track]:
    body = Body(SHARED)
    found = {}
    for frame, sighting in enumerate(sightings):
        found.update(body.push(frame, frame / FPS, sighting, cut=frame in cuts))
    found.update(body.finish())
    return found


def errors(found: dict[int, Track], turn: float) -> np.ndarray:
    """(frames,) mean distance in metres of twelve joints from the truth, the hips' middle aligned."""

    def rooted(joints: np.ndarray) -> np.ndarray:
        return (joints - joints[[1, 2]].mean(axis=0))[LIMBS]

    apart = [rooted(track.joints_3d) - rooted(truth(frame, turn)) for frame, track in found.items()]
    return np.linalg.norm(apart, axis=2).mean(axis=1)


def jerks(found: dict[int, Track]) -> float:
    """Mean acceleration of the joints in metres a frame squared."""
    joints = np.stack([track.joints_3d[LIMBS] for track in found.values()])
    return float(np.linalg.norm(joints[:-2] - 2 * joints[1:-1] + joints[2:], axis=2).mean())


@pytest.mark.parametrize("turn", [0.0, 0.8, np.pi / 2])
def test_somebody_who_walks_is_where_he_is_and_moves_smoothly(turn: float) -> None:
    rng = np.random.default_rng(1)
    found = bodies([seen(frame, turn, rng, 0.02) for frame in range(FRAMES)])
    assert list(found) == list(range(FRAMES))
    assert errors(found, turn).mean() < 0.05
    still = np.stack([truth(frame, turn)[LIMBS] for frame in range(FRAMES)])
    really = float(np.linalg.norm(still[:-2] - 2 * still[1:-1] + still[2:], axis=2).mean())
    assert jerks(found) < really + 0.012
    assert all(np.array_equal(track.betas, found[FRAMES - 1].betas) for track in list(found.values())[-5:])


def test_a_leg_that_collapses_onto_the_other_for_a_moment_is_not_believed() -> None:
    turn, rng = np.pi / 2, np.random.default_rng(2)
    sightings: list[Observation | None] = [seen(frame, turn, rng) for frame in range(FRAMES)]
    for frame in (22, 23):
        one = sightings[frame]
        assert one is not None
        for number in (26, 28, 30, 32):
            one.landmarks[number], one.world[number] = one.landmarks[number - 1], one.world[number - 1]
    found = bodies(sightings)
    assert errors(found, turn).max() < 0.09
    leg = [JOINT["right_knee"], JOINT["right_ankle"]]
    for frame in (22, 23):
        hips = found[frame].joints_3d[[1, 2]].mean(axis=0) - truth(frame, turn)[[1, 2]].mean(axis=0)
        assert np.linalg.norm((found[frame].joints_3d - hips - truth(frame, turn))[leg], axis=1).max() < 0.15


@pytest.mark.parametrize("part", [np.arange(33), np.arange(25, 33), np.arange(13, 23)])
def test_left_and_right_that_are_swapped_for_a_while_are_put_right(part: np.ndarray) -> None:
    turn, rng = 0.3, np.random.default_rng(3)
    sightings = [seen(frame, turn, rng) for frame in range(FRAMES)]
    for one in sightings[20:24]:
        one.landmarks[part], one.world[part] = one.landmarks[MIRRORED[part]], one.world[MIRRORED[part]]
    found = bodies(list(sightings))
    assert errors(found, turn).max() < 0.07


def test_a_gap_is_filled_if_it_ends_soon_and_marked() -> None:
    turn, rng = 0.8, np.random.default_rng(4)
    sightings: list[Observation | None] = [seen(frame, turn, rng) for frame in range(FRAMES)]
    sightings[20:26] = [None] * 6
    found = bodies(sightings)
    assert [frame for frame, track in found.items() if not track.detected] == list(range(20, 26))
    assert errors(found, turn).max() < 0.15
    assert found[22].confidence < 0.5
    sightings[15 : 15 + SHARED.lag + 1] = [None] * (SHARED.lag + 1)
    found = bodies(sightings)
    assert not set(found) & set(range(15, 15 + SHARED.lag + 1))


def test_nothing_flows_over_a_cut() -> None:
    turn, rng = 0.8, np.random.default_rng(5)
    before = [seen(frame, turn, rng) for frame in range(20)]
    after = [seen(frame + 13, -2.0, rng) for frame in range(20)]
    whole = bodies([*before, *after], cuts=(20,))
    alone = bodies(list(after))
    for frame in range(20):
        assert np.abs(whole[20 + frame].joints_3d - alone[frame].joints_3d).max() < 0.03
    gap = bodies([*before[:18], None, None, *after], cuts=(20,))
    assert 18 not in gap and 19 not in gap


def test_one_sighting_is_a_body() -> None:
    found = bodies([seen(3, 0.4, np.random.default_rng(6))])
    assert list(found) == [0]
    assert np.isfinite(found[0].vertices if found[0].vertices is not None else [np.nan]).all()


def test_going_on_from_a_snapshot_changes_no_bit() -> None:
    rng = np.random.default_rng(7)
    sightings: list[Observation | None] = [seen(frame, 0.8, rng) for frame in range(30)]
    sightings[9:12] = [None] * 3
    whole = bodies(sightings, cuts=(16,))
    found: dict[int, Track] = {}
    body = Body(SHARED)
    for frame, sighting in enumerate(sightings):
        body = Body.restore(SHARED, unpack_value(pack_value({"body": body.save()}))["body"])
        found.update(body.push(frame, frame / FPS, sighting, cut=frame == 16))
    body = Body.restore(SHARED, unpack_value(pack_value({"body": body.save()}))["body"])
    found.update(body.finish())
    assert list(found) == list(whole)
    for frame, track in found.items():
        for name in ("box", "pose", "betas", "camera", "joints_3d", "joints_2d", "vertices"):
            assert getattr(track, name).tobytes() == getattr(whole[frame], name).tobytes(), (frame, name)
