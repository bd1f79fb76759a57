"""The animated glTF: its skin moves the surface as the body model does.

The Khronos validator reads it in clients/node/test/exports.test.js.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from daemon.exports import export
from daemon.exports.people_files import NobodyError
from daemon.motion.options import MotionOptions
from daemon.motion.world import TO_Y_UP
from tests.daemon.motion_clips import DISTANCE, F64, FOCAL, HEIGHT, WIDTH, body, records, walking, write

RAW = MotionOptions(raw=True)
NEARER = 1.1 * 256 / 5000
"""Depths before a usual lens, of those of HMR2's."""


class Glb:
    """A .glb file as the specification describes it."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        magic, version, total, length, kind = struct.unpack("<4sIII4s", data[:20])
        assert (magic, version, total, kind) == (b"glTF", 2, len(data), b"JSON")
        self.json: dict[str, Any] = json.loads(data[20 : 20 + length])
        self._binary = data[28 + length :]

    def array(self, accessor: int) -> Any:
        found = self.json["accessors"][accessor]
        view = self.json["bufferViews"][found["bufferView"]]
        kind = {5126: "<f4", 5123: "<u2", 5125: "<u4", 5121: "<u1"}[found["componentType"]]
        shape = {"SCALAR": (), "VEC2": (2,), "VEC3": (3,), "VEC4": (4,), "MAT4": (4, 4)}[found["type"]]
        count = found["count"] * int(np.prod(shape))
        return np.frombuffer(self._binary, kind, count, view["byteOffset"]).reshape(found["count"], *shape)

    def node(self, name: str) -> int:
        return next(index for index, node in enumerate(self.json["nodes"]) if node["name"] == name)

    def at(self, node: int, path: str, time: float, default: list[float]) -> F64:
        """A node's rotation, translation or scale at a time that is one of the keys, or the last key before it."""
        animation = self.json["animations"][0]
        for channel in animation["channels"]:
            if channel["target"] == {"node": node, "path": path}:
                sampler = animation["samplers"][channel["sampler"]]
                key = max(0, int(np.searchsorted(self.array(sampler["input"]), time + 1e-4)) - 1)
                return np.asarray(self.array(sampler["output"])[key], np.float64)
        return np.asarray(self.json["nodes"][node].get(path, default), np.float64)

    def world(self, node: int, time: float, above: F64) -> dict[int, F64]:
        local = np.eye(4)
        turn = Rotation.from_quat(self.at(node, "rotation", time, [0, 0, 0, 1])).as_matrix()
        local[:3, :3] = turn * self.at(node, "scale", time, [1, 1, 1])
        local[:3, 3] = self.at(node, "translation", time, [0, 0, 0])
        found = {node: above @ local}
        for child in self.json["nodes"][node].get("children", []):
            found |= self.world(child, time, found[node])
        return found

    def skinned(self, name: str, time: float) -> F64:
        """The surface of a skinned node at a time (V, 3)."""
        node = self.json["nodes"][self.node(name)]
        skin = self.json["skins"][node["skin"]]
        worlds = self.world(skin["skeleton"], time, np.eye(4))
        bind = self.array(skin["inverseBindMatrices"]).transpose(0, 2, 1)
        moves = np.stack([worlds[joint] @ bind[index] for index, joint in enumerate(skin["joints"])])
        attributes = self.json["meshes"][node["mesh"]]["primitives"][0]["attributes"]
        joints, weights = self.array(attributes["JOINTS_0"]), self.array(attributes["WEIGHTS_0"])
        points = np.column_stack([self.array(attributes["POSITION"]), np.ones(len(joints))])
        return np.einsum("vk,vkab,vb->va", weights, moves[joints], points)[:, :3]  # type: ignore[no-any-return]


def two(folder: Path) -> Path:
    first, second = walking(), walking(start=np.array([1.0, 0.3, 80.0]), speed=0.3)
    found = records(
        (f / 30, [first.track(1, f / 30)] + ([second.track(2, f / 30)] if 8 <= f < 20 else [])) for f in range(30)
    )
    return write(folder / "frames.msgpack", found)


def test_the_skin_moves_as_the_body_does(tmp_path: Path) -> None:
    (path,) = export("glb", "clip.mp4", two(tmp_path), tmp_path, motion=RAW)
    assert path.name == "mesh.glb"
    glb, actor = Glb(path), walking()
    for frame in (0, 7, 15, 29):
        surface = actor.track(1, frame / 30, vertices=True).vertices
        place = actor.place(frame / 30) * [1, 1, NEARER]
        expected = (surface + place) @ TO_Y_UP.T
        assert np.abs(glb.skinned("person-1", frame / 30) - expected).max() < 1e-4
    # Where it stands before the camera: metres away, not around the origin.
    assert glb.skinned("person-1", 0.0)[:, 2].mean() == pytest.approx(-DISTANCE * NEARER, abs=0.2)


def test_somebody_who_is_not_there_is_not_seen(tmp_path: Path) -> None:
    (path,) = export("glb", "clip.mp4", two(tmp_path), tmp_path, motion=RAW)
    glb = Glb(path)
    sizes = [np.ptp(glb.skinned("person-2", frame / 30), axis=0).max() for frame in range(30)]
    assert [size > 1 for size in sizes] == [8 <= frame < 20 for frame in range(30)]
    assert max(size for size in sizes if size < 1) < 1e-3


def test_the_camera_sees_what_the_video_shows(tmp_path: Path) -> None:
    (path,) = export("glb", "clip.mp4", two(tmp_path), tmp_path, motion=RAW)
    glb = Glb(path)
    lens = glb.json["cameras"][0]["perspective"]
    points = glb.skinned("person-1", 0.5)
    up = np.tan(lens["yfov"] / 2)
    flat = points[:, :2] / -points[:, 2:] / [up * lens["aspectRatio"], up]
    pixels = (flat * [1, -1] + 1) / 2 * [WIDTH, HEIGHT]
    surface = walking().track(1, 0.5, vertices=True).vertices + walking().place(0.5)
    expected = surface[:, :2] / surface[:, 2:] * FOCAL + [WIDTH / 2, HEIGHT / 2]
    # The same but for the perspective, which a usual lens shows more of.
    assert np.abs(pixels - expected).max() < 0.1 * HEIGHT
    assert np.abs(pixels - expected).mean() < 0.03 * HEIGHT


def test_a_still_by_another_reader(tmp_path: Path) -> None:
    results = two(tmp_path)
    (path,) = export("glb", "clip.mp4", results, tmp_path, motion=RAW, frame=10)
    assert path.name == "mesh-10.glb"
    scene: Any = trimesh.load(path)
    assert sorted(scene.geometry) == ["person-1", "person-2"]
    place = walking().place(10 / 30) * [1, 1, NEARER] @ TO_Y_UP.T
    assert np.linalg.norm(scene.graph["person-1"][0][:3, 3] - place) < 1e-3
    assert scene.geometry["person-1"].faces.tolist() == body().faces.tolist()
    with pytest.raises(NobodyError, match="nobody is in frame 99 of 30"):
        export("glb", "clip.mp4", results, tmp_path, motion=RAW, frame=99)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.msgpack", "mesh-10.glb"]


def test_nobody_to_show(tmp_path: Path) -> None:
    results = write(tmp_path / "frames.msgpack", records((f / 30, []) for f in range(3)))
    with pytest.raises(NobodyError, match="nobody is in it"):
        export("glb", "clip.mp4", results, tmp_path)
