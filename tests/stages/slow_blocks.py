"""`tests.stages.blocks` with a detector that takes its time for each frame, and says that it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stages.protocols import Report
from stages.records import Detections, Frame
from tests.stages.blocks import BACKEND as QUICK
from tests.stages.blocks import Squares


class Patient(Squares):
    def __init__(self, options: Mapping[str, Any], report: Report) -> None:
        self._seconds = float(options["seconds"])
        self._report = report

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        found: list[Detections] = []
        for frame in frames:
            time.sleep(self._seconds)
            found += super().detect([frame])
            self._report("detecting", len(found) / len(frames))
        return found


BACKEND = replace(QUICK, name="tests.stages.slow_blocks", detector=Patient)
