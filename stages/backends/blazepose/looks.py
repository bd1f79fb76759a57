"""What a person looks like: the colours of the trunk and of the thighs."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from stages.records import F32, U8

SHOULDERS, HIPS, KNEES = (11, 12), (23, 24), (25, 26)
GRID = 8
"""Pixels that are looked at along each side of a part."""
INSET = 0.15
"""Share of a part that is left out at each of its edges: behind those may be the background."""
LIGHT, HUE = 4, 5
"""Bins of the lightness, and of each of the two colour axes."""
SIZE = 2 * (LIGHT + HUE * HUE)
"""Numbers that a look is made of."""


def look(image: U8, landmarks: F32) -> F32:
    """The look of the person with ``landmarks`` (33, 2 or more) in pixels of an image (H, W, 3) uint8 BGR.

    Returns:
        (SIZE,) float32: square roots of histograms of lightness and of colour in CIE Lab, for the trunk and for the
        thighs, each of length 1.
    """
    corners = [landmarks[list(pair), :2] for pair in (SHOULDERS, HIPS, KNEES)]
    places = [_places(top, bottom) for top, bottom in pairwise(corners)]
    parts = np.split(_colours(image, np.concatenate(places)), len(places))
    return np.concatenate([_histograms(part) for part in parts]).astype(np.float32)


def likeness(first: F32, second: F32) -> float:
    """How alike two looks are, in [0, 1]: the mean of the Bhattacharyya coefficients of their histograms."""
    return float(first @ second) / 4


def _places(top: F32, bottom: F32) -> F32:
    """(GRID * GRID, 2) points of a quadrangle between two pairs of corners (2, 2)."""
    along = np.linspace(INSET, 1 - INSET, GRID, dtype=np.float32)[:, None]
    upper, lower = (pair[0] + along * (pair[1] - pair[0]) for pair in (top, bottom))
    places: F32 = upper[None] + along[:, :, None] * (lower - upper)[None]
    return places.reshape(-1, 2)


def _colours(image: U8, places: F32) -> U8:
    """(N, 3) Lab colours of an image at places (N, 2)."""
    limits = np.array(image.shape[1::-1]) - 1
    columns, rows = np.clip(np.nan_to_num(places), 0, limits).astype(np.int64).T
    return np.asarray(cv2.cvtColor(image[rows, columns][None], cv2.COLOR_BGR2LAB)[0], np.uint8)


def _histograms(colours: U8) -> F32:
    light = np.bincount(colours[:, 0].astype(np.int64) * LIGHT // 256, minlength=LIGHT)
    # Clothes are seldom far from grey: the middle of each axis gets the fine bins.
    bins = np.digitize(colours[:, 1:].astype(np.int64) - 128, (-24, -8, 8, 24))
    hue = np.bincount(bins[:, 0] * HUE + bins[:, 1], minlength=HUE * HUE)
    return np.concatenate([np.sqrt(light / len(colours)), np.sqrt(hue / len(colours))]).astype(np.float32)
