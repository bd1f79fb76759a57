"""The body and its fit: known poses come back, rubbish stays finite, left stays left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.body.fit import ANCHORS, FOCAL_FOR_CROP, BodyFit
from stages.body.model import LinearBody, load_body
from stages.body.skeleton import JOINT, JOINT_PARENTS

WIDTH, HEIGHT = 1280, 720


@pytest.fixture(scope="module")
def body() -> LinearBody:
    return load_body({})


@pytest.fixture(scope="module")
def fitter(body: LinearBody) -> BodyFit:
    return BodyFit(body)


def rotation(vector: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(vector)
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def landmarks_of(body: LinearBody, pose: np.ndarray, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """33 landmarks in pixels and metres of a posed body: joints where there are joints, nearby points elsewhere."""
    _, joints = body.surface(pose[None].astype(np.float32), np.zeros((1, 10), np.float32))
    rotations, _ = body.skeleton(pose, np.zeros(10))
    world = np.tile(joints[0, JOINT["head"]], (33, 1)).astype(np.float64)
    for name, number in ANCHORS:
        world[number] = joints[0, JOINT[name]]
    head = rotations[JOINT["head"]]
    world[0] += head @ np.array([0, 0.03, 0.13])
    world[7] += head @ np.array([0.07, 0.06, 0.0])
    world[8] += head @ np.array([-0.07, 0.06, 0.0])
    for side, base in (("left", 0), ("right", 1)):
        world[[17 + base, 19 + base]] = joints[0, JOINT[f"{side}_hand"]]
        ankle = rotations[JOINT[f"{side}_ankle"]]
        foot = joints[0, JOINT[f"{side}_ankle"]]
        world[29 + base] = foot + ankle @ np.array([0, -0.06, -0.05])
        world[31 + base] = foot + ankle @ np.array([0, -0.06, 0.15])
    placed = world + camera
    focal = FOCAL_FOR_CROP * max(WIDTH, HEIGHT)
    image = placed[:, :2] / placed[:, 2:] * focal + [WIDTH / 2, HEIGHT / 2]
    return image, world


@pytest.mark.parametrize("turn", [0.0, 0.9, -1.5, 3.0])
def test_a_known_pose_comes_back(body: LinearBody, fitter: BodyFit, turn: float) -> None:
    rng = np.random.default_rng(3)
    pose = np.repeat(np.eye(3)[None], 24, axis=0)
    pose[0] = rotation(np.array([np.pi, 0, 0])) @ rotation(np.array([0, turn, 0]))
    for name in ("hip", "knee", "shoulder", "elbow"):
        for side in ("left", "right"):
            pose[JOINT[f"{side}_{name}"]] = rotation(rng.normal(0, 0.35, 3))
    camera = np.array([0.4, -0.1, 60.0])
    image, world = landmarks_of(body, pose, camera)
    fitted = fitter.fit(image, world, np.ones(33), WIDTH, HEIGHT)
    _, joints = body.surface(pose[None].astype(np.float32), np.zeros((1, 10), np.float32))
    expected = joints[0] + camera
    found = fitted.joints_3d + fitted.camera
    limbs = [JOINT[name] for name, _ in ANCHORS]
    assert np.linalg.norm(found[limbs, :2] - expected[limbs, :2], axis=1).max() < 0.04
    assert np.linalg.norm((found - found[0])[limbs] - (expected - expected[0])[limbs], axis=1).max() < 0.08
    assert fitted.camera[2] == pytest.approx(60, rel=0.05)
    assert np.abs(fitted.vertices + fitted.camera - expected[0]).max() < 3


def test_left_is_the_persons_left(body: LinearBody, fitter: BodyFit) -> None:
    """Somebody who faces the camera has the left arm on the image's right side."""
    pose = np.repeat(np.eye(3)[None], 24, axis=0)
    pose[0] = rotation(np.array([np.pi, 0, 0]))
    image, world = landmarks_of(body, pose, np.array([0.0, 0.0, 50.0]))
    fitted = fitter.fit(image, world, np.ones(33), WIDTH, HEIGHT)
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
def test_rubbish_stays_finite(image: np.ndarray, world: np.ndarray, visibility: np.ndarray) -> None:
    fitted = BodyFit(load_body({})).fit(image, world, visibility, WIDTH, HEIGHT)
    for array in (fitted.pose, fitted.betas, fitted.camera, fitted.joints_3d, fitted.joints_2d, fitted.vertices):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    product = np.einsum("jab,jcb->jac", fitted.pose, fitted.pose)
    assert np.abs(product - np.eye(3)).max() < 1e-4
    assert np.linalg.det(fitted.pose) == pytest.approx(np.ones(24), abs=1e-4)


def test_the_same_landmarks_give_the_same_bits(body: LinearBody, fitter: BodyFit) -> None:
    rng = np.random.default_rng(5)
    image, world = rng.uniform(0, 700, (33, 3)), rng.uniform(-1, 1, (33, 3))
    first, second = (fitter.fit(image, world, np.ones(33), WIDTH, HEIGHT) for _ in range(2))
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
