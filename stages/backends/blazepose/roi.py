"""The rotated square that the landmark network looks at, and the way between its pixels and the image's."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from stages.records import F32, U8

ENLARGE = 1.25
"""The square's side, as a multiple of the longer side of the box or of the diameter of the circle around the body."""


class Roi(NamedTuple):
    """A square of ``side`` image pixels around ``x``, ``y``; ``cos``, ``sin`` of the angle by which it is turned
    from upright, clockwise as seen in the image."""

    x: float
    y: float
    side: float
    cos: float
    sin: float

    @classmethod
    def around(cls, centre: F32, up: F32) -> Roi:
        """The square around ``centre`` (2,) pixels whose upward direction points at ``up`` (2,), a point on the
        circle around the whole body."""
        dx, dy = (float(v) for v in np.asarray(up, np.float64) - np.asarray(centre, np.float64))
        radius = max(float(np.hypot(dx, dy)), 1e-3)
        return cls(float(centre[0]), float(centre[1]), 2 * ENLARGE * radius, -dy / radius, dx / radius)

    @classmethod
    def of_box(cls, box: F32, enlarge: float = ENLARGE) -> Roi:
        """The upright square around a detection's box (4,) x0 y0 x1 y1 in pixels, ``enlarge`` times as long as it."""
        x0, y0, x1, y1 = (float(value) for value in box)
        return cls((x0 + x1) / 2, (y0 + y1) / 2, max(enlarge * max(x1 - x0, y1 - y0), 1e-3), 1.0, 0.0)

    def near(self, other: Roi, share: float) -> bool:
        """Whether the other square has the same corners, but for ``share`` of the side."""
        away = np.hypot(other.x - self.x, other.y - self.y)
        turned = np.hypot(other.cos - self.cos, other.sin - self.sin) / 2
        return bool(away / self.side + turned + abs(other.side / self.side - 1) / 2 < share)

    @property
    def rotation(self) -> F32:
        """(2, 2): directions in the crop to directions in the image."""
        return np.array([[self.cos, -self.sin], [self.sin, self.cos]], np.float32)

    def to_image(self, points: F32) -> F32:
        """Points (…, 2) in [0, 1] of the crop to pixels of the image."""
        centred = (np.asarray(points, np.float32) - np.float32(0.5)) * np.float32(self.side)
        found: F32 = centred @ self.rotation.T + np.array([self.x, self.y], np.float32)
        return found.astype(np.float32)

    def to_crop(self, points: F32) -> F32:
        """Pixels (…, 2) of the image to [0, 1] of the crop: the inverse of `to_image`."""
        away = np.asarray(points, np.float32) - np.array([self.x, self.y], np.float32)
        found: F32 = away @ self.rotation / np.float32(self.side) + np.float32(0.5)
        return found.astype(np.float32)

    def turn_world(self, points: F32) -> F32:
        """World points (…, 3), x right and y down in the crop, to x right and y down in the image."""
        turned = np.array(points, np.float32)
        turned[..., :2] = points[..., :2] @ self.rotation.T
        return turned

    def crop(self, image: U8, size: int) -> F32:
        """The square's pixels as the landmark network wants them.

        Args:
            image: (H, W, 3) uint8 BGR.
            size: Side of the result.

        Returns:
            (1, size, size, 3) float32 RGB in [0, 1]; black outside the image.
        """
        scale = self.side / size
        turn = scale * self.rotation.astype(np.float64)
        # Coordinates count from pixel corners here and from pixel centres in OpenCV: half a pixel apart.
        shift = np.array([self.x, self.y]) - turn @ np.full(2, (size - 1) / 2) - 0.5
        patch = cv2.warpAffine(
            image,
            np.column_stack([turn, shift]),
            (size, size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(0, 0, 0),
        )
        colours = cv2.cvtColor(patch, cv2.COLOR_BGR2RGB)
        found: F32 = np.multiply(colours[None], np.float32(1 / 255), dtype=np.float32)
        return found
