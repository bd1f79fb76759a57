"""How long a crash costs: from SIGKILL of each stage to the next committed frame, and where that time goes.

    python -m bench.recovery VIDEO [--kills 15] [--backend blazepose]

In one run, with preloading (fork servers) and without: median and 99th percentile in milliseconds; the medians of
what a restart consists of; and how many frames the detect and mesh stages did again for each crash.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.memory import repeat
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, StageEvent
from stages.owner.pipeline import Pipeline
from stages.settings import STAGES, PipelineSettings
from supervisor.spec import RestartPolicy

STEP = 0.005
PARTS = ("noticing and starting", "imports", "loading", "warming up", "first commit")
"""What a restart consists of: the time until the events below, each from the one before, and until the commit."""
MARKS = ("importing", "loading", "warming", "ready")


class Counting(Pipeline):
    """Counts the frames that each stage has worked on, those done again included."""

    worked: Counter[str]

    def _on_message(self, stage: str, kind: str, payload: dict[str, Any]) -> None:
        if kind == "worked" and payload["seconds"] > 0:  # and not sent again from memory
            self.worked[stage] += int(payload["count"])
        super()._on_message(stage, kind, payload)


@dataclass
class Measured:
    """What the crashes of one stage cost: seconds in all and by part (nan: no such phase); frames done again."""

    times: list[float] = field(default_factory=list)
    parts: list[list[float]] = field(default_factory=list)
    again: dict[str, float] = field(default_factory=dict)


class Victim:
    """A running pipeline whose stages are killed one after another."""

    def __init__(self, settings: PipelineSettings, clip: Path, folder: Path) -> None:
        self.pipeline = Counting(settings, self._on_event)
        self.pipeline.worked = Counter()
        self.failed: JobFailed | None = None
        self.ended = False
        self.watched = ""
        self.marks: dict[str, float] = {}
        folder.mkdir()
        self.pipeline.start()
        self.pipeline.submit(Job("job", str(clip), str(folder)))

    def _on_event(self, event: JobEvent) -> None:
        if isinstance(event, JobFailed):
            self.failed = event
        elif isinstance(event, JobDone):
            self.ended = True
        elif isinstance(event, StageEvent) and event.stage == self.watched:
            self.marks.setdefault(event.state, time.perf_counter())

    def committed(self) -> int:
        progress = self.pipeline.status()["jobs"].get("job")
        if progress is None:
            if self.failed is None and not self.ended:
                return 0  # decode is not ready yet
            raise SystemExit(str(self.failed or "the clip has ended before all kills were done"))
        return int(progress.committed)

    def until_committed(self, frame: int) -> None:
        while self.committed() < frame:
            self.pipeline.step(STEP)

    def kill(self, stage: str) -> tuple[float, list[float]]:
        """Seconds from the kill of a stage to the next frame committed by a pipeline that is whole again, and
        what they consist of."""
        pid = self.pipeline.status()["processes"][stage].pid
        self.watched, self.marks = stage, {}
        os.kill(pid, signal.SIGKILL)
        killed = time.perf_counter()
        while stage in self.pipeline.status()["ready"]:
            self.pipeline.step(STEP)
        while stage not in self.pipeline.status()["ready"]:
            self.pipeline.step(STEP)
        self.until_committed(self.committed() + 1)
        end = time.perf_counter()
        parts, before = [], killed
        for mark in MARKS:
            parts.append(self.marks[mark] - before if mark in self.marks else float("nan"))
            before = self.marks.get(mark, before)
        return end - killed, [*parts, end - before]


def measure(settings: PipelineSettings, clip: Path, folder: Path, kills: int) -> dict[str, Measured]:
    """What crashes cost, for each stage."""
    victim = Victim(settings, clip, folder)
    found = {stage: Measured() for stage in STAGES}
    try:
        victim.until_committed(20)
        for stage, measured in found.items():
            worked, committed = victim.pipeline.worked.copy(), victim.committed()
            for _ in range(kills):
                whole, parts = victim.kill(stage)
                measured.times.append(whole)
                measured.parts.append(parts)
                # No frame may meet three deaths: it would be skipped as poison.
                victim.until_committed(victim.committed() + settings.slots)
            through = victim.committed() - committed
            for worker in ("detect", "mesh"):
                done = victim.pipeline.worked[worker] - worked[worker]
                measured.again[worker] = max(0.0, (done - through) / kills)  # what is in flight blurs it a little
    finally:
        victim.pipeline.close()
    return found


def plain(settings: PipelineSettings) -> PipelineSettings:
    """The same without fork servers: every restart is a new interpreter."""
    changed = {stage: replace(settings.stage(stage), preload=False) for stage in STAGES}
    return replace(settings, **changed)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--backend", default="blazepose")
    parser.add_argument("--kills", type=int, default=15)
    arguments = parser.parse_args()
    endless = RestartPolicy(base_delay=0.01, max_delay=0.05, max_restarts=10_000)
    settings = PipelineSettings(backend=arguments.backend, restart=endless)
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch) / "clip.mp4"
        repeat(arguments.video, clip, 60 * 4 * arguments.kills)
        preloaded = measure(settings, clip, Path(scratch) / "preloaded", arguments.kills)
        execed = measure(plain(settings), clip, Path(scratch) / "plain", arguments.kills)
    rows = []
    for stage in STAGES:
        fast, slow = (np.asarray(found[stage].times) * 1000 for found in (preloaded, execed))
        figures = (np.median(fast), np.percentile(fast, 99), np.median(slow), np.percentile(slow, 99))
        rows.append([stage, *(f"{value:.0f}" for value in figures), f"{figures[2] / figures[0]:.1f}"])
    columns = ("stage", "preloaded: median", "p99", "plain restart: median", "p99", "ratio of medians")
    show(f"from SIGKILL to the next committed frame, ms ({arguments.kills} kills each)", columns, rows)
    rows = []
    for stage in STAGES:
        for how, found in (("preloaded", preloaded), ("plain", execed)):
            parts = np.median(np.asarray(found[stage].parts) * 1000, axis=0)
            rows.append([stage, how, *("" if np.isnan(part) else f"{part:.0f}" for part in parts)])
    show("what that consists of, medians, ms", ("stage", "start", *PARTS), rows)
    rows = [
        [stage, *(f"{preloaded[stage].again[worker]:.1f}" for worker in ("detect", "mesh"))] for stage in STAGES
    ]
    show(
        f"frames done again for a crash, mean (at most {settings.slots} are in flight)",
        ("killed", "detect", "mesh"),
        rows,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
