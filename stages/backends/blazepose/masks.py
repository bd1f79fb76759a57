"""People's masks, as the landmark network gives them in a square of the frame: where they are, what two share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.backends.blazepose.roi import Roi
from stages.records import F32

INSIDE = 0.5
"""Likelihood from which a pixel is the person's."""
LEAST = 0.004
"""Share of the square that a mask covers at least."""
GRID = 64
"""Points along each side at which masks are compared."""


def mask_box(mask: F32 | None, roi: Roi) -> F32 | None:
    """The box (4,) x0 y0 x1 y1 in pixels of the frame around a mask (S, S) of a square, but for the outermost hundredth
    of the mask on each side; None where there is none."""
    if mask is None:
        return None
    rows, columns = np.nonzero(mask >= INSIDE)
    if len(rows) < LEAST * mask.size:
        return None
    cells = np.stack([columns, rows], axis=1).astype(np.float32) + np.float32(0.5)
    places = roi.to_image(cells / np.float32(len(mask)))
    found: F32 = np.quantile(places, (0.01, 0.99), axis=0).reshape(4).astype(np.float32)
    return found


def shared_mask(first: F32 | None, first_roi: Roi, second: F32 | None, second_roi: Roi) -> float:
    """How much of two masks (S, S), each of a square of its own, is one: the part of the frame that is in both, as a
    share of that in either; 0 if a mask was not computed."""
    if first is None or second is None:
        return 0.0
    ours, theirs = _coarse(first), _coarse(second)
    rows, columns = np.nonzero(ours)
    cells = np.stack([columns, rows], axis=1).astype(np.float32) + np.float32(0.5)
    there = np.floor(second_roi.to_crop(first_roi.to_image(cells / np.float32(GRID))) * GRID).astype(np.int64)
    there = there[((there >= 0) & (there < GRID)).all(axis=1)]
    both = float(theirs[there[:, 1], there[:, 0]].sum()) * first_roi.side**2
    either = float(ours.sum()) * first_roi.side**2 + float(theirs.sum()) * second_roi.side**2 - both
    return both / max(either, 1e-6)


def _coarse(mask: F32) -> NDArray[np.bool_]:
    step = len(mask) // GRID
    return mask[step // 2 :: step, step // 2 :: step] >= INSIDE
