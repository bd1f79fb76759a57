"""``mesh.glb``: the people of one frame as posed meshes, for any 3D viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from daemon.exports.raster import identity_colour
from daemon.exports.request import Request
from stages.protocols import find_backend
from stages.records import FrameRecord
from stages.results import read_results

TO_GLTF = np.diag([1.0, -1.0, -1.0, 1.0])
"""From camera axes (y down, z away) to glTF's (y up, z towards the viewer)."""


def export_glb(request: Request) -> list[Path]:
    """`write_glb` as an export."""
    return [write_glb(request.results, request.folder, frame=request.frame, options=request.options)]


def write_glb(results: Path, folder: Path, *, frame: int | None = None, options: Any = None) -> Path:
    """Write the meshes of one frame, by default of the first one that shows the most people.

    Metres, glTF's axes, one node ``person-ID`` for each track, at the place where it stands before the camera.

    Raises:
        ResultsError: the results cannot be read.
        ValueError: there is nobody in that frame, or in any.
    """
    with read_results(results) as found:
        chosen: FrameRecord | None = None
        for record in found:
            if frame is not None and record.frame == frame:
                chosen = record
                break
            if frame is None and len(record.tracks) > (len(chosen.tracks) if chosen else 0):
                chosen = record
        if chosen is None or not chosen.tracks:
            raise ValueError(f"{results}: nobody to show in {'any frame' if frame is None else f'frame {frame}'}")
        scene: Any = trimesh.Scene()
        visual: Any = trimesh.visual
        for track in chosen.tracks:
            vertices = track.vertices
            if vertices is None:
                body = find_backend(found.header.backend).body(options or {})
                vertices = body.surface(track.pose[None], track.betas[None])[0][0]
            blue, green, red = identity_colour(track.id)
            material = visual.material.PBRMaterial(
                baseColorFactor=[red, green, blue, 255], metallicFactor=0.0, roughnessFactor=0.7
            )
            mesh = trimesh.Trimesh(vertices + track.camera, found.header.faces, process=False)
            mesh.visual = visual.TextureVisuals(material=material)
            name = f"person-{track.id}"
            scene.add_geometry(mesh, node_name=name, geom_name=name, transform=TO_GLTF)
    path = folder / "mesh.glb"
    beside = path.with_suffix(".part")
    beside.write_bytes(scene.export(file_type="glb"))
    beside.replace(path)
    return path
