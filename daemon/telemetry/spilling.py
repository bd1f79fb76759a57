"""Notices GPU memory that has silently moved to host memory: slow instead of failing (Windows' drivers, so WSL).

The driver tells nobody. What can be seen: the GPU's memory is full, and a stage that uses it needs several times as
long for a frame as it did before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.owner.processes import stage_of
from stages.settings import PipelineSettings

FULL = 0.03
"""A GPU with a smaller share of its memory free counts as full."""
SLOWER = 3.0
"""So many times its usual seconds a frame, and a stage counts as slow: less may be the video's doing."""
LEARNT = 100
"""Frames after which a stage's usual pace is known."""
FEWEST = 4
"""Frames between two looks below which nothing is said about the pace."""


class SpillWatch:
    """Compares each GPU stage's pace with its own best one. One look every few seconds."""

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._last: dict[str, tuple[int, float]] = {}
        self._best: dict[str, float] = {}
        self.problems: list[str] = []
        """What the last look found, for a person."""

    def look(self, status: Mapping[str, Any], devices: list[Mapping[str, Any]]) -> None:
        """Take a look.

        Args:
            status: of the pipeline: ``worked`` maps stages to their frames and busy seconds so far, ``processes``
                to their states.
            devices: as in ``health``: maps with ``index``, ``name``, ``total`` and ``free`` in bytes.
        """
        full = {device["index"]: device for device in devices if device["free"] < FULL * device["total"]}
        found = []
        for stage in {stage_of(name) for name in status["processes"]}:
            index = _device_index(self._settings.stage(stage).device)
            if index is None:
                continue
            pace = self._pace(stage, status["worked"].get(stage, (0, 0.0)), index in full)
            best = self._best.get(stage)
            if pace is not None and best is not None and index in full and pace > SLOWER * best:
                found.append(
                    f"{stage} takes {pace / best:.1f} times as long for a frame as before, and {full[index]['name']} is"
                    ' full: its memory may have moved to host memory (docs/service.md, "GPU memory that spills"):'
                    f" end what else uses the GPU, or set stages.{stage}.batch lower"
                )
        self.problems = sorted(found)

    def _pace(self, stage: str, worked: tuple[int, float], full: bool) -> float | None:
        """Seconds a frame since the last look, or None where there were too few; learns the best one."""
        frames, seconds = worked
        before_frames, before_seconds = self._last.get(stage, (0, 0.0))
        if frames - before_frames < FEWEST:
            return None
        self._last[stage] = (frames, seconds)
        pace = (seconds - before_seconds) / (frames - before_frames)
        # A pace seen while the GPU was full may be the slow one already.
        if not full and frames >= LEARNT and pace > 0:
            self._best[stage] = min(pace, self._best.get(stage, pace))
        return pace


def _device_index(device: str) -> int | None:
    """The GPU's number in a setting such as ``cuda:1``; None for the CPU."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return None
    return int(number) if number.isdecimal() else 0
