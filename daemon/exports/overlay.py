"""The meshes drawn on their frame, with who is who."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from daemon.exports.raster import U8, Mesh, draw_onto, identity_colour
from stages.protocols import BodyModel
from stages.records import F32, FrameRecord, Header, Track

OPACITY = 0.88


def draw_record(image: U8, record: FrameRecord, header: Header, body: Callable[[], BodyModel]) -> None:
    """Draw onto one frame (H, W, 3) its people's meshes and identities.

    Args:
        image: the frame in any size: the results' pixels are scaled to it.
        body: asked for only if the record has no vertices.
    """
    scale = image.shape[1] / header.width
    meshes = [_mesh(track, header, body) for track in record.tracks]
    draw_onto(image, meshes, header.focal * scale)
    for track in record.tracks:
        _label(image, track, scale)
    if record.failed is not None:
        _caption(image, f"frame {record.frame}: {record.failed.stage} failed")


def _mesh(track: Track, header: Header, body: Callable[[], BodyModel]) -> Mesh:
    vertices = track.vertices
    if vertices is None:
        vertices = body().surface(track.pose[None], track.betas[None])[0][0]
    vertices = vertices + track.camera
    aside = (header.principal[0] - header.width / 2, header.principal[1] - header.height / 2)
    if any(aside):  # the drawing knows only cameras that look through the picture's middle
        vertices[:, :2] += vertices[:, 2:] * (np.asarray(aside, np.float32) / np.float32(header.focal))
    opacity = OPACITY if track.detected else OPACITY / 2
    return Mesh(vertices, header.faces, identity_colour(track.id), opacity)


def _label(image: U8, track: Track, scale: float) -> None:
    """The identity in a small plate above the person."""
    size = max(0.5, image.shape[0] / 1400)
    text = str(track.id)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 2)
    box: F32 = np.nan_to_num(track.box * scale)
    x = int(np.clip((box[0] + box[2]) / 2 - width / 2, -1e6, 1e6))
    y = int(np.clip(max(box[1] - 0.6 * height, 1.8 * height), -1e6, 1e6))
    pad = max(3, height // 2)
    colour = identity_colour(track.id)
    cv2.rectangle(image, (x - pad, y - height - pad), (x + width + pad, y + pad), colour, -1, cv2.LINE_AA)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 2, cv2.LINE_AA)


def _caption(image: U8, text: str) -> None:
    size = max(0.5, image.shape[0] / 1400)
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(image, text, (12, image.shape[0] - 14), cv2.FONT_HERSHEY_SIMPLEX, size, colour, thickness)
