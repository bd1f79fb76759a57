"""Draws shaded meshes onto images, on the CPU and without OpenGL.

Triangles are sorted from back to front over all people, so that people hide each other as they should, and filled
by OpenCV on a canvas of twice the resolution around them, which is then reduced: that smooths the edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SUPERSAMPLING = 2
NEAREST = 0.05
"""Metres in front of the camera before which nothing is drawn."""
SUBPIXEL_BITS = 4

KEY_LIGHT = np.array([-0.45, -0.75, -0.55], np.float32)
"""Where the main light comes from, in camera axes: from the left, above and behind the camera."""
FILL_LIGHT = np.array([0.8, -0.1, -0.5], np.float32)

PALETTE = (
    (214, 160, 92), (92, 122, 235), (120, 190, 96), (190, 120, 205), (84, 190, 230), (160, 175, 90), (140, 130, 245),
    (215, 190, 120),
)  # fmt: skip
"""BGR colours of identities, in turn."""


@dataclass(frozen=True)
class Mesh:
    """One surface: ``vertices`` (V, 3) metres in camera axes, ``faces`` (F, 3), and either one BGR ``colour`` or
    one for each vertex (V, 3), in [0, 255]."""

    vertices: F32
    faces: npt.NDArray[np.int32]
    colour: Any
    opacity: float = 1.0


def focal_length(width: int, height: int) -> float:
    """Focal length in pixels of the full image by HMR2's convention: 5000 for a crop of 256 pixels."""
    return 5000.0 / 256.0 * max(width, height)


def project(points: F32, width: int, height: int, focal: float) -> F32:
    """Camera coordinates (N, 3) in metres to pixels (N, 2); the principal point is the image's centre."""
    depth = np.maximum(points[:, 2:3], NEAREST)
    centre = np.array([width / 2, height / 2])
    found: F32 = (points[:, :2] / depth * focal + centre).astype(np.float32)
    return found


def draw(image: U8, meshes: Sequence[Mesh], focal: float | None = None) -> U8:
    """A copy of ``image`` (H, W, 3) BGR with the meshes drawn on it.

    Args:
        focal: in pixels; by default HMR2's for an image of this size.
    """
    height, width = image.shape[:2]
    focal = focal or focal_length(width, height)
    prepared = [found for mesh in meshes if (found := _prepare(mesh, width, height, focal)) is not None]
    if not prepared:
        return np.copy(image)
    corners = np.concatenate([triangles.reshape(-1, 2) for triangles, _, _ in prepared])
    x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, (width, height))
    out: U8 = image.copy()
    if x1 <= x0 or y1 <= y0:
        return out
    canvas = np.zeros(((y1 - y0) * SUPERSAMPLING, (x1 - x0) * SUPERSAMPLING, 4), np.uint8)
    _fill(canvas, prepared, (x0, y0))
    # Colours are premultiplied by opacity, and the reduction multiplies both by coverage.
    small = cv2.resize(canvas, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_AREA).astype(np.float32)
    region = out[y0:y1, x0:x1]
    out[y0:y1, x0:x1] = (region * (1 - small[:, :, 3:] / 255) + small[:, :, :3]).astype(np.uint8)
    return out


def vertex_normals(vertices: F32, faces: npt.NDArray[np.int32]) -> F32:
    """Unit normals (V, 3) of a surface, weighted by the area of the adjacent faces."""
    edges = vertices[faces]
    normals = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
    count = len(vertices)
    flat = faces.reshape(-1)
    summed = np.stack(
        [np.bincount(flat, np.repeat(normals[:, axis], 3), minlength=count) for axis in range(3)], axis=1
    )
    lengths = np.linalg.norm(summed, axis=1, keepdims=True)
    found: F32 = (summed / np.maximum(lengths, 1e-12)).astype(np.float32)
    return found


def identity_colour(identity: int) -> tuple[int, int, int]:
    """BGR colour of a track."""
    return PALETTE[(identity - 1) % len(PALETTE)]


def _prepare(mesh: Mesh, width: int, height: int, focal: float) -> tuple[F32, F32, F32] | None:
    """Front-facing triangles as pixels (T, 3, 2), BGRA colours (T, 4) and depths (T,); None if none are seen."""
    pixels = project(mesh.vertices, width, height, focal)
    corners = pixels[mesh.faces]
    depth = mesh.vertices[:, 2][mesh.faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    # Counter-clockwise from outside in space is clockwise on the screen, whose y points down.
    facing = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0
    inside = (
        (corners[..., 0].max(axis=1) >= 0)
        & (corners[..., 0].min(axis=1) < width)
        & (corners[..., 1].max(axis=1) >= 0)
        & (corners[..., 1].min(axis=1) < height)
    )
    seen = facing & inside & (depth.min(axis=1) > NEAREST)
    if not seen.any():
        return None
    normals = vertex_normals(mesh.vertices, mesh.faces)
    shade = _shade(normals, mesh.vertices)
    colour = np.asarray(mesh.colour, np.float32)
    base = np.broadcast_to(colour, (len(mesh.vertices), 3)) if colour.ndim == 1 else colour
    lit = np.minimum(base * shade[:, :1] + 255 * shade[:, 1:], 255)
    faces = mesh.faces[seen]
    colours = np.empty((len(faces), 4), np.float32)
    colours[:, :3] = lit[faces].mean(axis=1) * mesh.opacity
    colours[:, 3] = 255 * mesh.opacity
    return corners[seen], colours, depth[seen].mean(axis=1)


def _shade(normals: F32, vertices: F32) -> F32:
    """Diffuse factor and added white (V, 2) at each vertex: key, fill and sky light, a soft highlight and a rim."""
    view = -vertices / np.maximum(np.linalg.norm(vertices, axis=1, keepdims=True), 1e-9)
    key = KEY_LIGHT / np.linalg.norm(KEY_LIGHT)
    fill = FILL_LIGHT / np.linalg.norm(FILL_LIGHT)
    diffuse = 0.62 * np.maximum(normals @ key, 0) + 0.2 * np.maximum(normals @ fill, 0)
    sky = 0.36 + 0.1 * -normals[:, 1]
    halfway = key + view
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    highlight = 0.12 * np.maximum((normals * halfway).sum(axis=1), 0) ** 24
    rim = 0.14 * (1 - np.clip((normals * view).sum(axis=1), 0, 1)) ** 3
    found: F32 = np.stack([diffuse + sky, highlight + rim], axis=1).astype(np.float32)
    return found


def _fill(canvas: U8, prepared: Sequence[tuple[F32, F32, F32]], origin: tuple[int, int]) -> None:
    triangles = np.concatenate([found[0] for found in prepared])
    colours = np.concatenate([found[1] for found in prepared])
    order = np.argsort(-np.concatenate([found[2] for found in prepared]), kind="stable")
    scale = SUPERSAMPLING * (1 << SUBPIXEL_BITS)
    points = np.round((triangles[order] - np.asarray(origin, np.float32)) * scale).astype(np.int32)
    shades: list[list[float]] = colours[order].tolist()
    for corners, shade in zip(points, shades, strict=True):
        cv2.fillConvexPoly(canvas, corners, shade, cv2.LINE_8, SUBPIXEL_BITS)
