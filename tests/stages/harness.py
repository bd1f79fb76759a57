"""Runs real pipelines in tests: starts the processes, steps the loop, waits on conditions."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil

from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, StageEvent
from stages.owner.pipeline import Pipeline
from stages.settings import PipelineSettings, StageSettings
from supervisor.spec import Deadlines, RestartPolicy

PATIENCE = 120.0
"""Generous: a busy machine must not fail a test, only a lost frame may."""

FAST = PipelineSettings(
    backend="tests.stages.blocks",
    slots=8,
    max_pixels=320 * 240,
    ring_mb=8,
    snapshot_every=10,
    detect=StageSettings(batch=3),
    mesh=StageSettings(batch=3),
    deadlines=Deadlines(working=3.0, heartbeat=5.0, grace=1.0),
    restart=RestartPolicy(base_delay=0.01, max_delay=0.1, max_restarts=1000, window=10.0, cooldown=0.5),
)


def write_squares(path: Path, frames: int = 60, size: tuple[int, int] = (160, 120)) -> Path:
    """A lossy but deterministic clip in which two squares wander."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = 12
        for number in range(frames):
            image = np.zeros((height, width, 3), np.uint8)
            x = 5 + number % 60
            image[20:50, x : x + 25] = (200, 255 - number % 128, 40 + number % 200)
            image[70:105, 120 - x : 150 - x] = (40 + 2 * (number % 50), 220, 230)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


class Run:
    """A pipeline with everything it has said."""

    def __init__(self, settings: PipelineSettings = FAST, **changes: object) -> None:
        self.events: list[JobEvent] = []
        self.pipeline = Pipeline(replace(settings, **changes), self.events.append)  # type: ignore[arg-type]

    def __enter__(self) -> Run:
        self.pipeline.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.pipeline.close()

    def until(self, condition: Callable[[], bool], what: str = "condition") -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} not reached; last said:\n" + self.story()
            self.pipeline.step(0.05)

    def story(self, last: int = 60) -> str:
        return "\n".join(str(event)[:300] for event in self.events[-last:])

    def said(self, state: str) -> list[StageEvent]:
        return [e for e in self.events if isinstance(e, StageEvent) and e.state == state]

    def ended(self, job: str) -> JobDone | JobFailed | None:
        for event in self.events:
            if isinstance(event, JobDone | JobFailed) and event.job == job:
                return event
        return None

    def finish(self, job: str = "clip") -> JobDone | JobFailed:
        self.until(lambda: self.ended(job) is not None, f"the end of {job}")
        ended = self.ended(job)
        assert ended is not None
        return ended

    def work(self, source: Path, folder: Path, job: str = "clip", urgent: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.pipeline.submit(Job(job, str(source), str(folder), urgent))

    def committed(self) -> int:
        progress = self.pipeline.status()["jobs"]
        return max((p.committed for p in progress.values()), default=0)

    def pid(self, process: str) -> int | None:
        return self.pipeline.status()["processes"][process].pid

    def ready(self, process: str) -> bool:
        return process in self.pipeline.status()["ready"]

    def kill(self, process: str, how: int = signal.SIGKILL) -> None:
        pid = self.pid(process)
        assert pid is not None
        os.kill(pid, how)


def results_of(folder: Path) -> bytes:
    return (folder / "frames.msgpack").read_bytes()


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)
