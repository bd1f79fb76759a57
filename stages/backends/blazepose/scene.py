"""What the whole picture says: how the camera moved since the frame before, and whether there was a cut."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from stages.records import F32, U8

WIDTH = 128
"""Pixels of the small grey picture's longer side."""
SURE = 0.15
"""Response of the phase correlation from which a shift of the picture is believed."""
FURTHEST = 0.25
"""Furthest that a camera moves in one frame, as a share of the picture."""
CUT_CHANGE = 0.045
"""Least mean change of brightness, as a share of its range, at a cut."""
CUT_LIKENESS = 0.9
"""Greatest correlation of two pictures, moved over each other, between which there is a cut."""
CUT_STRUCTURE = 0.45
"""And of their edges: what is left where broad light and shade are taken out."""


class Change(NamedTuple):
    """From one frame to the next: ``shift`` (2,) float32 pixels by which the background moved, and whether it is
    another scene altogether."""

    shift: F32
    cut: bool


def small(image: U8) -> U8:
    """A grey picture of an image (H, W, 3) uint8 BGR, `WIDTH` pixels along its longer side."""
    height, width = image.shape[:2]
    scale = WIDTH / max(height, width)
    size = max(8, round(width * scale)), max(8, round(height * scale))
    # First some pixels of many: to read them all would cost more than all else here.
    found = cv2.resize(image, (3 * size[0], 3 * size[1]), interpolation=cv2.INTER_NEAREST)
    found = cv2.resize(found, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2GRAY), np.uint8)


def change(before: U8, now: U8, width: int) -> Change:
    """What happened between two small pictures of frames ``width`` pixels wide.

    The shift is the peak of the phase correlation (Kuglin and Hines 1975; OpenCV's ``phaseCorrelate``). At a cut the
    pictures differ much and are unlike each other even when the one is moved over the other.
    """
    if before.shape != now.shape:
        return Change(np.zeros(2, np.float32), cut=True)
    first, second = before.astype(np.float32), now.astype(np.float32)
    window = cv2.createHanningWindow((now.shape[1], now.shape[0]), cv2.CV_32F)
    (x, y), response = cv2.phaseCorrelate(first, second, window)
    if response < SURE or max(abs(x) / now.shape[1], abs(y) / now.shape[0]) > FURTHEST:
        x = y = 0.0
    along = np.array([[1, 0, x], [0, 1, y]], np.float64)
    moved = cv2.warpAffine(first, along, now.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    pictures: list[F32] = [np.asarray(moved, np.float32), second]
    old, new = (_blurred(picture, 2) for picture in pictures)
    edges: list[F32] = [_blurred(picture, 1.5) - _blurred(picture, 8) for picture in pictures]
    apart = float(np.abs(old - new).mean()) / 255
    cut = apart > CUT_CHANGE and _likeness(old, new) < CUT_LIKENESS and _likeness(*edges) < CUT_STRUCTURE
    shift = np.zeros(2) if cut else np.array([x, y]) * (width / now.shape[1])
    return Change(shift.astype(np.float32), cut)


def _blurred(picture: F32, sigma: float) -> F32:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)


def _likeness(first: F32, second: F32) -> float:
    """Correlation of two pictures in [-1, 1]."""
    a, b = first - first.mean(), second - second.mean()
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-6))
