"""Removing duplicates: of detections by their keypoints, of people by their landmarks."""

from __future__ import annotations

import numpy as np

from stages.backends.blazepose.anchors import BODY_CIRCLE, HIP, SHOULDER
from stages.records import F32, I64


def radii(points: F32) -> F32:
    """Radius (N,) of the circle around each whole body, of keypoints (N, 4, 2)."""
    found: F32 = np.linalg.norm(points[:, BODY_CIRCLE] - points[:, HIP], axis=-1)
    return found


def merge_detections(points: F32, scores: F32, min_distance: float) -> tuple[F32, F32]:
    """Non-maximum suppression with score-weighted merging, on keypoints since the network's boxes say nothing.

    The best detection takes in all whose hips and shoulders lie, on average, closer than ``min_distance`` times
    the smaller radius; the keypoints of the group are averaged by score, and it keeps the best score.

    Args:
        points: (M, 4, 2) keypoints in pixels.
        scores: (M,) in [0, 1].
        min_distance: As a share of the smaller of the two radii.

    Returns:
        Keypoints (N, 4, 2) and scores (N,) float32, best first.
    """
    order = np.argsort(-scores, kind="stable")
    points, scores = points[order], scores[order]
    size = np.maximum(radii(points), 1e-6)
    merged, best = [], []
    left = np.arange(len(points))
    while len(left):
        first = left[0]
        apart = np.linalg.norm(points[left] - points[first], axis=-1)
        distance = (apart[:, HIP] + apart[:, SHOULDER]) / 2 / np.minimum(size[left], size[first])
        same = distance < min_distance
        same[0] = True
        group = left[same]
        weight = scores[group] / scores[group].sum()
        merged.append((points[group] * weight[:, None, None]).sum(axis=0))
        best.append(scores[first])
        left = left[~same]
    return np.array(merged, np.float32).reshape(-1, 4, 2), np.array(best, np.float32)


FALLOFF = np.array(
    [0.026]
    + [0.025] * 6  # eyes
    + [0.035, 0.035]  # ears
    + [0.03, 0.03]  # mouth
    + [0.079, 0.079, 0.072, 0.072, 0.062, 0.062]  # shoulders, elbows, wrists
    + [0.07] * 6  # fingers
    + [0.107, 0.107, 0.087, 0.087, 0.089, 0.089]  # hips, knees, ankles
    + [0.09] * 4,  # heels and toes
    np.float32,
)
"""Spread of each of the 33 landmarks as a share of the person's size: COCO's keypoint sigmas, and for the landmarks
that COCO lacks those of their neighbours."""
BODY = np.arange(11, 29)
"""Landmarks from the shoulders to the ankles: a head is too small to tell two people apart by."""


def similarity(first: F32, others: F32) -> F32:
    """Object keypoint similarity (N,) in [0, 1] of landmarks (33, 2) and (N, 33, 2) in pixels, after COCO's: the
    size is that of the smaller person, so that a small figure inside a large one is not taken for it."""
    extent = np.ptp(np.concatenate([first[None], others])[:, BODY], axis=1)
    area = np.maximum(extent.prod(axis=-1), 1.0)
    scale = np.minimum(area[1:], area[0])
    squared = ((others - first)[:, BODY] ** 2).sum(axis=-1)
    spread = 2 * scale[:, None] * (2 * FALLOFF[BODY]) ** 2
    found: F32 = np.exp(-squared / spread).mean(axis=1).astype(np.float32)
    return found


def distinct_people(landmarks: F32, scores: F32, max_similarity: float) -> I64:
    """Indices of the people to keep, best first: greedily, those not too similar to a better one.

    Args:
        landmarks: (N, 33, 2) in pixels.
        scores: (N,).
        max_similarity: Upper limit of `similarity`.
    """
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not kept or similarity(landmarks[index], landmarks[kept]).max() <= max_similarity:
            kept.append(int(index))
    return np.array(kept, np.int64)
