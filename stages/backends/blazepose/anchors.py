"""The detector's anchors and the decoding of its raw outputs (BlazePose: Bazarevsky et al. 2020)."""

from __future__ import annotations

import numpy as np

from stages.records import F32

INPUT = 224
"""Side of the detector's input in pixels."""
LAYERS = ((28, 2), (14, 2), (7, 6))
"""Cells per side and anchors per cell: strides 8, 16 and three times 32, two anchors each."""
COUNT = sum(side * side * number for side, number in LAYERS)
HIP, BODY_CIRCLE, SHOULDER, UPPER_CIRCLE = range(4)
"""The four keypoints: middle of the hips, a point on the circle around the whole body (straight up from the hips
when the person is straight), middle of the shoulders, a point on the circle around the upper body."""


def anchors() -> F32:
    """Anchor centres (2254, 2) float32, x and y as shares of the input's side: layer by layer, row by row."""
    centres = []
    for side, number in LAYERS:
        y, x = np.mgrid[:side, :side].astype(np.float32)
        cells = np.stack([x, y], axis=-1).reshape(-1, 2)
        centres.append(np.repeat((cells + np.float32(0.5)) / np.float32(side), number, axis=0))
    return np.concatenate(centres)


def decode(values: F32, logits: F32, min_score: float) -> tuple[F32, F32]:
    """The detections among all anchors.

    Args:
        values: (2254, 12) raw outputs in input pixels: centre and size of a box, which says nothing about the
            person's size and is left out, then four keypoints, all relative to the anchor's centre.
        logits: (2254,) scores before the sigmoid.
        min_score: Lower limit of the score.

    Returns:
        Keypoints (M, 4, 2) float32 in input pixels, and scores (M,) float32, best first.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits.astype(np.float32), -80, 80)))
    chosen = np.flatnonzero(scores >= min_score)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    centres = _ANCHORS[chosen] * np.float32(INPUT)
    points = values[chosen, 4:].reshape(-1, 4, 2) + centres[:, None]
    return points.astype(np.float32), scores[chosen].astype(np.float32)


_ANCHORS = anchors()
