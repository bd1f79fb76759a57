"""``temp_NAME/``: original.mp4, overlay.mp4 and tracks.pkl in one folder, as importers of 4D-Humans' output take
them."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from daemon.exports.drawing import LARGEST, write_overlay
from daemon.exports.film import TICKS, Look, Part, join
from daemon.exports.request import Request
from stages.protocols import find_backend
from stages.records import FrameRecord, Header, Track
from stages.results import read_results
from stages.source import open_source


def export_bundle(request: Request) -> list[Path]:
    """Write the folder, named after the results' own; one that is there is replaced when the new one is whole.

    ``original.mp4`` is the input itself where that is an MP4, and else its pictures again with their times.
    ``tracks.pkl`` is the backend's own where it has one; of other backends it has those of PHALP's entries that any
    results can fill.

    Raises:
        SourceError, OtherInputError: the input cannot be read, or is another.
        ResultsError: the results cannot be read.
        OSError: the folder cannot be written.
    """
    target = request.folder / f"temp_{request.folder.resolve().name}"
    beside = request.folder / f".{target.name}.part"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        with read_results(request.results) as found:
            header = found.header
        if request.source.suffix.lower() == ".mp4":
            shutil.copyfile(request.source, beside / "original.mp4")
        else:
            _original(request.source, beside / "original.mp4", header)
        write_overlay(request.source, request.results, beside, request.progress, request.options)
        tracks = find_backend(header.backend).exports.get("tracks")
        if tracks is not None:
            tracks(request.results, beside)
        else:
            with read_results(request.results) as found:
                content = {f"{record.frame + 1:06d}.jpg": _frame(record) for record in found}
            joblib.dump(content, beside / "tracks.pkl", compress=3)
        shutil.rmtree(target, ignore_errors=True)
        beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return [target]


def _original(source: Path, path: Path, header: Header) -> None:
    """The pictures of an input that is no MP4, with their times."""
    opened = open_source(source, max_pixels=LARGEST, stream=header.stream)
    film = path.with_suffix(".part.mp4")
    try:
        look = Look.of(header.width, header.height, Fraction(*header.rate), opened.info.matrix, 0)
        part, stamps = Part(film, look), [-1]
        for decoded in opened.frames():
            image = (
                np.zeros((header.height, header.width, 3), np.uint8) if decoded.image is None else decoded.image
            )
            part.add(look.fit(image))
            stamps.append(max(round(decoded.time * TICKS), stamps[-1] + 1))
        part.close()
        join([(film, stamps[1:])], look, path, None)
    finally:
        opened.close()
        film.unlink(missing_ok=True)


def _frame(record: FrameRecord) -> dict[str, Any]:
    name, tracks = f"{record.frame + 1:06d}.jpg", record.tracks
    seen = [track for track in tracks if track.detected]
    return {
        "time": record.frame,
        "frame_path": name,
        "img_path": [name] * len(tracks),
        "tracked_ids": [track.id for track in seen],
        "tracked_bbox": [_corner_and_size(track) for track in seen],
        "tid": [track.id for track in tracks],
        "bbox": [_corner_and_size(track) for track in tracks],
        "tracked_time": [int(not track.detected) for track in tracks],
        "conf": [np.float32(track.confidence) for track in tracks],
        "smpl": [
            {"global_orient": track.pose[:1], "body_pose": track.pose[1:], "betas": track.betas}
            for track in tracks
        ],
        "camera": [track.camera for track in tracks],
        "3d_joints": [track.joints_3d for track in tracks],
    }


def _corner_and_size(track: Track) -> Any:
    x0, y0, x1, y1 = track.box
    return np.array([x0, y0, x1 - x0, y1 - y0])
