"""High dynamic range to the range that networks and screens know.

PQ and HLG by ITU-R BT.2100, the reference white of 203 cd/m2 by BT.2408, primaries by BT.2087; the curve that brings
highlights down is the one that FFmpeg calls Möbius: what is darker than `LINEAR` is kept as it is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stages.records import U8

PQ, HLG = 16, 18
"""Transfer characteristics of ITU-T H.273."""

NAMES = {PQ: "PQ", HLG: "HLG"}

WHITE = 203.0
PEAK = 1000.0
"""Luminance in cd/m2 of a white sheet, and of the brightest that is kept apart from what is brighter still."""

LINEAR = 0.5
STEPS = 1 << 12
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def is_hdr(frame: Any) -> bool:
    return frame.color_trc in NAMES


def tone_mapped(frame: Any, width: int, height: int) -> U8:
    """A decoder's frame of PQ or HLG as (height, width, 3) uint8 BGR."""
    wide = frame.reformat(width, height, "bgr48le", interpolation="AREA").to_ndarray()
    light = np.take(_linear(int(frame.color_trc)), wide >> 4)
    if frame.color_primaries == 9:
        light = np.asarray(cv2.transform(light, _TO_709[::-1, ::-1]), np.float32)
    # By its square root, so that few steps are enough for the dark.
    place = np.sqrt(np.clip(light, 0, PEAK / WHITE) * (WHITE / PEAK)) * (STEPS - 1) + 0.5
    return np.asarray(np.take(_curve(), place.astype(np.uint16)), np.uint8)


@cache
def _linear(transfer: int) -> npt.NDArray[np.float32]:
    """Luminance over that of white, by the signal in `STEPS` steps."""
    signal = np.linspace(0, 1, STEPS)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = signal ** (1 / m2)
        light = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        light = PEAK * scene**1.2
    return (light / WHITE).astype(np.float32)


@cache
def _curve() -> U8:
    """The 8-bit signal of a screen, by the root of luminance in `STEPS` steps."""
    light, peak = np.linspace(0, 1, STEPS) ** 2 * (PEAK / WHITE), PEAK / WHITE
    a = -LINEAR * LINEAR * (peak - 1) / (LINEAR * LINEAR - 2 * LINEAR + peak)
    b = (LINEAR * LINEAR - 2 * LINEAR * peak + peak) / (peak - 1)
    scale = (b * b + 2 * b * LINEAR + LINEAR * LINEAR) / (b - a)
    shown = np.where(light > LINEAR, scale * (light + a) / (light + b), light)
    return np.rint(255 * np.clip(shown, 0, 1) ** (1 / 2.2)).astype(np.uint8)
