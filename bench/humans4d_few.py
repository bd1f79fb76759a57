"""The 4D-Humans backend with the first few of the people found: random weights see a crowd in everything, and what a
tracker costs grows with its square."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stages.backends.humans4d import BACKEND as REAL
from stages.protocols import Detector, Report
from stages.records import Detections, Frame

MOST = 4


class Few:
    """A detector, with the first ``most`` of what it finds in a frame."""

    def __init__(self, found: Detector, most: int = MOST) -> None:
        self._found = found
        self._most = most

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        return [self._first(one) for one in self._found.detect(frames)]

    def _first(self, found: Detections) -> Detections:
        extra = {name: value if name == "size" else value[: self._most] for name, value in found.extra.items()}
        return Detections(found.boxes[: self._most], found.scores[: self._most], extra)


def _detector(options: Mapping[str, Any], report: Report) -> Few:
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    return Few(REAL.detector(options, report))


def _mesh(options: Mapping[str, Any], report: Report) -> Any:
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    return REAL.mesh(options, report)


def _load_tracking(options: Mapping[str, Any], report: Report) -> None:
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    REAL.load_tracking(options, report)


BACKEND = replace(
    REAL, name="bench.humans4d_few", detector=_detector, mesh=_mesh, load_tracking=_load_tracking, preload={}
)
