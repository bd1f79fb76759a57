"""Constant-velocity Kalman filter of a box, as in SORT (Bewley et al. 2016)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

POSITION_NOISE = 1 / 20
"""Standard deviation of a measured box coordinate, as a share of the box's height (the value of DeepSORT)."""
VELOCITY_NOISE = 1 / 80
"""Standard deviation of the change of velocity in one frame, likewise."""


class BoxMotion:
    """Centre, width and height of a box in pixels, and their velocities in pixels a frame, all float64.

    The four coordinates are filtered independently, so the covariance is one 2x2 matrix for each.
    """

    def __init__(self, state: F64, covariance: F64) -> None:
        self._state = state  # (4, 2): coordinate, velocity
        self._covariance = covariance  # (4, 2, 2)

    @classmethod
    def of(cls, box: npt.NDArray[Any]) -> BoxMotion:
        """At rest at ``box`` (4,) x0 y0 x1 y1."""
        measured = _to_centre(box)
        size = measured[3]
        state = np.stack([measured, np.zeros(4)], axis=1)
        spread = np.diag([(2 * POSITION_NOISE * size) ** 2, (10 * VELOCITY_NOISE * size) ** 2])
        return cls(state, np.repeat(spread[None], 4, axis=0))

    @property
    def box(self) -> F64:
        """The present estimate (4,) x0 y0 x1 y1."""
        x, y, width, height = self._state[:, 0]
        return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])

    @property
    def velocity(self) -> F64:
        """Of the centre, (2,) pixels a frame."""
        found: F64 = self._state[:2, 1].copy()
        return found

    def predict(self, inertia: float = 1.0) -> None:
        """One frame passes, after which ``inertia`` of the velocity is left."""
        step = np.array([[1.0, 1.0], [0.0, inertia]])
        size = max(self._state[3, 0], 1.0)
        noise = np.diag([(POSITION_NOISE * size / 4) ** 2, (VELOCITY_NOISE * size) ** 2])
        self._state = self._state @ step.T
        self._covariance = step @ self._covariance @ step.T + noise

    def shift(self, pixels: F64) -> None:
        """The camera has moved everything by ``pixels`` (2,)."""
        self._state = self._state + np.pad(np.asarray(pixels, np.float64)[:, None], ((0, 2), (0, 1)))

    def update(self, box: npt.NDArray[Any]) -> None:
        """A measurement (4,) x0 y0 x1 y1."""
        measured = _to_centre(box)
        variance = (POSITION_NOISE * max(measured[3], 1.0)) ** 2
        gain = self._covariance[:, :, 0] / (self._covariance[:, 0, 0] + variance)[:, None]
        self._state = self._state + gain * (measured - self._state[:, 0])[:, None]
        self._covariance = self._covariance - gain[:, :, None] * self._covariance[:, 0, None, :]

    def save(self) -> list[F64]:
        return [self._state, self._covariance]

    @classmethod
    def restore(cls, saved: list[F64]) -> BoxMotion:
        return cls(saved[0].copy(), saved[1].copy())


def _to_centre(box: npt.NDArray[Any]) -> F64:
    x0, y0, x1, y1 = (float(value) for value in box)
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
