"""Fills frames in which a person is not seen, from what stands before and after."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation, Slerp

F64 = npt.NDArray[np.float64]

LOOK = 0.35
"""Seconds before and after a gap over which velocities are measured."""


def fill_places(times: F64, camera: F64, missing: F64) -> F64:
    """The root at ``missing`` (M,) times between the last of the first half and the first of the second: a cubic with
    the velocities at both ends, in the rays' directions and the logarithm of the depth.

    Args:
        times: (N,) seconds at which it is known, with one gap that holds all of ``missing``; ``camera`` (N, 3)
        metres.

    Returns:
        (M, 3) metres.
    """
    rays = np.column_stack([camera[:, :2] / camera[:, 2:], np.log(camera[:, 2])])
    before = times < missing[0]
    ends, values, slopes = [], [], []
    for side, at in ((before, times[before][-1]), (~before, times[~before][0])):
        near = side & (np.abs(times - at) <= LOOK)
        if near.sum() >= 3:
            slope, level = np.polyfit(times[near] - at, rays[near], 1)
        else:
            slope, level = np.zeros(3), rays[times == at][0]
        ends.append(at)
        values.append(rays[times == at][0])
        slopes.append(slope)
        del level
    if not (ends[1] - ends[0]) > 0:
        return np.repeat(camera[:1], len(missing), axis=0)
    # What the ends' velocities say must not carry the person farther than the gap is wide, or back and forth.
    straight = (values[1] - values[0]) / (ends[1] - ends[0])
    for slope in slopes:
        near_to = np.linalg.norm(straight[:2]) * 3 + 1e-9
        length = np.linalg.norm(slope[:2])
        slope[:2] *= min(1.0, near_to / max(length, 1e-9))
        slope[2] = straight[2]  # depth is too uncertain for a velocity
    found = CubicHermiteSpline(np.array(ends), np.array(values), np.array(slopes))(missing)
    depth = np.exp(found[:, 2:])
    return np.column_stack([found[:, :2] * depth, depth])


def fill_rotations(before: F64, after: F64, start: float, end: float, missing: F64) -> F64:
    """Rotations (M, J, 3, 3) at ``missing`` (M,) times between ``before`` and ``after``, (J, 3, 3) each at ``start``
    and ``end``: along the shortest turn."""
    filled = np.empty((len(missing), *before.shape))
    for joint in range(len(before)):
        ends = Rotation.from_matrix(np.stack([before[joint], after[joint]]))
        filled[:, joint] = Slerp([start, end], ends)(missing).as_matrix()
    return filled
