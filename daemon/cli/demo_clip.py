"""The project's own clip for ``make demo``: two people of our own making walk past each other.

Nothing in it is filmed, so no licence is attached to it. It is drawn so that a real detector, which was trained on
photographs, finds the people in it: skin, hair and clothes, soft light, shadows on a floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from daemon.exports.raster import Mesh, draw, project
from stages.body.model import LinearBody, load_body
from stages.body.skeleton import JOINT

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

SKIN, HAIR, SHOES = (140, 165, 215), (35, 45, 60), (50, 50, 55)
FLOOR = 1.15
"""Height in metres of the camera over the floor."""
FOCAL_SHARE = 1.1
"""Focal length as a share of the image's width: an everyday lens."""
STRIDE_SECONDS = 1.1


@dataclass(frozen=True)
class Walker:
    """One person of the clip: clothes (BGR), path (metres), size and rhythm."""

    shirt: tuple[int, int, int]
    trousers: tuple[int, int, int]
    start: tuple[float, float]
    end: tuple[float, float]
    betas: tuple[float, ...]
    phase: float
    waves: bool = False


WALKERS = (
    Walker((60, 70, 190), (95, 70, 45), (-1.8, 5.3), (1.7, 5.0), (0.4, 0.2), 0.0, waves=True),
    Walker((150, 130, 60), (60, 62, 66), (2.2, 6.5), (-1.9, 6.2), (-0.5, -0.3), 1.7),
)


def make_demo_clip(
    path: Path, *, seconds: float = 5.0, size: tuple[int, int] = (1280, 720), fps: int = 30
) -> Path:
    """Draw the clip to ``path`` (H.264 where the build can encode it); the same bytes of pixels every time.

    Args:
        seconds: length.
        size: width and height in pixels, even.
        fps: frames per second.
    """
    body = load_body({})
    scene = _scene(size)
    frames = round(seconds * fps)
    beside = path.with_name(f".{path.name}.part.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(beside), "w") as container:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream: Any = container.add_stream(codec, rate=Fraction(fps))
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            if codec == "libx264":
                stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
            for number in range(frames):
                picture = draw_frame(body, scene, number / fps, seconds)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
            container.mux(stream.encode())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def draw_frame(body: LinearBody, scene: U8, time: float, seconds: float) -> U8:
    """The picture at ``time`` seconds."""
    focal = FOCAL_SHARE * scene.shape[1]
    picture = scene.copy()
    meshes = []
    for walker in WALKERS:
        pose, place = _stand(walker, time, seconds)
        betas = np.zeros((1, 10), np.float32)
        betas[0, : len(walker.betas)] = walker.betas
        vertices = body.surface(pose[None].astype(np.float32), betas)[0][0]
        place[1] = FLOOR - vertices[:, 1].max()  # the lower foot stands on the floor
        placed = (vertices + place).astype(np.float32)
        _shadow(picture, placed, focal)
        meshes.append(Mesh(placed, body.faces, _clothes(walker, body)))
    blurred: Any = cv2.GaussianBlur(draw(picture, meshes, focal), (0, 0), 0.6)
    found: U8 = blurred
    return found


def _stand(walker: Walker, time: float, seconds: float) -> tuple[F64, F64]:
    """Pose (24, 3, 3) and place (3,) of a walker at a time."""
    share = time / max(seconds, 1e-9)
    start, end = np.array(walker.start), np.array(walker.end)
    where = start + (end - start) * share
    heading = np.arctan2(end[0] - start[0], -(end[1] - start[1]))
    swing = 2 * np.pi * time / STRIDE_SECONDS + walker.phase
    pose = np.repeat(np.eye(3)[None], len(JOINT), axis=0)
    # A little turned towards the camera: nobody walks in pure profile for a whole clip.
    pose[0] = _about(0, np.pi) @ _about(1, heading * 0.72)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        forward = sign * np.sin(swing)
        pose[JOINT[f"{side}_hip"]] = _about(0, -0.48 * forward)
        pose[JOINT[f"{side}_knee"]] = _about(0, 0.15 + 0.75 * max(0.0, sign * np.cos(swing)) ** 2)
        pose[JOINT[f"{side}_ankle"]] = _about(0, 0.1 * forward)
        down = _about(2, -sign * 1.25)
        pose[JOINT[f"{side}_shoulder"]] = _about(0, 0.45 * forward) @ down
        pose[JOINT[f"{side}_elbow"]] = _about(1, -sign * 0.35)
    if walker.waves:
        pose[JOINT["right_shoulder"]] = _about(2, -0.55)
        pose[JOINT["right_elbow"]] = _about(2, -1.2 + 0.35 * np.sin(2 * np.pi * 1.3 * time))
    pose[JOINT["spine1"]] = _about(1, 0.08 * np.sin(swing))
    pose[JOINT["spine3"]] = _about(1, -0.12 * np.sin(swing))
    return pose, np.array([where[0], 0.0, where[1]])


def _about(axis: int, angle: float) -> F64:
    cosine, sine = np.cos(angle), np.sin(angle)
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    rotation = np.eye(3)
    rotation[first, first] = rotation[second, second] = cosine
    rotation[first, second], rotation[second, first] = -sine, sine
    return rotation


def _clothes(walker: Walker, body: LinearBody) -> F32:
    """A BGR colour (V, 3) for each vertex, by the joint that moves it most and its place in the rest pose."""
    bone = body.weights.argmax(axis=1)
    colours = np.empty((len(bone), 3), np.float32)
    colours[:] = walker.shirt
    names = {index: name for name, index in JOINT.items()}
    for vertex, name in enumerate(names[index] for index in bone):
        if name in ("pelvis", "left_hip", "right_hip", "left_knee", "right_knee"):
            colours[vertex] = walker.trousers
        elif name.endswith(("ankle", "foot")):
            colours[vertex] = SHOES
        elif name in ("neck", "head") or name.endswith(("elbow", "wrist", "hand")):
            colours[vertex] = SKIN
    head = np.flatnonzero(bone == JOINT["head"])
    top = body.template[head]
    centre = body.joints_rest[JOINT["head"]]
    tall = top[:, 1].max() - centre[1]
    height = (top[:, 1] - centre[1]) / tall
    back = top[:, 2] < np.median(top[:, 2])
    colours[head[(height > 0.72) | (back & (height > 0.15))]] = HAIR
    front = top[:, 2] > np.percentile(top[:, 2], 60)
    across = np.abs(top[:, 0] - centre[0])
    colours[head[front & (np.abs(height - 0.5) < 0.05) & (across > 0.015) & (across < 0.045)]] = (40, 40, 45)
    colours[head[front & (np.abs(height - 0.17) < 0.03) & (across < 0.025)]] = (95, 95, 180)
    return colours


def _shadow(picture: U8, vertices: F32, focal: float) -> None:
    """Darken the floor under a person, softly."""
    height, width = picture.shape[:2]
    flat = vertices[::7].copy()
    lean = (FLOOR - flat[:, 1]) * 0.22
    flat[:, 0] += lean
    flat[:, 2] += lean
    flat[:, 1] = FLOOR
    points = project(flat, width, height, focal).astype(np.int32)
    mask: Any = np.zeros((height, width), np.float32)
    cv2.fillConvexPoly(mask, cv2.convexHull(points), 1.0)
    mask = cv2.GaussianBlur(mask, (0, 0), width / 130)
    picture[:] = (picture * (1 - 0.35 * mask[..., None])).astype(np.uint8)


def _scene(size: tuple[int, int]) -> U8:
    """A plain room: wall, skirting board, a floor of boards that run away from the camera."""
    width, height = size
    focal = FOCAL_SHARE * width
    horizon = height / 2
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    far = 8.0
    edge = horizon + focal * FLOOR / far
    depth = focal * FLOOR / np.maximum(rows - horizon, 1)
    across = (columns - width / 2) / focal * depth
    board = np.floor(across / 0.28)
    grain = np.sin(board * 12.9898) * 43758.5453
    tone = 0.86 + 0.1 * (grain - np.floor(grain)) - 0.1 * (np.abs(across / 0.28 - np.round(across / 0.28)) < 0.02)
    floor = tone[..., None] * np.array([118, 146, 172], np.float32)
    light = 1 - 0.28 * np.hypot((columns - 0.42 * width) / width, (rows - 0.3 * height) / height)
    wall = np.broadcast_to(np.array([196, 201, 198], np.float32), (height, width, 3))
    picture = np.where((rows > edge)[..., None], floor, wall) * light[..., None]
    picture[(rows > edge - height * 0.016) & (rows <= edge)] *= 0.8
    noise = np.random.default_rng(7).normal(0, 1.5, picture.shape)
    found: U8 = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return found
