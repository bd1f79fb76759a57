"""``overlay.mp4``: the meshes drawn on the people, to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from daemon.exports.raster import U8, Mesh, draw, identity_colour
from daemon.exports.request import Request
from stages.protocols import BodyModel, find_backend
from stages.records import FrameRecord, Header, Track
from stages.results import Results, read_results
from stages.source import Decoded, open_source

Progress = Callable[[int], None]
"""Told how many frames are done."""

TIME_BASE = Fraction(1, 90_000)
OPACITY = 0.88
LARGEST = 1 << 28
"""Pixels: the pipeline has worked on this input already, so its limits hold."""


class OtherInputError(Exception):
    """The input is not the one that the results are of."""

    def __init__(self, source: Path, what: str) -> None:
        super().__init__(f"{source} is {what}, and not what the results are of; name the right one by --video")


def export_overlay(request: Request) -> list[Path]:
    """`write_overlay` as an export."""
    return [
        write_overlay(
            request.source, request.results, request.folder, progress=request.progress, options=request.options
        )
    ]


def write_overlay(
    source: Path, results: Path, folder: Path, *, progress: Progress = lambda done: None, options: Any = None
) -> Path:
    """Draw the results onto their input.

    A video or folder of images becomes ``overlay.mp4`` with the timing of the input, a single image
    ``overlay.png``. One frame is in memory at a time; the file is renamed into place when it is whole.

    Args:
        source: the input that the results are of.
        results: its ``frames.msgpack``.
        folder: where the picture goes.
        options: of the backend, for the body model where the results hold no vertices.

    Raises:
        SourceError: the input cannot be read any more.
        ResultsError: the results cannot be read.
        OtherInputError: the input is not the one that the results are of.
        OSError: the picture cannot be written.
    """
    opened = open_source(source, max_pixels=LARGEST)
    try:
        with read_results(results) as found:
            size, expected = (opened.info.width, opened.info.height), (found.header.width, found.header.height)
            if size != expected:
                raise OtherInputError(source, f"{size[0]}x{size[1]}, not {expected[0]}x{expected[1]}")
            pictures = _pictures(source, opened.frames(), found, options or {}, progress)
            if opened.info.kind == "image":
                return _write_image(folder / "overlay.png", pictures)
            return write_video(folder / "overlay.mp4", pictures, found.header)
    finally:
        opened.close()


def draw_record(image: U8, record: FrameRecord, header: Header, body: Callable[[], BodyModel]) -> U8:
    """One frame with its people's meshes and identities; ``body`` is asked for only if vertices are missing."""
    meshes = []
    for track in record.tracks:
        vertices = track.vertices
        if vertices is None:
            vertices = body().surface(track.pose[None], track.betas[None])[0][0]
        colour = identity_colour(track.id)
        opacity = OPACITY if track.detected else OPACITY / 2
        meshes.append(Mesh(vertices + track.camera, header.faces, colour, opacity))
    out = draw(image, meshes, header.focal)
    for track in record.tracks:
        _label(out, track)
    if record.failed is not None:
        _caption(out, f"frame {record.frame}: {record.failed.stage} failed")
    return out


def _pictures(
    source: Path, frames: Iterator[Decoded], results: Results, options: Any, progress: Progress
) -> Iterator[tuple[float, U8]]:
    header = results.header
    bodies: list[BodyModel] = []

    def body() -> BodyModel:
        if not bodies:
            bodies.append(find_backend(header.backend).body(options))
        return bodies[0]

    blank = np.zeros((header.height, header.width, 3), np.uint8)
    for record in results:
        if (decoded := next(frames, None)) is None:
            raise OtherInputError(source, f"of {record.frame} frames")
        image = blank if decoded.image is None else decoded.image
        yield decoded.time, draw_record(image, record, header, body)
        progress(decoded.index + 1)


def _write_image(path: Path, pictures: Iterator[tuple[float, U8]]) -> Path:
    beside = path.with_suffix(".part.png")
    for _, picture in pictures:
        try:
            if not cv2.imwrite(str(beside), picture):
                raise OSError(f"{path} cannot be written: is there room on that disk?")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return path


def write_video(path: Path, pictures: Iterator[tuple[float, U8]], header: Header) -> Path:
    beside = path.with_suffix(".part.mp4")
    # The codec halves the colour planes.
    width, height = max(2, header.width // 2 * 2), max(2, header.height // 2 * 2)
    try:
        with av.open(str(beside), "w") as container:
            stream: Any = container.add_stream(_encoder(), rate=Fraction(header.fps or 30).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = TIME_BASE
            if stream.codec_context.name == "libx264":
                stream.options = {"crf": "20", "preset": "veryfast"}
            for time, picture in pictures:
                missing = max(0, height - len(picture)), max(0, width - picture.shape[1])
                if any(missing):
                    picture = np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="bgr24")
                frame.pts = round(time / TIME_BASE)
                frame.time_base = TIME_BASE
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _encoder() -> str:
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def _label(image: U8, track: Track) -> None:
    """The identity in a small plate above the person."""
    scale = max(0.5, image.shape[0] / 1400)
    text = str(track.id)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
    x = int((track.box[0] + track.box[2]) / 2 - width / 2)
    y = int(max(track.box[1] - 0.6 * height, 1.8 * height))
    pad = max(3, height // 2)
    colour = identity_colour(track.id)
    cv2.rectangle(image, (x - pad, y - height - pad), (x + width + pad, y + pad), colour, -1, cv2.LINE_AA)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 2, cv2.LINE_AA)


def _caption(image: U8, text: str) -> None:
    scale = max(0.5, image.shape[0] / 1400)
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(image, text, (12, image.shape[0] - 14), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness)
