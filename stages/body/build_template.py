"""Builds ``template.npz``, our own body: ``python -m stages.body.build_template``.

The form (template_form.py) is polygonised by marching cubes, simplified, evened out and given weights and
shape directions. Needs scikit-image and fast-simplification, which nothing else in Poseward needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from stages.body.model import TEMPLATE_FILE
from stages.body.skeleton import JOINT, JOINT_NAMES
from stages.body.template_form import LEFT_JOINTS, distance
from stages.body.template_rig import shape_directions, skin_weights

Array = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int64]

STEP = 0.005
"""Edge of a marching cube in metres."""
VERTICES = 5600
"""About how many vertices the template gets."""


def rest_joints() -> Array:
    """The 24 rest joints (24, 3), metres."""
    joints = np.zeros((len(JOINT_NAMES), 3))
    for name, index in JOINT.items():
        side, _, part = name.rpartition("_")
        x, y, z = LEFT_JOINTS[part]
        joints[index] = (-x if side == "right" else x, y, z)
    return joints


def polygonise() -> tuple[Array, Faces]:
    """The skin as triangles, simplified to about VERTICES vertices."""
    import fast_simplification  # type: ignore[import-not-found,unused-ignore]
    from skimage.measure import marching_cubes  # type: ignore[import-not-found,unused-ignore]

    axes = [np.arange(0, 0.9, STEP), np.arange(-0.03, 1.74, STEP), np.arange(-0.17, 0.22, STEP)]
    half = np.stack(
        [distance(np.stack(np.meshgrid([x], axes[1], axes[2], indexing="ij"), -1).reshape(-1, 3)) for x in axes[0]]
    )
    volume = np.concatenate([half[:0:-1], half]).reshape(2 * len(axes[0]) - 1, len(axes[1]), len(axes[2]))
    fine, triangles, _, _ = marching_cubes(volume, 0.0, spacing=(STEP,) * 3)
    fine = fine + [-axes[0][-1], axes[1][0], axes[2][0]]
    points, faces = fast_simplification.simplify(
        fine.astype(np.float32), triangles.astype(np.int32), target_count=2 * VERTICES, agg=3
    )
    points, faces = np.asarray(points, np.float64), np.asarray(faces, np.int64)
    return points, outward(points, faces)


def outward(points: Array, faces: Faces) -> Faces:
    """``faces`` turned so that their normals point out."""
    a, b, c = points[faces].transpose(1, 0, 2)
    volume = np.einsum("fa,fa->", a, np.cross(b, c))
    return faces if volume > 0 else faces[:, ::-1].copy()


def neighbours(count: int, faces: Faces) -> Any:
    """Row-normalised adjacency (V, V), sparse."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    adjacency = scipy.sparse.csr_matrix((np.ones(len(pairs)), pairs.T), (count, count))
    adjacency.data[:] = 1.0
    return scipy.sparse.diags(1.0 / np.asarray(adjacency.sum(1)).ravel()) @ adjacency


def project(points: Array, rounds: int = 3) -> Array:
    """Points moved onto the skin along the distance's gradient."""
    step = 1e-4
    for _ in range(rounds):
        value = distance(points)
        slope = np.stack([(distance(points + step * axis) - value) / step for axis in np.eye(3)], -1)
        size = np.maximum((slope**2).sum(-1), 0.05)
        move = -(value / size)[:, None] * slope
        points = points + np.clip(move, -0.004, 0.004)
    return points


def even_out(points: Array, faces: Faces, rounds: int = 8) -> Array:
    """Vertices drawn towards their neighbours' mean, along the skin."""
    mean = neighbours(len(points), faces)
    for _ in range(rounds):
        points = project(points + 0.5 * (mean @ points - points), 1)
    return project(points)


def build() -> dict[str, npt.NDArray[Any]]:
    """The arrays of ``template.npz``."""
    joints = rest_joints()
    points, faces = polygonise()
    points = even_out(points, faces)
    order = np.lexsort(np.round(points, 3).T)  # near vertices near in the file: compresses better
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    points, faces = points[order], rank[faces]
    weights = skin_weights(points, joints, neighbours(len(points), faces))
    top = np.sort(np.argsort(-weights, axis=1)[:, :4], axis=1)
    shapes, joint_shapes = shape_directions(points, faces, joints, weights)
    scale = np.abs(shapes).max((0, 1)) / 32000
    return {
        "template": points.astype(np.float32),
        "faces": faces.astype(np.uint16),
        "joints_rest": joints.astype(np.float32),
        "weight_joints": top.astype(np.uint8),
        "weights": np.round(np.take_along_axis(weights, top, 1) * 65535).astype(np.uint16),
        "shapedirs": np.round(shapes / scale).astype(np.int16),
        "shape_scale": scale.astype(np.float32),
        "joint_shapedirs": joint_shapes.astype(np.float32),
    }


def main() -> None:
    """Write the template beside this module."""
    arrays = build()
    np.savez_compressed(TEMPLATE_FILE, allow_pickle=False, **arrays)
    kilobytes = TEMPLATE_FILE.stat().st_size // 1024
    print(
        f"{TEMPLATE_FILE.name}: {len(arrays['template'])} vertices, {len(arrays['faces'])} faces, {kilobytes} kB"
    )


if __name__ == "__main__":
    main()
