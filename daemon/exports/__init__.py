"""Exports: results in forms that other programs and people read.

Imported lazily: each export pulls in its own libraries only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.exports.request import Request
from daemon.motion.options import MotionOptions
from stages.protocols import ConfigurationError, find_backend
from stages.results import read_results

if TYPE_CHECKING:
    from daemon.exports.style import Style

EXPORTS: Mapping[str, str] = {
    "overlay": "overlay.mp4 (or .png): the meshes drawn on the input; any video player",
    "glb": "mesh.glb: everybody's skinned surface, moving (--frame N: a still); Blender, three.js, 3D viewers",
    "subject": "subject.msgpack: the main person, joined, filled and smooth, laid out as frames.msgpack; any program",
    "bvh": "subject.bvh: skeleton and motion; Blender, MotionBuilder, Maya, Unity",
    "npz": "subject.npz: poses as AMASS has them; programs of the SMPL world",
    "csv": "subject.csv: angles, speeds, centre of mass, joints, a row a frame; spreadsheets",
    "angles": "angles.json: angles, angular velocities, centre of mass, speeds; any program",
    "trc": "subject.trc: the joints as markers; OpenSim",
    "mot": "subject.mot: joint angles as the model's coordinates; OpenSim",
    "plot": "angles.png: the main angles and speeds over time, to look at",
    "bundle": "temp_NAME/: original.mp4, overlay.mp4, tracks.pkl; importers of 4D-Humans' output",
    "json": "frames.jsonl: everything but the surfaces, a JSON object a line; any program",
    "web": "web.json, web.bin: surfaces and skeletons, any frame by one byte range; browsers (three.js)",
}
"""Exports of every backend: what each writes, and for which program. A backend may offer more
(`stages.protocols.Backend.exports`)."""

OF_THE_VIDEO = ("overlay", "bundle")
"""Exports that need the input itself; the others are made of the results alone."""

_WRITERS: Mapping[str, str] = {
    "glb": "glb:export_glb",
    "subject": "subject:export_subject",
    "bvh": "bvh:export_bvh",
    "npz": "npz:export_npz",
    "csv": "tables:export_csv",
    "angles": "tables:export_angles",
    "trc": "opensim:export_trc",
    "mot": "opensim:export_mot",
    "plot": "plot:export_plot",
    "bundle": "bundle:export_bundle",
    "json": "json_lines:export_json",
    "web": "web:export_web",
}
"""Where each is: a module of this package, and a function that takes a `Request` and returns the files it wrote."""


def export(
    name: str,
    source: str | Path,
    results: str | Path,
    folder: str | Path,
    progress: Callable[[int], None] = lambda done: None,
    options: Mapping[str, Any] | None = None,
    motion: MotionOptions | None = None,
    frame: int | None = None,
    style: Style | None = None,
) -> Sequence[Path]:
    """Write one export of ``results`` (a ``frames.msgpack``) of ``source`` into ``folder``.

    Args:
        progress: told how many frames are done.
        options: of the backend.
        motion: whom exports of one person are about, and what is done to movement.
        frame: a single one, for exports that can show one.
        style: of an overlay.

    Returns:
        The files written.

    Raises:
        ConfigurationError: there is no such export for these results; names those there are.
    """
    request = Request(
        Path(source), Path(results), Path(folder), progress, options or {}, motion or MotionOptions(), frame
    )
    if name == "overlay":
        from daemon.exports.drawing import write_overlay

        return [write_overlay(request.source, request.results, request.folder, request.progress, options, style)]
    if name in EXPORTS:
        module, function = _WRITERS[name].split(":")
        written: Sequence[Path] = getattr(import_module(f"daemon.exports.{module}"), function)(request)
        return written
    with read_results(request.results) as found:
        backend = find_backend(found.header.backend)
    if name not in backend.exports:
        known = ", ".join([*EXPORTS, *backend.exports])
        raise ConfigurationError(f"export {name!r}: results of backend {backend.name} can be exported as {known}")
    return [backend.exports[name](request.results, request.folder)]
