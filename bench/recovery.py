"""How long a crash costs: from SIGKILL of each stage to the next committed frame.

    python -m bench.recovery VIDEO [--kills 15] [--backend blazepose]

In one run, with preloading (fork servers) and without: median and 99th percentile in milliseconds, and how
many frames are done again for each crash (never more than are in flight).
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.memory import repeat
from stages.jobs import Job, JobEvent, JobFailed
from stages.pipeline import Pipeline
from stages.settings import STAGES, PipelineSettings
from supervisor.spec import RestartPolicy

STEP = 0.005


class Victim:
    """A running pipeline whose stages are killed one after another."""

    def __init__(self, settings: PipelineSettings, clip: Path, folder: Path) -> None:
        self.events: list[JobEvent] = []
        self.pipeline = Pipeline(settings, self.events.append)
        folder.mkdir()
        self.pipeline.start()
        self.pipeline.submit(Job("job", str(clip), str(folder)))

    def committed(self) -> int:
        progress = self.pipeline.status()["jobs"].get("job")
        return progress.committed if progress else 0

    def until_committed(self, frame: int) -> None:
        while self.committed() < frame:
            self.pipeline.step(STEP)
            if any(isinstance(event, JobFailed) for event in self.events):
                raise SystemExit(str(self.events[-1]))

    def kill(self, stage: str) -> float:
        """Seconds from the kill of a stage to the next frame committed by a pipeline that is whole again."""
        pid = self.pipeline.status()["processes"][stage].pid
        os.kill(pid, signal.SIGKILL)
        killed = time.perf_counter()
        while stage in self.pipeline.status()["ready"]:
            self.pipeline.step(STEP)
        while stage not in self.pipeline.status()["ready"]:
            self.pipeline.step(STEP)
        self.until_committed(self.committed() + 1)
        return time.perf_counter() - killed


def measure(settings: PipelineSettings, clip: Path, folder: Path, kills: int) -> dict[str, list[float]]:
    """Recovery times in seconds for each stage."""
    victim = Victim(settings, clip, folder)
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    try:
        victim.until_committed(20)
        for _ in range(kills):
            for stage in STAGES:
                times[stage].append(victim.kill(stage))
                victim.until_committed(victim.committed() + settings.slots)
    finally:
        victim.pipeline.close()
    return times


def plain(settings: PipelineSettings) -> PipelineSettings:
    """The same without fork servers: every restart is a new interpreter."""
    changed = {stage: replace(settings.stage(stage), preload=False) for stage in STAGES}
    return replace(settings, **changed)


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
    table = Table(title="from SIGKILL to the next committed frame, ms")
    for column in ("stage", "preloaded: median", "p99", "plain restart: median", "p99", "ratio of medians"):
        table.add_column(column, justify="right")
    for stage in STAGES:
        fast, slow = (np.asarray(times[stage]) * 1000 for times in (preloaded, execed))
        table.add_row(
            stage,
            f"{np.median(fast):.0f}",
            f"{np.percentile(fast, 99):.0f}",
            f"{np.median(slow):.0f}",
            f"{np.percentile(slow, 99):.0f}",
            f"{statistics.median(slow) / statistics.median(fast):.1f}",
        )
    Console().print(table)
    print(f"frames done again for a crash: at most {settings.slots}, the slots of the ring")
    return 0


if __name__ == "__main__":
    sys.exit(main())
