"""What the whole picture says: the camera's motion, and cuts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.backends.blazepose.scene import change, small
from stages.records import U8


def scenery(seed: int, size: tuple[int, int] = (720, 1600)) -> U8:
    """Something with light and shade, broad and narrow."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((*size, 3), np.float32)
    for cells, strength in ((3, 90.0), (12, 60.0), (60, 40.0)):
        rough = rng.uniform(-1, 1, (cells, 2 * cells)).astype(np.float32)
        picture += strength * cv2.resize(rough, size[::-1], interpolation=cv2.INTER_CUBIC)[..., None]
    return np.clip(picture + 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("pan", [(0, 0), (30, 0), (-90, 20), (0, 60)])
def test_a_pan_is_measured_and_is_no_cut(pan: tuple[int, int]) -> None:
    whole = scenery(1)
    x, y = 150, 80
    first = whole[y : y + 540, x : x + 960]
    second = whole[y - pan[1] : y - pan[1] + 540, x - pan[0] : x - pan[0] + 960]
    found = change(small(first), small(second), 960)
    assert not found.cut
    assert found.shift == pytest.approx(pan, abs=4)


def test_another_scene_is_a_cut() -> None:
    pictures = [small(scenery(seed)) for seed in range(6)]
    for one in pictures:
        for other in pictures:
            assert change(one, other, 1600).cut == (one is not other)


def test_another_light_and_somebody_large_who_moves_are_none() -> None:
    whole = scenery(1)
    assert not change(small(whole), small((whole * 0.6).astype(np.uint8)), 1600).cut
    before, after = whole.copy(), whole.copy()
    before[100:700, 300:700] = (20, 60, 200)
    after[100:700, 500:900] = (20, 60, 200)
    found = change(small(before), small(after), 1600)
    assert not found.cut


def test_another_size_is_another_scene() -> None:
    assert change(small(scenery(1)), small(scenery(1, (720, 720))), 720).cut
