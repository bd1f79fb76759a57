"""From a picture as it is stored to one that is upright, of square pixels, and no larger than the networks need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from stages.records import U8

Size = tuple[int, int]
"""Width and height in pixels."""

MOST_UNEVEN = 8
"""A pixel more than this many times as long as it is wide, or the other way, is taken for a mistake."""

Resize = Callable[[int, int], U8]
"""Gives the stored picture, (H, W, 3) uint8 BGR, at a width and height."""

_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


@dataclass(frozen=True)
class Geometry:
    """How stored pictures become upright ones: made square, mirrored left to right where ``mirrored``, then turned by
    ``rotation`` degrees counter-clockwise (a multiple of 90).

    ``stored`` is the size of the stored pictures, ``aspect`` the width of one of their pixels over its height; ``most``
    is how many pixels a picture that is given may have, None for any number.
    """

    stored: Size
    aspect: Fraction = Fraction(1)
    mirrored: bool = False
    rotation: int = 0
    most: int | None = None

    @property
    def size(self) -> Size:
        """Of the upright picture in square pixels."""
        return self._upright(self.stored)

    @property
    def working(self) -> Size:
        """Of the pictures that are given: ``size``, or as much smaller as ``most`` asks for."""
        return fitting(self.size, self.most)

    def picture(self, stored: Size, resize: Resize) -> tuple[U8, Size | None]:
        """A picture of ``working`` size (H, W, 3). One that is stored in another size than the first is fitted into it
        as a whole, in the middle and with black beside it; its own upright size is then given too."""
        if stored == self.stored:
            return self._turned(resize(*self._turned_size(self.working))), None
        own = self._upright(stored)
        (width, height), (full_width, full_height) = self.working, self.size
        scale = min(full_width / own[0], full_height / own[1])
        inner_width = min(width, max(1, round(own[0] * scale * width / full_width)))
        inner_height = min(height, max(1, round(own[1] * scale * height / full_height)))
        inner = self._turned(resize(*self._turned_size((inner_width, inner_height))))
        whole = np.zeros((height, width, 3), np.uint8)
        left, top = (width - inner_width) // 2, (height - inner_height) // 2
        whole[top : top + inner_height, left : left + inner_width] = inner
        return whole, own

    def _upright(self, stored: Size) -> Size:
        return self._turned_size((max(1, round(stored[0] * self.aspect)), stored[1]))

    def _turned_size(self, size: Size) -> Size:
        return (size[1], size[0]) if self.rotation in (90, 270) else size

    def _turned(self, image: U8) -> U8:
        if self.mirrored:
            image = np.asarray(cv2.flip(image, 1), np.uint8)
        turn = _TURNS.get(self.rotation)
        return image if turn is None else np.asarray(cv2.rotate(image, turn), np.uint8)


def fitting(size: Size, most: int | None) -> Size:
    """The largest size of the same shape with at most ``most`` pixels; ``size`` itself if it has no more."""
    width, height = size
    if most is None or width * height <= most:
        return size
    scale = math.sqrt(most / (width * height))
    # Of a very long picture one side ends at a pixel; the other must not then take more than is allowed.
    small_height = max(1, int(height * scale))
    small_width = max(1, min(int(width * scale), most // small_height))
    return small_width, max(1, min(small_height, most // small_width))


def square_aspect(aspect: Fraction | None) -> tuple[Fraction, str | None]:
    """The aspect of pixels to go by, and a note where what the file says cannot be meant."""
    if not aspect or aspect <= 0:
        return Fraction(1), None
    if not Fraction(1, MOST_UNEVEN) <= aspect <= MOST_UNEVEN:
        return Fraction(
            1
        ), f"pixels {aspect.numerator}:{aspect.denominator} cannot be meant: taken for square ones"
    return aspect, None


def turn_of(matrix: bytes) -> tuple[bool, int, str | None]:
    """What a display matrix (ISO/IEC 14496-12, nine 32-bit integers as FFmpeg gives them) asks for.

    Returns:
        Whether to mirror left to right, then by how many degrees to turn counter-clockwise, and a note where it asks
        for something else, which is not done.
    """
    values = np.frombuffer(matrix[:36], "<i4").astype(float)
    if len(values) < 9 or not values[[0, 1, 3, 4]].any():
        return False, 0, "its display matrix is empty: the picture is taken as it is stored"
    # x' = a x + c y, y' = b x + d y, with x right and y down.
    a, b, c, d = (float(values[place]) for place in (0, 1, 3, 4))
    if min(abs(a), abs(d)) < 8 * max(abs(b), abs(c)) and min(abs(b), abs(c)) < 8 * max(abs(a), abs(d)):
        angle = round(math.degrees(-math.atan2(b, a))) % 360
        return (
            False,
            0,
            (
                f"its display matrix asks for a turn by {angle} degrees or a distortion: only turns by right angles "
                "and mirrorings are made, so the picture is taken as it is stored"
            ),
        )
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return mirrored, round(math.degrees(-math.atan2(b, a)) / 90) * 90 % 360, None
