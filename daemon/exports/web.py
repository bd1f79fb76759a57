"""``web.json`` and ``web.bin``: everybody's surface and skeleton for a page, each frame one byte range.

docs/web-format.md describes the layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import numpy as np

from daemon.exports.request import Request, appearing
from daemon.exports.surfaces import surfaces
from daemon.motion.people import Motion, Person, read_motion
from stages.records import F32

VERSION = 1
LARGEST = 32767


def export_web(request: Request) -> list[Path]:
    """Write both files; see the module.

    Raises:
        ResultsError: the results cannot be read.
        SubjectError: there is nobody whom the choice of the subject means.
        ConfigurationError: the body's file is not here, which surfaces are posed with.
        OSError: the files cannot be written.
    """
    motion = read_motion(request.results, request.motion)
    manifest, data = request.folder / "web.json", request.folder / "web.bin"
    # The manifest comes last: who finds it finds the data that it speaks of.
    with appearing(data, manifest) as (bytes_file, text_file):
        shown = surfaces(motion, request.results, request.options, raw=request.motion.raw)
        faces = motion.clip.header.faces
        vertices = int(faces.max()) + 1 if len(faces) else 0
        kind = np.dtype("<u2") if vertices <= 1 << 16 else np.dtype("<u4")
        bytes_file.write(faces.astype(kind).tobytes())
        at = len(faces) * 3 * kind.itemsize
        at += _pad(bytes_file, at)
        layout = _layout(motion, vertices)
        head = {
            "poseward_web": VERSION,
            **_about(motion),
            "data": data.name,
            "faces": {"offset": 0, "count": len(faces), "type": kind.name},
            "record": layout,
            "people": [_person(person, motion) for person in motion.people],
        }
        text_file.write(json.dumps(head)[:-1].encode() + b', "frames": [\n')
        for frame, present in enumerate(shown):
            start, people = at, []
            for person, index, surface in present:
                at += _write_record(bytes_file, person, index, surface, layout)
                people.append(_mark(person, index, at - layout["bytes"]))
            line: dict[str, Any] = {"time": round(float(motion.clip.times[frame]), 6), "offset": start}
            line["bytes"] = at - start
            for name in ("failed", "damaged"):
                if getattr(motion.clip, name)[frame]:
                    line[name] = True
            line["people"] = people
            text_file.write((b",\n" if frame else b"") + json.dumps(line, separators=(",", ":")).encode())
            request.progress(frame + 1)
        text_file.write(f'\n], "bytes": {at}}}\n'.encode())
    return [manifest, data]


def _about(motion: Motion) -> dict[str, Any]:
    clip, header = motion.clip, motion.clip.header
    return {
        "backend": header.backend,
        "video": {
            "width": header.width,
            "height": header.height,
            "frames": len(clip.times),
            "fps": list(header.rate),
            "variable": header.variable,
        },
        "camera": {"focal_length": header.focal, "principal_point": list(header.principal)},
        "axes": {"x": "right", "y": "down", "z": "away", "unit": "metre"},
        "skeleton": {"names": list(header.joint_names), "parents": list(header.joint_parents)},
    }


def _layout(motion: Motion, vertices: int) -> dict[str, Any]:
    joints = len(motion.clip.header.joint_names)
    start = 16 + joints * 12
    return {
        "bytes": -(-(start + vertices * 6) // 4) * 4,
        "camera": {"offset": 0, "count": 3, "type": "float32"},
        "scale": {"offset": 12, "count": 1, "type": "float32"},
        "joints": {"offset": 16, "count": joints * 3, "type": "float32"},
        "vertices": {"offset": start, "count": vertices * 3, "type": "int16", "normalized": True},
    }


def _person(person: Person, motion: Motion) -> dict[str, Any]:
    return {
        "id": person.id,
        "subject": person.id == motion.subject,
        "tracks": list(person.tracks),
        "first": int(person.frames[0]),
        "last": int(person.frames[-1]),
        "frames": len(person.frames),
    }


def _mark(person: Person, index: int, offset: int) -> dict[str, Any]:
    mark: dict[str, Any] = {"id": person.id, "offset": offset}
    if person.filled[index]:
        mark["seen"] = False
        if not person.source[index]:
            mark["filled"] = True
    return mark


def _write_record(file: IO[bytes], person: Person, index: int, surface: F32, layout: dict[str, Any]) -> int:
    """One person at one frame; returns its bytes."""
    scale = float(np.abs(surface).max(initial=1e-6))
    numbers = np.concatenate([person.camera[index], [scale], person.joints[index].ravel()])
    quantised = np.rint(surface * (LARGEST / scale)).astype("<i2")
    written = file.write(numbers.astype("<f4").tobytes()) + file.write(quantised.tobytes())
    return written + _pad(file, written, layout["bytes"])


def _pad(file: IO[bytes], at: int, to: int | None = None) -> int:
    """Zeros up to ``to``, or the next multiple of 4; returns how many."""
    return file.write(bytes((-at % 4) if to is None else to - at))
