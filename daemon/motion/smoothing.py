"""Smooths movement without delay, and the less the faster it is.

Local polynomials (Savitzky and Golay 1964; with Gaussian weights over real times, Cleveland 1979, so that a variable
rate does no harm) at two widths: the wide one where a joint hardly moves, so that what trembles comes to rest, the
narrow one where it is fast, so that peaks stay. In between they are blended by the speed that the wide one shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d
from scipy.sparse import csr_array

F64 = npt.NDArray[np.float64]

WIDE = 0.13
"""Standard deviation of the wide window, in seconds."""
NARROW = 0.03
"""Of the narrow one."""
ENVELOPE = 0.15
"""Seconds around a fast moment that count as fast too: a swing stands still where it turns."""
DEGREE = 3
SPIN = (np.deg2rad(50), np.deg2rad(200))
"""Angular speeds a second up to which a joint is slow, and from which it is fast."""
WALK = (0.4, 1.5)
"""Speeds across the view in metres a second of the whole body, likewise."""
APPROACH = (0.3, 1.2)
"""Changes of the depth's logarithm a second, likewise: 0.7 halves the distance in a second."""

Smoother = Callable[[F64], F64]


def smooth_rotations(rotations: F64, times: F64) -> F64:
    """Smooth rotations (N, J, 3, 3) at ``times`` (N,) in seconds, each joint by itself."""
    if len(times) < 3:
        return rotations
    fits = local_fit(times, WIDE), local_fit(times, NARROW)
    smooth = np.empty_like(rotations)
    for joint in range(rotations.shape[1]):  # one by one: long clips take memory
        smooth[:, joint] = _smooth_joint(rotations[:, joint], times, *fits)
    return smooth


def _smooth_joint(rotations: F64, times: F64, wide_fit: Smoother, narrow_fit: Smoother) -> F64:
    quaternions = continuous_quaternions(rotations)
    wide, narrow = _unit(wide_fit(quaternions)), _unit(narrow_fit(quaternions))
    steps = 2 * np.arccos(np.clip(np.abs((wide[1:] * wide[:-1]).sum(-1)), 0, 1))
    fast = _share(_speeds(steps, times), times, SPIN)[:, None]
    near = np.where((wide * narrow).sum(-1, keepdims=True) < 0, -wide, wide)
    return matrices(_unit(fast * narrow + (1 - fast) * near))


def smooth_places(camera: F64, times: F64) -> F64:
    """Smooth the root's places (N, 3) in metres before the camera. Across the view and in depth apart: depth is by
    far the less certain."""
    if len(times) < 3:
        return camera
    rays = np.column_stack([camera[:, :2] / camera[:, 2:], np.log(camera[:, 2])])
    wide, narrow = local_fit(times, WIDE)(rays), local_fit(times, NARROW)(rays)
    across = _speeds(np.linalg.norm(np.diff(wide[:, :2], axis=0), axis=1), times) * camera[:, 2]
    deep = _speeds(np.abs(np.diff(wide[:, 2])), times)
    share = np.column_stack([_share(across, times, WALK)] * 2 + [_share(deep, times, APPROACH)])
    mixed = share * narrow + (1 - share) * wide
    depth = np.exp(mixed[:, 2:])
    return np.column_stack([mixed[:, :2] * depth, depth])


def local_fit(times: F64, width: float, degree: int = DEGREE) -> Smoother:
    """A linear smoother for values (N, …) at ``times``: a polynomial is fitted around each with Gaussian weights of
    ``width`` seconds. Exact for polynomials of that degree, at the ends too."""
    starts = np.searchsorted(times, times - 3 * width)
    ends = np.searchsorted(times, times + 3 * width, side="right")
    rows = []
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        # With few neighbours a lower degree, or nothing would be smoothed.
        order = min(degree, max(0, (end - start - 1) // 2))
        away = (times[start:end] - times[at]) / width
        weight = np.exp(-0.5 * away**2)
        powers = np.vander(away, order + 1, increasing=True)
        rows.append(np.linalg.pinv(powers * np.sqrt(weight)[:, None])[0] * np.sqrt(weight))
    ends_of_rows = np.concatenate([[0], np.cumsum(ends - starts)])
    columns = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    weights = csr_array((np.concatenate(rows), columns, ends_of_rows), shape=(len(times), len(times)))

    def smooth(values: F64) -> F64:
        return (weights @ values.reshape(len(values), -1)).reshape(values.shape)  # type: ignore[no-any-return]

    return smooth


def continuous_quaternions(rotations: F64) -> F64:
    """Quaternions (N, …, 4), x y z w, of rotations (N, …, 3, 3); along the first axis none jumps to its negative."""
    from scipy.spatial.transform import Rotation

    shape = rotations.shape[:-2]
    found = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat().reshape(*shape, 4)
    for at in range(1, len(found)):
        turned = (found[at] * found[at - 1]).sum(-1) < 0
        found[at][turned] *= -1
    return found  # type: ignore[no-any-return]


def matrices(quaternions: F64) -> F64:
    """Rotations (…, 3, 3) of quaternions (…, 4), x y z w."""
    from scipy.spatial.transform import Rotation

    found = Rotation.from_quat(quaternions.reshape(-1, 4)).as_matrix()
    return found.reshape(*quaternions.shape[:-1], 3, 3)  # type: ignore[no-any-return]


def _speeds(steps: F64, times: F64) -> F64:
    """Speeds (N, …) a second at each time, of steps (N - 1, …) between them."""
    between = steps / np.maximum(np.diff(times), 1e-6).reshape(-1, *[1] * (steps.ndim - 1))
    return np.concatenate([between[:1], (between[1:] + between[:-1]) / 2, between[-1:]])


def _share(speeds: F64, times: F64, limits: tuple[float, float]) -> F64:
    """How fast each moment is, from 0 (slow) to 1, with what is near it in time."""
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-6)
    around = maximum_filter1d(speeds, 2 * round(ENVELOPE * rate) + 1, axis=0, mode="nearest")
    t = np.clip((around - limits[0]) / (limits[1] - limits[0]), 0, 1)
    return t * t * (3 - 2 * t)  # type: ignore[no-any-return]


def _unit(quaternions: F64) -> F64:
    return quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)  # type: ignore[no-any-return]
