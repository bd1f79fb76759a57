"""The form of our own body as a signed distance: elliptical tubes, capsules and ellipsoids, smoothly joined.

Measures are those of an adult of 1.70 m, in metres, in the template's axes (x to the person's left, y up, z
forward, the floor at y = 0). Only the left half is described; the other is its mirror image. Used when the
template is built, never when bodies are posed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

Array = npt.NDArray[np.float64]

LEFT_JOINTS: dict[str, tuple[float, float, float]] = {
    "pelvis": (0, 0.935, -0.005), "hip": (0.088, 0.880, 0.000), "knee": (0.100, 0.475, 0.002),
    "ankle": (0.100, 0.078, -0.026), "foot": (0.110, 0.026, 0.098), "spine1": (0, 1.040, -0.020),
    "spine2": (0, 1.150, -0.025), "spine3": (0, 1.255, -0.025), "neck": (0, 1.440, -0.035),
    "head": (0, 1.515, -0.010), "collar": (0.050, 1.385, -0.025), "shoulder": (0.172, 1.388, -0.031),
    "elbow": (0.440, 1.389, -0.035), "wrist": (0.690, 1.389, -0.030), "hand": (0.775, 1.387, -0.027),
}  # fmt: skip
"""Joints of the left half and of the middle."""

# Height y, half width, front z, back z.
_TORSO = (
    (0.830, 0.100, 0.050, -0.070), (0.855, 0.140, 0.078, -0.090), (0.885, 0.160, 0.094, -0.102),
    (0.920, 0.167, 0.102, -0.106), (0.960, 0.160, 0.105, -0.100), (1.010, 0.146, 0.104, -0.086),
    (1.060, 0.136, 0.100, -0.078), (1.110, 0.132, 0.098, -0.078), (1.160, 0.136, 0.101, -0.086),
    (1.210, 0.144, 0.106, -0.096), (1.260, 0.153, 0.108, -0.104), (1.310, 0.158, 0.102, -0.107),
    (1.350, 0.152, 0.084, -0.103), (1.390, 0.126, 0.058, -0.093), (1.420, 0.092, 0.036, -0.082),
    (1.440, 0.062, 0.022, -0.072),
)  # fmt: skip
_HEAD = (
    (1.478, 0.026, 0.078, 0.020), (1.492, 0.041, 0.090, -0.020), (1.520, 0.056, 0.092, -0.058),
    (1.550, 0.064, 0.092, -0.082), (1.580, 0.069, 0.093, -0.094), (1.610, 0.073, 0.096, -0.100),
    (1.640, 0.073, 0.089, -0.098), (1.665, 0.065, 0.070, -0.084), (1.685, 0.046, 0.042, -0.056),
    (1.694, 0.026, 0.016, -0.030),
)  # fmt: skip
# Height y, middle x, half width, front z, back z.
_LEG = (
    (0.900, 0.092, 0.078, 0.076, -0.080), (0.820, 0.094, 0.083, 0.086, -0.088),
    (0.740, 0.095, 0.079, 0.085, -0.080), (0.660, 0.097, 0.072, 0.079, -0.068),
    (0.580, 0.098, 0.062, 0.069, -0.058), (0.520, 0.099, 0.055, 0.060, -0.052),
    (0.475, 0.100, 0.052, 0.058, -0.049), (0.430, 0.101, 0.050, 0.049, -0.055),
    (0.380, 0.102, 0.054, 0.043, -0.070), (0.330, 0.103, 0.055, 0.038, -0.078),
    (0.280, 0.102, 0.050, 0.033, -0.075), (0.220, 0.101, 0.042, 0.026, -0.066),
    (0.160, 0.100, 0.034, 0.018, -0.058), (0.110, 0.100, 0.031, 0.012, -0.056),
    (0.070, 0.100, 0.032, 0.012, -0.060), (0.045, 0.100, 0.030, 0.010, -0.060),
)  # fmt: skip
# Along x: middle y, half height, front z, back z.
_ARM = (
    (0.150, 1.386, 0.058, 0.026, -0.086), (0.190, 1.385, 0.059, 0.028, -0.088),
    (0.230, 1.385, 0.054, 0.022, -0.084), (0.280, 1.386, 0.048, 0.016, -0.080),
    (0.340, 1.387, 0.045, 0.012, -0.079), (0.400, 1.388, 0.041, 0.007, -0.077),
    (0.440, 1.389, 0.039, 0.004, -0.074), (0.480, 1.389, 0.041, 0.010, -0.075),
    (0.530, 1.389, 0.039, 0.011, -0.073), (0.580, 1.389, 0.034, 0.005, -0.066),
    (0.640, 1.389, 0.027, -0.003, -0.058), (0.690, 1.389, 0.021, -0.004, -0.055),
    (0.720, 1.388, 0.018, -0.002, -0.055),
)  # fmt: skip
_FINGERS = (  # z at the knuckle, z and x at the tip, radius
    (-0.003, 0.000, 0.842, 0.0098), (-0.021, -0.021, 0.852, 0.0100),
    (-0.039, -0.041, 0.845, 0.0096), (-0.055, -0.059, 0.824, 0.0086),
)  # fmt: skip


def join(a: Array, b: Array, width: float) -> Array:
    """Smooth union of two distances; ``width`` in metres is how far the seam is rounded."""
    h = np.maximum(width - np.abs(a - b), 0.0) / width
    joined: Array = np.minimum(a, b) - h * h * h * width / 6.0
    return joined


def cut(a: Array, b: Array, width: float) -> Array:
    """``a`` without ``b``, with a smooth seam."""
    return -join(-a, b, width)


def _ellipsoid(p: Array, centre: Sequence[float], radii: Sequence[float]) -> Array:
    q = (p - np.asarray(centre)) / np.asarray(radii)
    level = np.linalg.norm(q, axis=-1)
    slope = np.linalg.norm(q / np.asarray(radii), axis=-1)
    distance: Array = level * (level - 1.0) / np.maximum(slope, 1e-9)
    return distance


def _capsule(p: Array, a: Sequence[float], b: Sequence[float], ra: float, rb: float) -> Array:
    start, along = np.asarray(a), np.asarray(b) - np.asarray(a)
    t = np.clip((p - start) @ along / (along @ along), 0.0, 1.0)
    distance: Array = np.linalg.norm(p - start - t[..., None] * along, axis=-1) - (ra + (rb - ra) * t)
    return distance


def _tube(u: Array, v: Array, w: Array, sections: Array, power: float = 2.0) -> Array:
    """An elliptical tube along ``u``: ``sections`` has rows u, middle v, half size in v, high w, low w."""
    sections = sections[np.argsort(sections[:, 0])]
    low, high = sections[0, 0], sections[-1, 0]
    inside = np.clip(u, low, high)
    middle, half, front, back = PchipInterpolator(sections[:, 0], sections[:, 1:])(inside).T
    depth = (front - back) / 2
    a, b = np.abs(v - middle) / half, np.abs(w - (front + back) / 2) / depth
    level = (a**power + b**power) ** (1 / power)
    slope = np.hypot(a ** (power - 1) / half, b ** (power - 1) / depth) / np.maximum(level, 1e-9) ** (power - 1)
    around = (level - 1.0) / np.maximum(slope, 1e-9)
    beyond = np.abs(u - inside)
    cap = np.minimum(half, depth) * 0.8
    distance: Array = np.hypot(np.maximum(around + cap, 0.0), beyond) - cap
    return np.where(beyond > 0, distance, around)


def _head(p: Array) -> Array:
    x, y, z = p.T
    rows = np.array([(h, 0.0, *rest) for h, *rest in _HEAD])
    head = _tube(y, x, z, rows, 2.15)
    nose = _capsule(p, (0, 1.594, 0.089), (0, 1.556, 0.106), 0.006, 0.0105)
    nose = join(nose, _ellipsoid(p, (0.010, 1.551, 0.099), (0.009, 0.008, 0.010)), 0.008)
    head = join(head, nose, 0.012)
    head = cut(head, _ellipsoid(p, (0.034, 1.588, 0.104), (0.021, 0.012, 0.016)), 0.022)
    head = join(head, _ellipsoid(p, (0.031, 1.588, 0.078), (0.014, 0.010, 0.012)), 0.008)
    head = join(head, _ellipsoid(p, (0, 1.5285, 0.088), (0.022, 0.0075, 0.012)), 0.012)
    head = join(head, _ellipsoid(p, (0, 1.494, 0.080), (0.018, 0.014, 0.015)), 0.020)
    return join(head, _ellipsoid(p, (0.074, 1.573, -0.008), (0.009, 0.030, 0.018)), 0.010)


def _hand(p: Array) -> Array:
    hand = _capsule(p, (0.722, 1.387, -0.012), (0.772, 1.387, -0.008), 0.017, 0.014)
    hand = join(hand, _capsule(p, (0.722, 1.387, -0.045), (0.768, 1.387, -0.049), 0.016, 0.013), 0.030)
    hand = join(hand, _capsule(p, (0.690, 1.388, -0.030), (0.765, 1.388, -0.029), 0.019, 0.014), 0.025)
    fingers = np.full(len(p), 10.0)
    for knuckle, tip, reach, radius in _FINGERS:
        finger = _capsule(p, (0.765, 1.388, knuckle), (reach, 1.383, tip), radius, radius * 0.78)
        fingers = join(fingers, finger, 0.004)
    hand = join(hand, fingers, 0.010)
    thumb = _capsule(p, (0.712, 1.385, -0.010), (0.744, 1.380, 0.022), 0.015, 0.0125)
    thumb = join(thumb, _capsule(p, (0.744, 1.380, 0.022), (0.780, 1.377, 0.036), 0.0120, 0.0090), 0.008)
    return join(hand, thumb, 0.016)


def _foot(p: Array) -> Array:
    foot = _capsule(p, (0.099, 0.030, -0.052), (0.101, 0.046, -0.010), 0.033, 0.036)
    foot = join(foot, _capsule(p, (0.100, 0.058, -0.015), (0.103, 0.030, 0.085), 0.036, 0.026), 0.03)
    foot = join(foot, _capsule(p, (0.108, 0.030, -0.030), (0.130, 0.022, 0.085), 0.028, 0.021), 0.03)
    foot = join(foot, _capsule(p, (0.093, 0.026, 0.085), (0.096, 0.017, 0.152), 0.025, 0.0165), 0.02)
    foot = join(foot, _capsule(p, (0.113, 0.024, 0.085), (0.117, 0.015, 0.142), 0.022, 0.0135), 0.016)
    foot = join(foot, _capsule(p, (0.130, 0.022, 0.080), (0.136, 0.014, 0.122), 0.020, 0.0125), 0.016)
    return cut(foot, p[:, 1], 0.014)


def distance(p: Array) -> Array:
    """Signed distance (about; negative inside) of points ``p`` (N, 3), metres, to the body's skin."""
    p = p.astype(np.float64, copy=True)
    # A rounded absolute value, so that the halves meet without a crease.
    p[:, 0] = np.sqrt(p[:, 0] ** 2 + 0.004**2) - 0.001
    x, y, z = p.T
    torso = _tube(y, x, z, np.array([(h, 0.0, *rest) for h, *rest in _TORSO]), 2.3)
    torso = join(torso, _ellipsoid(p, (0.076, 0.892, -0.058), (0.080, 0.086, 0.070)), 0.05)
    torso = join(torso, _ellipsoid(p, (0.074, 1.280, 0.072), (0.072, 0.052, 0.040)), 0.05)
    torso = join(torso, _ellipsoid(p, (0.085, 1.300, -0.075), (0.065, 0.085, 0.040)), 0.05)
    neck = _capsule(p, (0, 1.400, -0.046), (0, 1.540, -0.012), 0.061, 0.054)
    torso = join(torso, neck, 0.035)
    torso = join(torso, _capsule(p, (0.015, 1.445, -0.050), (0.150, 1.402, -0.036), 0.042, 0.044), 0.05)
    arm = _tube(x, y, z, np.array(_ARM))
    arm = join(arm, _hand(p), 0.020)
    leg = _tube(y, x, z, np.array(_LEG))
    leg = join(leg, _ellipsoid(p, (0.100, 0.478, 0.035), (0.030, 0.036, 0.026)), 0.03)
    leg = join(leg, _foot(p), 0.030)
    body = join(torso, arm, 0.070)
    body = join(body, leg, 0.060)
    return join(body, _head(p), 0.022)
