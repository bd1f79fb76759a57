"""Four processes against one loop: the same backend, the same clip, in one run.

    python -m bench.pipeline VIDEO [--backend blazepose] [--rounds 3]

Prints frames per second of both, their ratio, and what the transport of a frame through ring and pipes costs,
measured on the very messages of this clip, as a share of the loop's time for a frame. Start-up (imports,
model loading) is left out of both: the clock starts when the first frame can be decoded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, JobOpened
from stages.owner.pipeline import Pipeline
from stages.protocols import Backend, find_backend
from stages.records import Detections, Frame, People
from stages.results.stream import ResultWriter
from stages.settings import PipelineSettings
from stages.source import open_source
from stages.transport.ring import Ring
from stages.transport.wire import FrameMessage, pack, unpack

Sample = tuple[Any, Detections, People]
"""A frame's image and what detect and mesh made of it."""


def _silent(detail: str, fraction: float | None = None) -> None:
    """Loading is not what is measured here."""


def _mesh(backend: Backend, options: dict[str, Any]) -> Callable[[Frame, Detections], People]:
    """What the mesh stage does with a frame, after all before it."""
    if backend.follower is None:
        regressor = backend.mesh(options, _silent)
        return lambda frame, found: regressor.regress([frame], [found])[0]
    follower, state = backend.follower(options, _silent), b""

    def follow(frame: Frame, found: Detections) -> People:
        nonlocal state
        people, state = follower.follow(frame, found, state)
        return people

    return follow


def loop_once(video: Path, settings: PipelineSettings, folder: Path) -> tuple[int, float]:
    """Frames, and seconds that decode, detect, mesh and track take in turn in this process."""
    backend = find_backend(settings.backend)
    options: dict[str, Any] = {"device": "cpu", "threads": 1, **settings.options}
    detector, mesh = backend.detector(options, _silent), _mesh(backend, options)
    started = time.perf_counter()
    source = open_source(video, max_pixels=settings.max_pixels)
    info = source.info
    tracker = backend.tracker(options, info.width, info.height, info.fps)
    writer = ResultWriter.create(
        folder / "loop.msgpack", backend.header(options, info.width, info.height, info.fps)
    )
    frames = 0
    for decoded in source.frames():
        people = People.empty()
        if decoded.image is not None:
            frame = Frame(decoded.image, decoded.index, decoded.time)
            people = mesh(frame, detector.detect([frame])[0])
        for record in tracker.update(decoded.index, decoded.time, people):
            writer.append(record)
        frames += 1
    for record in tracker.finish():
        writer.append(record)
    writer.close()
    return frames, time.perf_counter() - started


def pipeline_once(pipeline: Pipeline, events: list[JobEvent], video: Path, folder: Path) -> tuple[int, float]:
    """Frames and seconds of one job through the running, warm pipeline."""
    name = folder.name
    folder.mkdir()
    started = time.perf_counter()
    pipeline.submit(Job(name, str(video), str(folder)))
    while True:
        pipeline.step(0.1)
        for event in events:
            if isinstance(event, JobFailed) and event.job == name:
                raise SystemExit(f"{video}: {event.error}: {event.message}")
            if isinstance(event, JobDone) and event.job == name:
                return event.outcome.frames, time.perf_counter() - started
            if isinstance(event, JobOpened) and event.job == name:
                events.remove(event)
                break


def _samples(video: Path, settings: PipelineSettings, count: int) -> Iterator[Sample]:
    backend = find_backend(settings.backend)
    options: dict[str, Any] = {"device": "cpu", "threads": 1, **settings.options}
    detector, mesh = backend.detector(options, _silent), _mesh(backend, options)
    for decoded in open_source(video, max_pixels=settings.max_pixels).frames():
        if decoded.index == count:
            return
        if decoded.image is not None:
            frame = Frame(decoded.image, decoded.index, decoded.time)
            detections = detector.detect([frame])
            yield decoded.image, detections[0], mesh(frame, detections[0])


def transport_seconds(video: Path, settings: PipelineSettings) -> float:
    """Median seconds that one frame spends in the ring and as three messages, packed and unpacked."""
    ring = Ring.create(2, settings.max_pixels * 3)
    times = []
    for number, (image, detections, people) in enumerate(_samples(video, settings, 30)):
        started = time.perf_counter()
        generation = ring.write(0, 1, number, 0.0, image)
        height, width = image.shape[:2]
        base = FrameMessage(1, 1, number, 0.0, 0, generation, width, height)
        unpack(pack(base))
        ring.view(0, generation)
        unpack(pack(replace(base, detections=detections)))
        ring.view(0, generation)
        unpack(pack(replace(base, people=people)))
        ring.check(0, generation)
        times.append(time.perf_counter() - started)
    ring.close()
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--backend", default="blazepose")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    settings = PipelineSettings(backend=arguments.backend)
    events: list[JobEvent] = []
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = Pipeline(settings, events.append)
        try:
            pipeline.start()
            pipeline_once(pipeline, events, arguments.video, Path(scratch) / "warm-up")
            for number in range(arguments.rounds):
                # In turn, so that a machine whose speed drifts treats both alike.
                frames, alone = loop_once(arguments.video, settings, Path(scratch))
                _, together = pipeline_once(pipeline, events, arguments.video, Path(scratch) / f"{number}")
                rounds.append((frames, alone, together))
        finally:
            pipeline.close()
    transport = transport_seconds(arguments.video, settings)
    table = Table(title=f"{arguments.video.name}, backend {arguments.backend}")
    for column in ("round", "one loop, frames/s", "four processes, frames/s", "ratio"):
        table.add_column(column, justify="right")
    for number, (frames, alone, together) in enumerate(rounds):
        table.add_row(str(number), f"{frames / alone:.1f}", f"{frames / together:.1f}", f"{alone / together:.2f}")
    ratio = statistics.median(alone / together for _, alone, together in rounds)
    share = transport / statistics.median(alone / frames for frames, alone, _ in rounds)
    console = Console()
    console.print(table)
    console.print(f"median ratio {ratio:.2f}")
    console.print(f"transport {transport * 1000:.2f} ms a frame, {share:.1%} of a frame's time in the loop")
    return 0


if __name__ == "__main__":
    sys.exit(main())
