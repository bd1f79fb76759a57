"""Draws shaded meshes onto images, on the CPU and without OpenGL.

OpenCV's rasteriser draws each surface with a depth buffer and colours that run smoothly from vertex to vertex, in the
box around it only. Small pictures are drawn at twice their size and reduced; in large ones a blur of one pixel takes
the steps off the edges, which costs a quarter of that and is as good to look at where a pixel is that small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

NEAREST = 0.05
"""Metres in front of the camera before which nothing is drawn."""
BEYOND = 0.1
"""Metres that the depth buffer reaches further than what is drawn."""
SMALL = 600
"""Rows; pictures of fewer are drawn at twice their size."""

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
    """One surface: ``vertices`` (V, 3) metres in camera axes, ``faces`` (F, 3) counter-clockwise from outside, and
    either one BGR ``colour`` or one for each vertex (V, 3), in [0, 255]."""

    vertices: F32
    faces: I32
    colour: Any
    opacity: float = 1.0


def focal_length(width: int, height: int) -> float:
    """Focal length in pixels of the full image by HMR2's convention: 5000 for a crop of 256 pixels."""
    return 5000.0 / 256.0 * max(width, height)


def project(points: F32, width: int, height: int, focal: float) -> F32:
    """Camera coordinates (N, 3) in metres to pixels (N, 2); the principal point is the image's centre."""
    depth = np.maximum(points[:, 2:3], NEAREST)
    centre = np.array([width / 2, height / 2], np.float32)
    found: F32 = (points[:, :2] * (np.float32(focal) / depth) + centre).astype(np.float32)
    return found


def draw(image: U8, meshes: Sequence[Mesh], focal: float | None = None) -> U8:
    """A copy of ``image`` (H, W, 3) BGR with the meshes drawn on it; see `draw_onto`."""
    out: U8 = image.copy()
    draw_onto(out, meshes, focal)
    return out


def draw_onto(image: U8, meshes: Sequence[Mesh], focal: float | None = None) -> None:
    """Draw meshes onto ``image`` (H, W, 3) BGR; equal inputs give equal bytes.

    Args:
        focal: in pixels; by default HMR2's for an image of this size.
    """
    height, width = image.shape[:2]
    focal = focal or focal_length(width, height)
    boxed = [(mesh, box) for mesh in meshes if (box := _box(mesh, width, height, focal)) is not None]
    if not boxed:
        return
    # From back to front: where one stands before another, the nearer one is blended over it.
    boxed.sort(key=lambda one: -float(one[0].vertices[:, 2].mean()))
    near = max(NEAREST, min(float(mesh.vertices[:, 2].min()) for mesh, _ in boxed) - BEYOND)
    far = max(float(mesh.vertices[:, 2].max()) for mesh, _ in boxed) + 2 * BEYOND
    scale = 2 if height < SMALL else 1
    depths = None if len(boxed) == 1 else np.full((height * scale, width * scale), far, np.float32)
    for mesh, box in boxed:
        _draw_one(image, mesh, box, focal, scale, (near, far), depths)


def _draw_one(
    out: U8, mesh: Mesh, box: tuple[int, int, int, int], focal: float, scale: int, span: tuple[float, float],
    depths: F32 | None,
) -> None:  # fmt: skip
    x0, y0, x1, y1 = box
    size = ((y1 - y0) * scale, (x1 - x0) * scale)
    colour: Any = np.zeros((*size, 3), np.float32)
    depth = np.full(size, span[1], np.float32)
    _rasterise(mesh, box, out.shape[1], out.shape[0], focal, span, colour, depth)
    drawn = depth < span[1] - BEYOND  # the rasteriser's way through its own units changes the others a little
    if depths is not None:
        before = depths[y0 * scale : y1 * scale, x0 * scale : x1 * scale]
        drawn &= depth < before
        colour[~drawn] = 0
        np.copyto(before, depth, where=drawn)
    cover: Any = drawn.astype(np.float32)
    if scale > 1:
        to = (x1 - x0, y1 - y0)
        colour = cv2.resize(colour, to, interpolation=cv2.INTER_AREA)
        cover = cv2.resize(cover, to, interpolation=cv2.INTER_AREA)
    else:
        colour, cover = cv2.GaussianBlur(colour, (3, 3), 0), cv2.GaussianBlur(cover, (3, 3), 0)
    region = out[y0:y1, x0:x1]
    kept = cv2.merge([1 - np.float32(mesh.opacity) * cover] * 3)
    blended = cv2.multiply(region, kept, dtype=cv2.CV_32F)
    # The colours are multiplied by their coverage already: nothing but black stands around them.
    region[:] = cv2.convertScaleAbs(cv2.scaleAdd(colour, 255 * mesh.opacity, blended))


def _rasterise(
    mesh: Mesh, box: tuple[int, int, int, int], width: int, height: int, focal: float, span: tuple[float, float],
    colour: F32, depth: F32,
) -> None:  # fmt: skip
    """Draw onto ``colour`` (h, w, 3) in [0, 1] and ``depth`` (h, w) in metres what of a mesh lies in ``box``."""
    x0, y0, x1, y1 = box
    corners = mesh.vertices[mesh.faces]
    across = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # Only faces seen from their outside: the others lie behind those.
    seen = np.ascontiguousarray(mesh.faces[_dot(across, corners[:, 0]) < 0], np.int32)
    normals = _unit(_incidence(mesh.faces.tobytes(), len(mesh.vertices)) @ across)
    # OpenCV's camera looks through the picture's middle, with y up and z backwards: a shear moves the box there.
    shift = ((x0 + x1 - width) / 2 / focal, (y0 + y1 - height) / 2 / focal)
    z = mesh.vertices[:, 2]
    moved = np.empty_like(mesh.vertices, np.float32)
    moved[:, 0] = mesh.vertices[:, 0] - np.float32(shift[0]) * z
    moved[:, 1] = np.float32(shift[1]) * z - mesh.vertices[:, 1]
    moved[:, 2] = -z
    settings = cv2.TriangleRasterizeSettings()
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
    angle = 2 * math.atan((y1 - y0) / 2 / focal)
    lit = _lit(mesh, normals)
    cv2.triangleRasterize(moved, seen, lit, colour, depth, np.eye(4, dtype=np.float32), angle, *span, settings)


def _box(mesh: Mesh, width: int, height: int, focal: float) -> tuple[int, int, int, int] | None:
    """Where in the image a mesh is: x0 y0 x1 y1 with a border for soft edges; None where nothing of it is seen."""
    if float(mesh.vertices[:, 2].max()) <= NEAREST or not np.isfinite(mesh.vertices).all():
        return None
    pixels = np.clip(project(mesh.vertices, width, height, focal), -1e6, 1e6).T
    low, high = [float(axis.min()) for axis in pixels], [float(axis.max()) for axis in pixels]
    x0, y0 = max(math.floor(low[0]) - 2, 0), max(math.floor(low[1]) - 2, 0)
    x1, y1 = min(math.ceil(high[0]) + 2, width), min(math.ceil(high[1]) + 2, height)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


@lru_cache(maxsize=4)
def _incidence(faces: bytes, count: int) -> Any:
    """Which faces each vertex belongs to, as a sparse matrix (V, F)."""
    from scipy.sparse import csr_matrix

    corners = np.frombuffer(faces, np.int32)
    ones = np.ones(len(corners), np.float32)
    return csr_matrix((ones, (corners, np.arange(len(corners)) // 3)), shape=(count, len(corners) // 3))


def identity_colour(identity: int) -> tuple[int, int, int]:
    """BGR colour of a track."""
    return PALETTE[(identity - 1) % len(PALETTE)]


def _lit(mesh: Mesh, normals: F32) -> F32:
    """Colours (V, 3) in [0, 1] of the vertices under the lights: key, fill and sky light, a soft highlight, a rim."""
    view = -_unit(mesh.vertices)
    key, fill = KEY_LIGHT / np.linalg.norm(KEY_LIGHT), FILL_LIGHT / np.linalg.norm(FILL_LIGHT)
    diffuse = (
        0.62 * np.maximum(normals @ key, 0) + 0.2 * np.maximum(normals @ fill, 0) + 0.36 - 0.1 * normals[:, 1]
    )
    glance = np.maximum(_dot(normals, _unit(key + view)), 0)
    glance = glance * glance * glance
    glance = glance * glance
    glance = glance * glance
    away = 1 - np.clip(_dot(normals, view), 0, 1)
    white = 0.12 * glance * glance + 0.14 * away * away * away
    colour = np.asarray(mesh.colour, np.float32) / 255
    found: F32 = np.clip(colour * diffuse[:, None] + white[:, None], 0, 1).astype(np.float32)
    return found


def _cross(a: F32, b: F32) -> F32:
    found = np.empty_like(a)
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        found[:, axis] = a[:, i] * b[:, j] - a[:, j] * b[:, i]
    return found


def _dot(a: F32, b: F32) -> F32:
    found: F32 = a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]
    return found


def _unit(vectors: F32) -> F32:
    found: F32 = vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), np.float32(1e-12))[:, None]
    return found
