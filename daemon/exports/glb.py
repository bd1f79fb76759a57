"""``mesh.glb``: everybody's skinned surface over time, for Blender, three.js and any 3D viewer.

glTF 2.0: a person is a node ``person-ID`` with mesh and skin, and its skeleton an animated tree of nodes beside it.
Metres, y up, everybody where it stands before the camera. Where a person is not there its skeleton's scale is zero.
Surfaces move by at most four joints a vertex, and without SMPL's pose blend shapes: a centimetre off at bent joints,
where a body has them; Poseward's own has none.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from daemon.exports.gltf import ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER, GlbWriter
from daemon.exports.people_files import NobodyError
from daemon.exports.raster import identity_colour
from daemon.exports.request import Request, appearing
from daemon.exports.surfaces import body_of, surfaces
from daemon.motion.clip import F64
from daemon.motion.people import Motion, Person, read_motion
from daemon.motion.smoothing import continuous_quaternions
from daemon.motion.world import TO_Y_UP, depth_scale
from stages.body.model import LinearBody
from stages.protocols import ConfigurationError

MOST_WEIGHTS = 4
"""Joints that may move a vertex, in glTF without more attributes."""
VANISHED = 1e-6
"""Scale of somebody who is not there; zero itself has no inverse, which some viewers want."""


def export_glb(request: Request) -> list[Path]:
    """Write ``mesh.glb``; with ``request.frame`` the people of that one frame, posed and still, as ``mesh-FRAME.glb``.

    Raises:
        ResultsError: the results cannot be read.
        SubjectError: nobody is meant by the choice of the subject.
        NobodyError: nobody is in the results, or in that frame.
        ConfigurationError: the body's file is not here; names it.
        OSError: the file cannot be written.
    """
    motion = read_motion(request.results, request.motion)
    if not motion.people:
        raise NobodyError(f"{request.results}: nobody is in it")
    still = request.frame is not None
    path = request.folder / (f"mesh-{request.frame}.glb" if still else "mesh.glb")
    with tempfile.TemporaryFile(dir=request.folder) as scratch, appearing(path) as (file,):
        writer = GlbWriter(scratch)
        roots = [_camera(writer, motion)]
        if still:
            roots += _still(writer, motion, request)
        else:
            body = body_of(motion, request.options)
            if not isinstance(body, LinearBody):
                raise ConfigurationError(
                    f"export glb: the body of backend {motion.clip.header.backend} has no skin to be moved by joints;"
                    " --frame writes the surfaces of one frame"
                )
            channels: dict[str, list[Any]] = {"channels": [], "samplers": []}
            for person in motion.people:
                roots += _animated(writer, motion, person, body, channels)
                request.progress(int(person.frames[-1]) + 1)
            writer.document["animations"].append({"name": "motion", **channels})
        header = motion.clip.header
        about = {"fps": list(header.rate), "variable": header.variable, "subject": motion.subject}
        writer.finish(file, roots, about)
    return [path]


def _camera(writer: GlbWriter, motion: Motion) -> int:
    """The camera that filmed it, at the origin: what it sees is the video's picture."""
    header = motion.clip.header
    focal = header.focal * depth_scale(motion)
    lens = {"aspectRatio": header.width / header.height, "yfov": 2 * float(np.arctan(header.height / 2 / focal))}
    writer.document["cameras"].append({"type": "perspective", "perspective": {**lens, "znear": 0.05}})
    return writer.node(name="camera", camera=0)


def _places(motion: Motion, person: Person) -> F64:
    """Where the root is (N, 3), glTF's axes."""
    places: F64 = person.camera * [1.0, 1.0, depth_scale(motion)] @ TO_Y_UP.T
    return places


def _material(writer: GlbWriter, person: Person) -> int:
    blue, green, red = identity_colour(person.id)
    colour = [(channel / 255) ** 2.2 for channel in (red, green, blue)]
    writer.document["materials"].append(
        {
            "name": f"person-{person.id}",
            "pbrMetallicRoughness": {
                "baseColorFactor": [*colour, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7
            },
        }
    )  # fmt: skip
    return len(writer.document["materials"]) - 1


def _mesh(writer: GlbWriter, person: Person, surface: F64, faces: Any, **attributes: int) -> int:
    kind = np.uint16 if len(surface) < 1 << 16 else np.uint32
    primitive = {
        "attributes": {
            "POSITION": writer.add(surface.astype(np.float32), target=ARRAY_BUFFER, bounds=True),
            "NORMAL": writer.add(_normals(surface, faces).astype(np.float32), target=ARRAY_BUFFER),
            **attributes,
        },
        "indices": writer.add(faces.astype(kind).ravel(), target=ELEMENT_ARRAY_BUFFER),
        "material": _material(writer, person),
    }
    writer.document["meshes"].append({"name": f"person-{person.id}", "primitives": [primitive]})
    return len(writer.document["meshes"]) - 1


def _still(writer: GlbWriter, motion: Motion, request: Request) -> list[int]:
    shown = surfaces(motion, request.results, request.options, raw=request.motion.raw)
    present = next((found for frame, found in enumerate(shown) if frame == request.frame), [])
    if not present:
        raise NobodyError(f"{request.results}: nobody is in frame {request.frame} of {len(motion.clip.times)}")
    roots = []
    for person, at, surface in present:
        turned = surface.astype(np.float64) @ TO_Y_UP.T
        mesh = _mesh(writer, person, turned, motion.clip.header.faces)
        place = _places(motion, person)[at].tolist()
        roots.append(writer.node(name=f"person-{person.id}", mesh=mesh, translation=place))
    return roots


def _animated(
    writer: GlbWriter, motion: Motion, person: Person, body: LinearBody, channels: dict[str, list[Any]]
) -> list[int]:
    """Two nodes of the scene: the person's surface, and its skeleton."""
    header, parents = motion.clip.header, motion.clip.header.joint_parents
    rest = body.rest_joints(person.betas)
    surface = body.template + body.shapedirs @ person.betas
    joints, weights = _strongest(body)
    mesh = _mesh(
        writer, person, surface, header.faces,
        JOINTS_0=writer.add(joints, target=ARRAY_BUFFER), WEIGHTS_0=writer.add(weights, target=ARRAY_BUFFER),
    )  # fmt: skip
    pose = person.pose.copy()
    pose[:, 0] = TO_Y_UP @ pose[:, 0]
    turns = continuous_quaternions(pose)
    first, nodes = len(writer.document["nodes"]), []
    for joint, name in enumerate(header.joint_names):
        parent = parents[joint]
        children = [first + child for child, above in enumerate(parents) if above == joint]
        place = _places(motion, person)[0] if parent < 0 else rest[joint] - rest[parent]
        values: dict[str, Any] = {"name": f"{name}-{person.id}", "translation": place.tolist()}
        values["rotation"] = turns[0, joint].tolist()
        if children:
            values["children"] = children
        nodes.append(writer.node(**values))
    armature = writer.node(name=f"skeleton-{person.id}", children=[nodes[0]])
    bind = np.tile(np.eye(4, dtype=np.float32), (len(rest), 1, 1))
    bind[:, 3, :3] = -rest  # glTF's matrices stand column by column
    writer.document["skins"].append(
        {"inverseBindMatrices": writer.add(bind), "joints": nodes, "skeleton": armature}
    )
    shown = writer.node(
        name=f"person-{person.id}",
        mesh=mesh,
        skin=len(writer.document["skins"]) - 1,
        extras={"id": person.id, "subject": person.id == motion.subject, "tracks": list(person.tracks)},
    )
    _animate(writer, motion, person, turns, nodes, armature, channels)
    return [shown, armature]


def _animate(
    writer: GlbWriter, motion: Motion, person: Person, turns: F64, nodes: list[int], armature: int,
    channels: dict[str, list[Any]],
) -> None:  # fmt: skip
    def channel(node: int, path: str, times: int, values: Any, interpolation: str = "LINEAR") -> None:
        channels["samplers"].append(
            {"input": times, "output": writer.add(values.astype(np.float32)), "interpolation": interpolation}
        )
        channels["channels"].append(
            {"sampler": len(channels["samplers"]) - 1, "target": {"node": node, "path": path}}
        )

    stamps = writer.add(person.times.astype(np.float32), bounds=True)
    channel(nodes[0], "translation", stamps, _places(motion, person))
    for joint, node in enumerate(nodes):
        channel(node, "rotation", stamps, turns[:, joint])
    times, there = _presence(motion, person)
    if not all(there):
        scales = np.where(np.array(there)[:, None], 1.0, VANISHED) * np.ones(3)
        channel(armature, "scale", writer.add(np.array(times, np.float32), bounds=True), scales, "STEP")


def _presence(motion: Motion, person: Person) -> tuple[list[float], list[bool]]:
    """When the person comes and goes: times in seconds, and whether it is there from then on."""
    clip, times, there = motion.clip, [0.0], [bool(person.frames[0] == 0)]
    for first, last in person.spans():
        if first or person.frames[0]:
            times.append(float(person.times[first]))
            there.append(True)
        if person.frames[last] + 1 < len(clip.times):
            times.append(float(clip.times[person.frames[last] + 1]))
            there.append(False)
    return times, there


def _strongest(body: LinearBody) -> tuple[Any, Any]:
    """The joints (V, 4) uint8 that move each vertex most, and their weights (V, 4) float32, whose sum is 1."""
    order = np.argsort(-body.weights, axis=1, kind="stable")[:, :MOST_WEIGHTS]
    weights = np.take_along_axis(body.weights, order, axis=1).astype(np.float64)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.where(weights > 0, order, 0).astype(np.uint8), weights


def _normals(points: F64, faces: Any) -> F64:
    """Unit normals (V, 3) of a surface: its triangles' by their areas."""
    a, b, c = points[faces].transpose(1, 0, 2)
    flat = np.cross(b - a, c - a)
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], flat)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(lengths > 1e-12, normals / np.maximum(lengths, 1e-12), [0.0, 1.0, 0.0])
