"""A backend for tests: people are bright squares on black. Fast, deterministic, and sensitive.

The tracker's records depend on everything it was ever given, in order: a frame missing, doubled or out of
order changes every record after it. It lags by two frames, as real trackers do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from stages.protocols import Backend, Report
from stages.records import Detections, Frame, FrameRecord, Header, People, Track
from stages.transport.wire import pack_value, unpack_value

EXTRA = {"made_by": "blocks"}
"""What only this backend gives."""
LAG = 2


class Squares:
    def __init__(self, options: Mapping[str, Any], report: Report) -> None:
        report("squares", 1.0)

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        return [self._one(frame.image) for frame in frames]

    def _one(self, image: Any) -> Detections:
        grey = (image.max(axis=2) > 127).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(grey)
        boxes = [[x, y, x + w, y + h] for x, y, w, h, area in stats[1:count] if area > 30]
        found = np.asarray(sorted(boxes), np.float32).reshape(-1, 4)
        return Detections(found, np.ones(len(found), np.float32))


class Cubes:
    def __init__(self, options: Mapping[str, Any], report: Report) -> None:
        report("cubes", 1.0)

    def regress(self, frames: Sequence[Frame], detections: Sequence[Detections]) -> list[People]:
        return [self._one(f.image, d) for f, d in zip(frames, detections, strict=True)]

    def _one(self, image: Any, found: Detections) -> People:
        count = len(found)
        pose = np.broadcast_to(np.eye(3, dtype=np.float32), (count, 24, 3, 3)).copy()
        people = People(
            found.boxes, found.scores, np.zeros((count, 3), np.float32), pose,
            np.zeros((count, 10), np.float32), np.zeros((count, 24, 3), np.float32),
            np.zeros((count, 24, 2), np.float32), np.zeros((count, 4, 3), np.float32),
        )  # fmt: skip
        for person, (x0, y0, x1, y1) in enumerate(found.boxes.astype(int)):
            people.betas[person, :3] = image[y0:y1, x0:x1].mean(axis=(0, 1))
        return people


class Chain:
    """Every record carries, in its betas, a digest of all frames before it."""

    def __init__(self) -> None:
        self._digest = b""
        self._held: list[FrameRecord] = []

    def update(self, frame: int, time: float, people: People) -> list[FrameRecord]:
        seen = hashlib.sha256(self._digest)
        seen.update(pack_value([frame, time, people.boxes, people.betas]))
        self._digest = seen.digest()
        tracks = []
        for person in range(len(people)):
            betas = people.betas[person].copy()
            betas[3:] = np.frombuffer(self._digest[:7], np.uint8)
            tracks.append(
                Track(
                    person + 1, people.boxes[person], float(people.scores[person]), people.camera[person],
                    people.pose[person], betas, people.joints_3d[person], people.joints_2d[person],
                    None if people.vertices is None else people.vertices[person], extra=dict(EXTRA),
                )
            )  # fmt: skip
        self._held.append(FrameRecord(frame, time, tracks))
        ready, self._held = self._held[:-LAG], self._held[-LAG:]
        return ready

    def finish(self) -> list[FrameRecord]:
        ready, self._held = self._held, []
        return ready

    def snapshot(self) -> bytes:
        held = [[r.frame, r.time, [[t.id, t.box, t.betas] for t in r.tracks]] for r in self._held]
        return pack_value({"digest": self._digest, "held": held})

    def restore(self, data: bytes) -> None:
        state = unpack_value(data)
        self._digest = bytes(state["digest"])
        self._held = [
            FrameRecord(frame, time, [_square(*track) for track in tracks])
            for frame, time, tracks in state["held"]
        ]


def _square(number: int, box: Any, betas: Any) -> Track:
    pose = np.broadcast_to(np.eye(3, dtype=np.float32), (24, 3, 3)).copy()
    zeros = np.zeros((24, 3), np.float32)
    vertices = np.zeros((4, 3), np.float32)
    return Track(number, box, 1.0, zeros[0], pose, betas, zeros, zeros[:, :2], vertices, extra=dict(EXTRA))


class Square:
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)

    def surface(self, pose: Any, betas: Any) -> Any:
        return np.zeros((len(pose), 4, 3), np.float32), np.zeros((len(pose), 24, 3), np.float32)


def _header(options: Mapping[str, Any], width: int, height: int, fps: float) -> Header:
    return Header(width, height, fps, "tests.stages.blocks", ("root",), (-1,), Square.faces)


BACKEND = Backend(
    name="tests.stages.blocks",
    detector=Squares,
    mesh=Cubes,
    tracker=lambda options, width, height, fps: Chain(),
    header=_header,
    body=lambda options: Square(),
    preload={"detect": ("cv2",), "mesh": ("cv2",)},
)
