"""Removing duplicates: of boxes by their overlap, of people by their landmarks."""

from __future__ import annotations

import numpy as np

from stages.records import F32, I64


def distinct_boxes(boxes: F32, scores: F32, max_overlap: float) -> I64:
    """Indices of the boxes to keep, best first: greedily, those that overlap no better one too much (non-maximum
    suppression).

    Args:
        boxes: (N, 4) x0 y0 x1 y1.
        scores: (N,).
        max_overlap: Upper limit of the share of two boxes' union that both cover.
    """
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(left):
        kept.append(int(left[0]))
        left = left[overlaps(boxes[left[0]], boxes[left]) <= max_overlap]
    return np.array(kept, np.int64)


def overlaps(box: F32, others: F32) -> F32:
    """Intersection over union (N,) of a box (4,) and others (N, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    area = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1)
    found: F32 = shared / np.maximum(area - shared, 1e-6)
    return found


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
