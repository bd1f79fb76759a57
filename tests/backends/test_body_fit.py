"""The body and its fit: known poses come back, rubbish stays finite, left stays left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from stages.body.fit import ANCHORS, BodyFit, focal_length
from stages.body.model import LinearBody, load_body
from stages.body.skeleton import JOINT, JOINT_PARENTS
from stages.body.solve import POINTS
from stages.body.window import Sighting

WIDTH, HEIGHT = 1280, 720


@pytest.fixture(scope="module")
def body() -> LinearBody:
    return load_body({})


@pytest.fixture(scope="module")
def fitter(body: LinearBody) -> BodyFit:
    return BodyFit(body, WIDTH, HEIGHT)


def landmarks_of(body: LinearBody, pose: np.ndarray, camera: np.ndarray) -> Sighting:
    """33 landmarks of a posed body: where the solver has them on it, and the head elsewhere."""
    rotations, joints = body.skeleton(pose, np.zeros(10))
    world = np.tile(joints[JOINT["head"]], (33, 1))
    for number, name, offset in POINTS:
        world[number] = joints[JOINT[name]] + rotations[JOINT[name]] @ np.array(offset)
    placed = world + camera
    image = placed[:, :2] / placed[:, 2:] * focal_length(WIDTH, HEIGHT) + [WIDTH / 2, HEIGHT / 2]
    return Sighting.of(image, world, np.ones(33))


def facing(turn: float) -> np.ndarray:
    """A body at rest, upright before the camera, turned about its height."""
    pose = np.repeat(np.eye(3)[None], 24, axis=0)
    pose[0] = (Rotation.from_rotvec([np.pi, 0, 0]) * Rotation.from_rotvec([0, turn, 0])).as_matrix()
    return pose


@pytest.mark.parametrize("turn", [0.0, 0.9, -1.5, 3.0])
def test_a_known_pose_comes_back(body: LinearBody, fitter: BodyFit, turn: float) -> None:
    rng = np.random.default_rng(3)
    pose = facing(turn)
    for name, bend in (
        ("hip", [-0.5, 0, 0]),
        ("knee", [0.7, 0, 0]),
        ("shoulder", [0, 0, 1.0]),
        ("elbow", [0, 0.8, 0]),
    ):
        for side, sign in (("left", 1), ("right", -1)):
            turned = np.array(bend) * (-sign if name in ("shoulder", "elbow") else 1)
            pose[JOINT[f"{side}_{name}"]] = Rotation.from_rotvec(turned + rng.normal(0, 0.1, 3)).as_matrix()
    camera = np.array([0.4, -0.1, 4.0])
    fitted = fitter.fit(landmarks_of(body, pose, camera), np.zeros(10))
    _, expected = body.skeleton(pose, np.zeros(10))
    limbs = [JOINT[name] for name, _ in ANCHORS]
    apart = (fitted.joints_3d + fitted.camera - expected - camera)[limbs]
    assert np.linalg.norm(apart[:, :2], axis=1).max() < 0.05
    assert np.linalg.norm(fitted.joints_3d[limbs] - expected[limbs], axis=1).mean() < 0.05
    assert fitted.camera[2] == pytest.approx(4, rel=0.05)
    placed = fitted.joints_3d + fitted.camera
    flat = placed[:, :2] / placed[:, 2:] * focal_length(WIDTH, HEIGHT) + [WIDTH / 2, HEIGHT / 2]
    assert fitted.joints_2d == pytest.approx(flat, abs=0.01)


def test_left_is_the_persons_left(body: LinearBody, fitter: BodyFit) -> None:
    """Somebody who faces the camera has the left arm on the image's right side."""
    fitted = fitter.fit(landmarks_of(body, facing(0.0), np.array([0.0, 0.0, 4.0])), np.zeros(10))
    assert fitted.joints_2d[JOINT["left_wrist"], 0] > fitted.joints_2d[JOINT["right_wrist"], 0] + 100
    assert fitted.joints_2d[JOINT["head"], 1] < fitted.joints_2d[JOINT["left_ankle"], 1]
    nose_side = fitted.vertices[:, 2].min()
    assert nose_side < 0, "the front is towards the camera"


@settings(max_examples=80, deadline=None)
@given(
    image=arrays(np.float32, (33, 3), elements=st.floats(-3000, 3000, width=32)),
    world=arrays(np.float32, (33, 3), elements=st.floats(-2, 2, width=32)),
    visibility=arrays(np.float32, 33, elements=st.floats(0, 1, width=32)),
)
def test_rubbish_stays_finite(
    fitter: BodyFit, image: np.ndarray, world: np.ndarray, visibility: np.ndarray
) -> None:
    fitted = fitter.fit(Sighting.of(image, world, visibility), np.zeros(10))
    for array in (fitted.pose, fitted.betas, fitted.camera, fitted.joints_3d, fitted.joints_2d, fitted.vertices):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    assert np.linalg.norm(fitted.joints_3d, axis=1).max() < 1.6, "bones keep their lengths"
    product = np.einsum("jab,jcb->jac", fitted.pose, fitted.pose)
    assert np.abs(product - np.eye(3)).max() < 1e-4
    assert np.linalg.det(fitted.pose) == pytest.approx(np.ones(24), abs=1e-4)


@pytest.mark.parametrize("hidden", [(13, 15, 17, 19, 21), (26, 28, 30, 32), tuple(range(25, 33))])
def test_hidden_limbs_rest_whatever_is_guessed_of_them(
    body: LinearBody, fitter: BodyFit, hidden: tuple[int, ...]
) -> None:
    seen = landmarks_of(body, facing(0.3), np.array([0.0, 0.0, 4.0]))
    rng = np.random.default_rng(8)
    for number in hidden:
        seen.image[number] = rng.uniform(0, 1280, 2)
        seen.world[number] = rng.uniform(-3, 3, 3)
        seen.visibility[number] = 0.01
    fitted = fitter.fit(seen, np.zeros(10))
    angles = Rotation.from_matrix(fitted.pose[1:]).magnitude()
    assert angles.max() < np.deg2rad(110)
    knees = Rotation.from_matrix(fitted.pose[[JOINT["left_knee"], JOINT["right_knee"]]]).as_rotvec()
    assert knees[:, 0].min() > -0.15, "knees do not bend forwards"


def test_joints_stop_where_they_do(body: LinearBody, fitter: BodyFit) -> None:
    """A depth that would bend knees and elbows the wrong way is not believed."""
    seen = landmarks_of(body, facing(0.0), np.array([0.0, 0.0, 4.0]))
    seen.world[[25, 26], 2] += 0.25
    seen.world[[13, 14], 2] -= 0.2
    fitted = fitter.fit(seen, np.zeros(10))
    knees = Rotation.from_matrix(fitted.pose[[JOINT["left_knee"], JOINT["right_knee"]]]).as_rotvec()
    elbows = Rotation.from_matrix(fitted.pose[[JOINT["left_elbow"], JOINT["right_elbow"]]]).as_rotvec()
    assert knees[:, 0].min() > -0.15
    assert elbows[0, 1] < 0.15 and elbows[1, 1] > -0.15


def test_the_same_landmarks_give_the_same_bits(fitter: BodyFit) -> None:
    rng = np.random.default_rng(5)
    seen = Sighting.of(rng.uniform(0, 700, (33, 3)), rng.uniform(-1, 1, (33, 3)), np.ones(33))
    first, second = (fitter.fit(seen, np.zeros(10)) for _ in range(2))
    assert first.vertices.tobytes() == second.vertices.tobytes()
    assert first.camera.tobytes() == second.camera.tobytes()


def test_the_template_is_a_closed_human_surface(body: LinearBody) -> None:
    edges = np.sort(np.concatenate([body.faces[:, [0, 1]], body.faces[:, [1, 2]], body.faces[:, [2, 0]]]), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 2).all(), "every edge has two faces: watertight"
    assert 1.5 < np.ptp(body.template[:, 1]) < 1.9
    assert body.weights.sum(axis=1) == pytest.approx(np.ones(len(body.template)), abs=1e-5)
    # Each of the big parts is moved by its own joint.
    owner = body.weights.argmax(axis=1)
    for joint in range(24):
        centre = body.template[owner == joint]
        if len(centre) and JOINT_PARENTS[joint] >= 0:
            assert np.linalg.norm(centre.mean(axis=0) - body.joints_rest[joint]) < 0.35, joint


def test_shape_coefficients_change_what_they_name(body: LinearBody) -> None:
    pose = np.repeat(np.eye(3, dtype=np.float32)[None, None], 24, axis=1)
    taller = np.zeros((1, 10), np.float32)
    taller[0, 0] = 2
    plain, _ = body.surface(pose, np.zeros((1, 10), np.float32))
    tall, joints = body.surface(pose, taller)
    assert np.ptp(tall[0, :, 1]) > 1.06 * np.ptp(plain[0, :, 1])
    assert np.ptp(joints[0, :, 1]) > 1.5 * 0.9
