"""What of an overlay can be chosen. Stands alone: who only says it need not load a video library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """What of an overlay can be chosen: its longest ``side`` in pixels (0: that of the input), and whether the
    ``sound`` of the input goes with it."""

    side: int = 1920
    sound: bool = True
