"""The person detector's pictures and answers (NanoDet: https://github.com/RangiLyu/nanodet).

Its answer is for cells of 8, 16 and 32 pixels: a score for each of COCO's 80 classes, of which the first is a person,
and how far away the four sides of the box are, each as a distribution over 11 distances (generalized focal loss: Li et
al. 2020).
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from stages.backends.blazepose.network import OnnxNetwork
from stages.records import F32, U8

STRIDES = (8, 16, 32)
OUTPUTS = ("Identity", "Identity_1", "Identity_2", "Identity_3", "Identity_4", "Identity_5")
"""Scores (1, n, 80) of the three strides, then their distances (1, n, 44)."""
MEAN = np.array((103.53, 116.28, 123.675), np.float32)
SPREAD = np.array((57.375, 57.12, 58.395), np.float32)
"""Of the training pictures: blue, green, red."""
LEVELS = ((np.arange(256, dtype=np.float32)[:, None] - MEAN) / SPREAD).T.copy()
"""(3, 256): what the network gets for each value of a channel."""
PERSON = 0


class Look(NamedTuple):
    """A rectangle of the frame, in pixels, and how many pixels the network gets of its longer side."""

    x: int
    y: int
    width: int
    height: int
    side: int


def people(network: OnnxNetwork, image: U8, look: Look, min_score: float) -> tuple[F32, F32]:
    """Who is seen in one look, several times each.

    Args:
        network: NanoDet.
        image: (H, W, 3) uint8 BGR.
        look: Where.
        min_score: Lower limit of the score.

    Returns:
        Boxes (M, 4) float32 x0 y0 x1 y1 in pixels of the image, within the look, and scores (M,) float32.
    """
    part = image[look.y : look.y + look.height, look.x : look.x + look.width]
    scale = look.side / max(look.width, look.height)
    width, height = max(round(look.width * scale), 1), max(round(look.height * scale), 1)
    small = _resized(part, width, height)
    last = STRIDES[-1]
    rows, columns = -(-height // last) * last, -(-width // last) * last
    picture = np.zeros((1, 3, rows, columns), np.float32)
    for channel, plane in enumerate(cv2.split(small)):
        picture[0, channel, :height, :width] = cv2.LUT(plane, LEVELS[channel])
    found = network.run(picture, *OUTPUTS)
    boxes, scores = [], []
    for stride, classes, distances in zip(STRIDES, found[:3], found[3:], strict=True):
        score = classes[0, :, PERSON]
        cells = np.flatnonzero(score >= min_score)
        y, x = np.divmod(cells, columns // stride)
        away = _expected(distances[0, cells].reshape(-1, 4, 11)) * stride
        centre = (np.stack([x, y], axis=1) + 0.5) * stride
        boxes.append(np.concatenate([centre - away[:, :2], centre + away[:, 2:]], axis=1))
        scores.append(score[cells])
    ends = np.array([width, height, width, height])
    size = np.array([look.width, look.height, look.width, look.height])
    placed = np.clip(np.concatenate(boxes), 0, ends) / ends * size + [look.x, look.y, look.x, look.y]
    return placed.astype(np.float32), np.concatenate(scores).astype(np.float32)


def _resized(part: U8, width: int, height: int) -> U8:
    """Averaging keeps small people from breaking up into aliases; it only exists for shrinking. By exactly two it is
    many times faster than by anything else."""
    if part.shape[1] >= 2 * width and not (part.shape[0] % 2 or part.shape[1] % 2):
        part = np.asarray(cv2.resize(part, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    method = cv2.INTER_AREA if width < part.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (width, height), interpolation=method), np.uint8)


def _expected(logits: F32) -> F32:
    """The mean (…,) of the distributions over 0 to 10 whose logits are (…, 11)."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: F32 = (weights @ np.arange(11, dtype=np.float32)) / weights.sum(axis=-1)
    return found
