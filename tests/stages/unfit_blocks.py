"""The backend of blocks, with one frame whose meshes cannot travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stages.records import Detections, Frame, People
from tests.stages import blocks

UNFIT = 7


class UnfitCubes(blocks.Cubes):
    def regress(self, frames: Sequence[Frame], detections: Sequence[Detections]) -> list[People]:
        found = super().regress(frames, detections)
        for frame, people in zip(frames, found, strict=True):
            if frame.index == UNFIT:
                people.extra = {"notes": object()}
        return found


BACKEND = replace(blocks.BACKEND, name="tests.stages.unfit_blocks", mesh=UnfitCubes)
