"""Clips whose truth is known: bodies that walk, sway and swing, as results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from stages.body.model import LinearBody, load_body
from stages.body.skeleton import JOINT, JOINT_NAMES, JOINT_PARENTS
from stages.records import FrameRecord, Header, Track
from stages.results.stream import ResultWriter

F64 = npt.NDArray[np.float64]

WIDTH, HEIGHT = 640, 360
FOCAL = 5000 / 256 * WIDTH
DISTANCE = 60.0
"""Metres before the camera: about half the picture's height at HMR2's focal length."""

FACING_RIGHT = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
"""Rotation from the template's axes to the camera's of somebody upright who faces right in the picture."""
FACING_LEFT = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
FACING_CAMERA = np.diag([1.0, -1.0, -1.0])


@cache
def body() -> LinearBody:
    return load_body({})


def header(fps: float = 30.0) -> Header:
    return Header(WIDTH, HEIGHT, fps, "blazepose", JOINT_NAMES, JOINT_PARENTS, body().faces)


@dataclass
class Actor:
    """One person's truth over time: ``pose(t)`` (24, 3, 3) and ``place(t)`` (3,) metres before the camera."""

    pose: Callable[[float], F64]
    place: Callable[[float], F64]

    def track(self, identity: int, time: float, *, vertices: bool = False, detected: bool = True) -> Track:
        return make_track(identity, self.pose(time), self.place(time), vertices=vertices, detected=detected)


def make_track(
    identity: int, pose: F64, place: F64, *, vertices: bool = False, detected: bool = True, confidence: float = 0.9
) -> Track:
    """What a backend would write of a body."""
    betas = np.zeros(10, np.float32)
    _, joints = body().skeleton(pose, betas)
    placed = joints + place
    flat = placed[:, :2] / placed[:, 2:] * FOCAL + [WIDTH / 2, HEIGHT / 2]
    box = np.concatenate([flat.min(0) - 8, flat.max(0) + 8])
    surface = None
    if vertices:
        surface = body().surface(pose[None].astype(np.float32), betas[None])[0][0]
    return Track(
        identity, box.astype(np.float32), confidence, place.astype(np.float32), pose.astype(np.float32), betas,
        joints.astype(np.float32), flat.astype(np.float32), surface, detected,
    )  # fmt: skip


def walking(facing: F64 = FACING_RIGHT, start: F64 | None = None, speed: float = 1.3) -> Actor:
    """A walk at ``speed`` metres a second, a step of one leg each half second."""
    begin = np.array([-2.0, 0.0, DISTANCE]) if start is None else start
    ahead = facing @ np.array([0.0, 0.0, 1.0])

    def pose(time: float) -> F64:
        swing = np.sin(2 * np.pi * time)
        found = np.repeat(np.eye(3)[None], 24, axis=0)
        found[0] = facing
        for side, sign in (("left", 1.0), ("right", -1.0)):
            bend = np.deg2rad(25) * (1 - np.cos(2 * np.pi * time + (0 if sign > 0 else np.pi)))
            _turn(found, f"{side}_hip", "x", -sign * np.deg2rad(28) * swing)
            _turn(found, f"{side}_knee", "x", bend)
            hang = Rotation.from_euler("z", -sign * 75, degrees=True)
            arm = Rotation.from_euler("x", sign * 25 * swing, degrees=True) * hang
            found[JOINT[f"{side}_shoulder"]] = arm.as_matrix()
        return found

    def place(time: float) -> F64:
        bob = 0.02 * np.sin(4 * np.pi * time)
        return begin + speed * time * ahead + np.array([0.0, bob, 0.0])

    return Actor(pose, place)


def swinging(rate: float, degrees: float, facing: F64 = FACING_CAMERA) -> Actor:
    """Somebody who stands and swings arms and legs, ``rate`` times a second by ``degrees`` to each side."""

    def pose(time: float) -> F64:
        swing = np.deg2rad(degrees) * np.sin(2 * np.pi * rate * time)
        found = np.repeat(np.eye(3)[None], 24, axis=0)
        found[0] = facing
        for side, sign in (("left", 1.0), ("right", -1.0)):
            _turn(found, f"{side}_hip", "x", -sign * swing / 2)
            hang = Rotation.from_euler("z", -sign * 75, degrees=True)
            found[JOINT[f"{side}_shoulder"]] = (Rotation.from_euler("x", sign * swing) * hang).as_matrix()
        return found

    return Actor(pose, lambda time: np.array([0.0, 0.0, DISTANCE]))


def noisy(track: Track, random: np.random.Generator, degrees: float = 2.0, metres: float = 0.01) -> Track:
    """What a network would make of it: every joint turned a little, the place a little off, the depth more."""
    turns = Rotation.from_rotvec(np.deg2rad(degrees) * random.standard_normal((24, 3))).as_matrix()
    place = track.camera + metres * random.standard_normal(3) * [1, 1, 5]
    return make_track(track.id, turns @ track.pose, place, vertices=track.vertices is not None)


def records(frames: Iterable[tuple[float, list[Track]]]) -> list[FrameRecord]:
    return [FrameRecord(number, time, tracks) for number, (time, tracks) in enumerate(frames)]


def write(path: Path, found: Iterable[FrameRecord], fps: float = 30.0) -> Path:
    writer = ResultWriter.create(path, header(fps))
    for record in found:
        writer.append(record)
    writer.close()
    return path


def _turn(pose: F64, joint: str, axis: str, angle: float) -> None:
    pose[JOINT[joint]] = Rotation.from_euler(axis, angle).as_matrix()
