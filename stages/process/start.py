"""The contract of pipeline and stages: what a stage process is told at its start, as one JSON-able map, and what both
sides must understand in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zmq

from stages.process.faults import FaultPlan
from stages.transport.pipes import Receiver, Sender

WHOLE_JOB = -1
"""Stands for a frame where a stage works on the job itself: opening its source, closing its results."""

CHANGED = "the input is not what it was when this job began: now {now}, then {then}; submit it anew"
"""What a person is told whose file was replaced; the error is ``source-changed``."""


def looks(info: Mapping[str, Any]) -> str:
    """What makes an input the same input for what was found in its first half to be of use for the other, in words
    that can be compared. ``info`` is what decode has found out about it."""
    count = info.get("frames")
    many = "an unknown number of" if count is None else str(count)
    size = info.get("width"), info.get("height")
    width, height = info.get("working", size)
    worked = "" if (width, height) == size else f", worked on as {width}x{height}"
    return f"{many} frames of {size[0]}x{size[1]} pixels, turned by {info.get('rotation', 0)}{worked}"


@dataclass(frozen=True)
class StageConfig:
    """One stage process: where its pipes and frames are, and what it runs."""

    stage: str
    ring_fd: int
    listens: str | None
    """Path of the pipe it receives from; it binds there."""
    feeds: tuple[str, ...]
    """Paths of the pipes it sends to: one for each replica of the next stage."""
    depth: int
    backend: str
    options: Mapping[str, Any]
    batch: int = 1
    vertices: bool = True
    max_pixels: int = 0
    working_pixels: int | None = None
    snapshot_every: int = 100
    threads: int = 1
    faults: tuple[str, ...] = ()
    fault_state: str | None = None

    def to_map(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> StageConfig:
        tuples = {key: tuple(values[key]) for key in ("feeds", "faults")}
        return cls(**{**values, **tuples})

    def receiver(self, context: zmq.Context[Any]) -> Receiver | None:
        return Receiver(context, Path(self.listens), self.depth) if self.listens else None

    def sender(self, context: zmq.Context[Any]) -> Sender | None:
        return Sender(context, [Path(path) for path in self.feeds], self.depth) if self.feeds else None

    def fault_plan(self) -> FaultPlan:
        state = Path(self.fault_state) if self.fault_state else None
        return FaultPlan.parse(self.faults, self.stage, state)
