"""Peak memory does not depend on the video's length: the whole pipeline on 200 frames and on 2,000.

    python -m bench.memory VIDEO

The clip is repeated (packets are copied, nothing is encoded anew) to both lengths. Prints the peak of the
process tree's memory for each (proportional set size, so that shared pages count once) and their ratio.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import av
import psutil

from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed
from stages.owner.pipeline import Pipeline
from stages.settings import PipelineSettings


def repeat(video: Path, out: Path, frames: int) -> None:
    """Write ``frames`` frames of the clip, over and over, by copying its packets."""
    written = 0
    offset = 0
    with av.open(str(out), "w") as target:
        output = None
        while written < frames:
            with av.open(str(video)) as source:
                stream = source.streams.video[0]
                output = output or target.add_stream_from_template(stream)
                end = 0
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None or written >= frames:
                        continue
                    end = max(end, packet.pts + (packet.duration or 1))
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = output
                    target.mux(packet)
                    written += 1
                offset += end


def peak_of(video: Path, settings: PipelineSettings, folder: Path) -> tuple[int, int]:
    """Frames, and the peak in bytes of this process and all below it."""
    events: list[JobEvent] = []
    pipeline = Pipeline(settings, events.append)
    peak = 0
    folder.mkdir()
    try:
        pipeline.start()
        pipeline.submit(Job("job", str(video), str(folder)))
        while not any(isinstance(event, JobDone | JobFailed) for event in events):
            pipeline.step(0.2)
            peak = max(peak, _tree_memory())
    finally:
        pipeline.close()
    ended = next(event for event in events if isinstance(event, JobDone | JobFailed))
    if isinstance(ended, JobFailed):
        raise SystemExit(f"{video}: {ended.error}: {ended.message}")
    return ended.outcome.frames, peak


def _tree_memory() -> int:
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it ended between the listing and the look
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--backend", default="blazepose")
    arguments = parser.parse_args()
    settings = PipelineSettings(backend=arguments.backend)
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        for frames in (200, 2000):
            clip = Path(scratch) / f"{frames}.mp4"
            repeat(arguments.video, clip, frames)
            done, peak = peak_of(clip, settings, Path(scratch) / f"{frames}")
            peaks.append(peak)
            print(f"{done} frames: peak {peak / 2**20:.0f} MB")
    print(f"ratio {peaks[1] / peaks[0]:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
