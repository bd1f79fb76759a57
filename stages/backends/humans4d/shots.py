"""Cuts in a video, found while it passes.

The criterion is PySceneDetect's ``AdaptiveDetector``, which PHALP runs over the whole file beforehand: a frame
begins a new shot if the mean change of hue, saturation and value since the frame before it is at least 15 and
three times the mean change around it (two frames before, two after). The mesh stage, which sees the pixels,
hands small pictures on; the tracker, which needs to know, compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from stages.records import U8

WIDTH = 128
"""Width in pixels of the small pictures."""
WINDOW = 2
"""Frames on either side that a change is compared with: decisions lag by as many."""
RATIO = 3.0
CONTENT = 15.0
SHORTEST = 15
"""Frames that a shot lasts at least."""


def thumbnail(image: U8) -> U8:
    """A small picture (h, 128, 3) uint8 hue, saturation, value of ``image`` (H, W, 3) uint8 BGR."""
    height = max(1, round(image.shape[0] * WIDTH / image.shape[1]))
    small = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_AREA)
    hsv: U8 = cv2.cvtColor(small, cv2.COLOR_BGR2HSV).astype(np.uint8)
    return hsv


@dataclass
class ShotDetector:
    """Says of each frame, in order and ``WINDOW`` frames late, whether a shot begins with it. Picklable."""

    before: U8 | None = None
    changes: list[float] = field(default_factory=list)
    decided: int = 0
    last_cut: int = 0

    def push(self, picture: U8 | None) -> list[bool]:
        """Take the next frame's `thumbnail`, or None for a frame that failed, which counts as unchanged; returns
        the decisions that have become possible."""
        change = 0.0
        if picture is not None:
            if self.before is not None and self.before.shape == picture.shape:
                change = float(np.abs(picture.astype(np.int16) - self.before).mean())
            self.before = picture
        self.changes.append(change)
        after = len(self.changes) - min(WINDOW, self.decided) - 1
        return [self._decide()] if after >= WINDOW else []

    def finish(self) -> list[bool]:
        """The decisions on the last frames."""
        left = len(self.changes) - min(WINDOW, self.decided)
        return [self._decide() for _ in range(left)]

    def _decide(self) -> bool:
        """Decide on the oldest undecided frame; ``changes`` holds it, those after, and up to WINDOW before."""
        before = min(WINDOW, self.decided)
        change = self.changes[before]
        around = self.changes[:before] + self.changes[before + 1 : before + 1 + WINDOW]
        full = before == WINDOW and len(around) == 2 * WINDOW
        mean = sum(around) / len(around) if around else 0.0
        sudden = change >= CONTENT and change >= RATIO * mean
        cut = full and sudden and self.decided - self.last_cut >= SHORTEST
        if cut:
            self.last_cut = self.decided
        self.decided += 1
        if before == WINDOW:
            self.changes.pop(0)
        return cut
