"""Squares in which a frame is searched for people, and their letterboxed pictures for the network."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from stages.records import F32, U8


class Tile(NamedTuple):
    """A square of ``side`` pixels with its upper left corner at ``x``, ``y``; it may reach beyond the frame."""

    x: float
    y: float
    side: float


def whole(width: int, height: int) -> Tile:
    """The square around the whole frame, centred on it."""
    side = max(width, height)
    return Tile((width - side) / 2, (height - side) / 2, side)


def half_overlapping(width: int, height: int, side: int) -> list[Tile]:
    """Squares of ``side`` pixels, each overlapping the next by half or a little more, that cover the frame."""
    return [Tile(x, y, side) for y in _starts(height, side) for x in _starts(width, side)]


def _starts(length: int, side: int) -> list[float]:
    if side >= length:
        return [(length - side) / 2]
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return [float(round(index * (length - side) / (count - 1))) for index in range(count)]


def letterbox(image: U8, tile: Tile, size: int) -> F32:
    """The tile's pixels as the detector wants them.

    Args:
        image: (H, W, 3) uint8 BGR.
        tile: In pixels of the image.
        size: Side of the result.

    Returns:
        (1, size, size, 3) float32 RGB in [-1, 1]; black outside the image.
    """
    height, width = image.shape[:2]
    scale = size / tile.side
    x0, y0 = max(int(tile.x), 0), max(int(tile.y), 0)
    x1, y1 = min(int(tile.x + tile.side), width), min(int(tile.y + tile.side), height)
    # Where the visible part comes to lie; at least a pixel, for absurdly narrow pictures.
    left, top = round((x0 - tile.x) * scale), round((y0 - tile.y) * scale)
    right = max(round((x1 - tile.x) * scale), left + 1)
    bottom = max(round((y1 - tile.y) * scale), top + 1)
    part = image[y0:y1, x0:x1]
    # Averaging keeps small people from breaking up into aliases; it only exists for shrinking.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(part, (right - left, bottom - top), interpolation=method)
    boxed = np.full((1, size, size, 3), -1, np.float32)
    inside = boxed[0, top:bottom, left:right]
    np.multiply(small[:, :, ::-1], np.float32(1 / 127.5), out=inside)
    inside -= 1
    return boxed
