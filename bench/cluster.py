"""What sharing one long video over several machines brings and costs.

    python -m bench.cluster [--frames 2000] [--seconds 0.02] [--nodes 1,2,4]

Machines are played by raylets on this one. Each frame costs the mesh stage a fixed time in which it sleeps, so that the
cores of this machine do not decide. Printed, from one run: seconds and speed-up for each number of nodes, against the
same pipeline without a cluster; seconds of overhead a frame; bytes that came back a frame; and what the death of a
station in the middle costs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

from daemon.cluster.pipeline import ClusterPipeline
from daemon.settings.schema import ClusterSettings
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed
from stages.owner.pipeline import Pipeline
from stages.settings import PipelineSettings
from tests.daemon.rays import Rays, cluster
from tests.stages.harness import FAST, write_squares

SEGMENT = 50


class Timed:
    """One pipeline, ready before the clock runs."""

    def __init__(self, settings: PipelineSettings, rays: Rays | None) -> None:
        self.ended: JobEvent | None = None
        self.pipeline: Pipeline | ClusterPipeline
        if rays is None:
            self.pipeline = Pipeline(settings, self._on_event)
        else:
            given = ClusterSettings(address=rays.address, segment_frames=SEGMENT)
            self.pipeline = ClusterPipeline(settings, self._on_event, cluster=given)

    def work(self, clip: Path, folder: Path, stations: int, *, kill: bool = False) -> tuple[float, int]:
        """Seconds from submission to results, and bytes of the journal."""
        self.pipeline.start()
        try:
            while not self._is_ready(stations):
                self.pipeline.step(0.1)
            folder.mkdir()
            began = time.monotonic()
            self.pipeline.submit(Job("clip", str(clip), str(folder)))
            while self.ended is None:
                self.pipeline.step(0.1)
                if kill and self._done() > 0.3:
                    kill = False
                    _stations()[0].kill()
            seconds = time.monotonic() - began
        finally:
            self.pipeline.close()
        assert isinstance(self.ended, JobDone), self.ended
        return seconds, sum(path.stat().st_size for path in folder.glob("journal-*"))

    def _on_event(self, event: JobEvent) -> None:
        if isinstance(event, JobDone | JobFailed):
            self.ended = event

    def _is_ready(self, stations: int) -> bool:
        status = self.pipeline.status()
        there = [s for s in status.get("cluster", {}).get("stations", ()) if s["host"]]
        return len(status["ready"]) == len(status["processes"]) and len(there) >= stations

    def _done(self) -> float:
        jobs = self.pipeline.status().get("cluster", {}).get("jobs", {})
        return max((job["done"] / job["segments"] for job in jobs.values()), default=0.0)


def _stations() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "ray::Station" in " ".join(p.info["cmdline"] or ())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.02, help="cost of a frame")
    parser.add_argument("--nodes", default="1,2,4")
    given = parser.parse_args()
    settings = replace(FAST, faults=(f"mesh:slow={given.seconds}%1/1",), snapshot_every=given.frames)
    with tempfile.TemporaryDirectory(prefix="pw-") as name:
        folder = Path(name)
        clip = write_squares(folder / "clip.mp4", given.frames)
        alone, size = Timed(settings, None).work(clip, folder / "alone", 0)
        print(f"{given.frames} frames at {given.seconds:g} s, segments of {SEGMENT} frames")
        print(f"without a cluster  {alone:6.1f} s   {size / given.frames:.0f} bytes of journal a frame")
        with cluster(nodes=0) as rays:
            there = 0
            for count in map(int, given.nodes.split(",")):
                while there < count:
                    rays.add()
                    there += 1
                seconds, _ = Timed(settings, rays).work(clip, folder / f"on{count}", count)
                ideal = given.frames * given.seconds / count
                over = (seconds - ideal) / given.frames * 1000
                told = f"{seconds:6.1f} s   {alone / seconds:.2f}x   {over:.2f} ms over the ideal a frame"
                print(f"{count} station(s)       {told}")
            killed, _ = Timed(settings, rays).work(clip, folder / "killed", there, kill=True)
            print(f"{there}, one killed      {killed:6.1f} s   {killed - seconds:+.1f} s")


if __name__ == "__main__":
    main()
