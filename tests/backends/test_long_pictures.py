"""Very long or tall pictures do not take many times as long as others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.backends.blazepose.detector import PersonDetector
from stages.backends.blazepose.options import Options


@pytest.mark.parametrize(
    ("width", "height", "most"), [(1920, 1080, 11), (4032, 3024, 11), (20_000, 400, 16), (300, 24_000, 16)]
)
def test_the_number_of_looks_is_bounded_and_they_cover_the_picture(width: int, height: int, most: int) -> None:
    network: Any = None
    detector = PersonDetector(network, Options())
    looks: list[Any] = []

    def look(image: Any, one: Any) -> Any:
        looks.append(one)
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)

    detector._look = look  # type: ignore[method-assign]
    detector.find(np.broadcast_to(np.uint8(0), (height, width, 3)), closer=True)
    assert 2 < len(looks) <= most
    seen = np.zeros((height // 100 + 1, width // 100 + 1), bool)
    for one in looks[1:]:
        seen[one.y // 100 : (one.y + one.height) // 100 + 1, one.x // 100 : (one.x + one.width) // 100 + 1] = True
    assert seen.all()
