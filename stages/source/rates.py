"""How many frames a second: from the frames' own times, not from what a header says."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

DEFAULT = Fraction(30)
"""Frames per second of a video that does not say."""

_WHOLE = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 18, 20, 24, 25, 30, 48, 50, 60, 72, 90, 100, 120, 144, 200, 240)
STANDARD = (
    *map(Fraction, _WHOLE), Fraction(25, 2), Fraction(15, 2),
    *(Fraction(rate * 1000, 1001) for rate in (12, 15, 24, 30, 48, 60, 120, 240)),
)  # fmt: skip

MOST = 1000
"""Frames per second; whatever claims more means something else."""

ALIKE = 0.75
"""Share of the steps from frame to frame that must be alike for their rate to be the nominal one."""


def believable(claims: Iterable[Fraction | None]) -> list[Fraction]:
    """Of what headers claim, that which can be a rate, standard ones first."""
    found = [Fraction(rate) for rate in claims if rate and 0 < rate <= MOST]
    return sorted(dict.fromkeys(found), key=lambda rate: rate not in STANDARD)


def rate_of(
    stamps: npt.NDArray[np.int64], time_base: Fraction, claims: Iterable[Fraction | None]
) -> tuple[Fraction, bool]:
    """The nominal rate of frames at these times, and whether it varies.

    A standard rate, or one that a header claims, is taken only if every frame stands where it says, to the unit in
    which times are written. Where single frames are missing or late, it is the rate of the others.

    Args:
        stamps: (n,) rising presentation times in units of ``time_base``.
        claims: what headers say, the most trustworthy first.
    """
    claimed = believable(claims)
    if len(stamps) < 2:
        return (claimed or [DEFAULT])[0], False
    times = (stamps - stamps[0]).astype(np.float64) * float(time_base)
    tick = float(time_base) * 1.01
    mean = Fraction(len(stamps) - 1, int(stamps[-1] - stamps[0])) / time_base
    near = sorted(STANDARD, key=lambda rate: abs(rate - mean))
    places = np.arange(len(stamps))
    for rate in (*(rate for rate in claimed if rate in STANDARD), *near[:4], *claimed):
        if np.abs(times - places / float(rate)).max() <= tick:
            return rate, False
    steps = np.diff(times)
    median = float(np.median(steps))
    alike = steps[np.abs(steps - median) <= 1.5 * tick]
    if len(alike) >= ALIKE * len(steps):
        step = float(alike.mean())
        rate = min((*claimed, *STANDARD), key=lambda rate: abs(1 / rate - step))
        close = abs(1 / float(rate) - step) <= 0.0004 * step + tick / len(alike)
        own = _short(Fraction(1 / step))
        even = len(alike) == len(steps) and np.abs(times - places * step).max() <= tick
        return (rate if close else own), not even
    return _short(mean), True


def _short(rate: Fraction) -> Fraction:
    """Near enough, and of few digits; never 0, however long a damaged file says that it lasts."""
    return max(rate.limit_denominator(1001), Fraction(1, 1001))
