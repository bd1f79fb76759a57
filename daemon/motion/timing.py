"""Frames per second as an exact fraction, from the frames' own times."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

BROADCAST = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120, 240))
NEAR = 2e-4
"""Relative distance within which a measured rate is taken for a whole or a broadcast one."""


def rate_of(times: npt.NDArray[np.float64], nominal: float) -> tuple[tuple[int, int], bool]:
    """The rate of a clip, (numerator, denominator), and whether it is variable: a frame stands more than half a
    frame from where a constant rate has it.

    Args:
        times: (F,) seconds, from 0; ``nominal`` the container's rate, for clips too short to tell.
    """
    if len(times) < 3 or times[-1] <= times[0]:
        return Fraction(nominal).limit_denominator(1001).as_integer_ratio(), False
    measured = (len(times) - 1) / float(times[-1] - times[0])
    rate = _standard(measured)
    expected = times[0] + np.arange(len(times)) / float(rate)
    variable = bool(np.abs(times - expected).max() > 0.5 / measured)
    return rate.as_integer_ratio(), variable


def _standard(measured: float) -> Fraction:
    known = [*BROADCAST, Fraction(max(1, round(measured)))]
    best = min(known, key=lambda rate: abs(float(rate) / measured - 1))
    if abs(float(best) / measured - 1) <= NEAR:
        return best
    return Fraction(measured).limit_denominator(1001)
