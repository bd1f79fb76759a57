"""The whole 4D-Humans pipeline on a small card, or a large one made small: speed, memory by NVML, and out-of-memory.

    python -m bench.humans4d_card VIDEO [--card-gb 8] [--frames 60] [--device cuda] [--small]

A process of its own holds what the card has beyond ``--card-gb``, so that no more than that is left. Then, in the
profile 8gb with random weights (full size, 5.5 GB of them in the temporary folder; ``--small``: tiny networks), the
clip goes twice through the four processes: once in peace, and once while another program takes nearly all of the
card's memory for some seconds, again and again. Prints one JSON line each: seconds from start to end with loading, and
each stage's frames a second while it works; the most that NVML saw in use, and for each process where the driver
tells; deaths, shrunk batches and failed frames; and whether both results are the same. With ``--device cpu`` it runs
without a card, and measures none.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.memory import repeat
from stages.backends.humans4d.options import PROFILES
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, StageEvent
from stages.owner.pipeline import Pipeline
from stages.settings import PipelineSettings, StageSettings
from supervisor.memory import DeviceMemory, Nvml
from supervisor.spec import Deadlines

HERE = Path(__file__).parent.parent
GIB = 2**30
HOLD = """
import sys, torch
held = []
for line in sys.stdin:
    wanted, held = int(line), []
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(sys.argv[1])
    if wanted < 0:  # all but this much
        wanted = max(0, free + wanted)
    try:
        held = [torch.empty(wanted, dtype=torch.uint8, device=sys.argv[1])] if wanted else []
    except torch.cuda.OutOfMemoryError:  # somebody was quicker
        wanted = 0
    print(wanted, flush=True)
"""
"""Reads how many bytes to hold, one line each; negative: leave that many free."""


class Holder:
    """A process that holds device memory."""

    def __init__(self, device: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hold(self, size: int) -> int:
        """Hold ``size`` bytes instead of what it held; what it holds now."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(size, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process that holds the card's memory has ended ({self._process.wait()})")
        return int(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Seen:
    """What one run has shown."""

    events: list[JobEvent] = field(default_factory=list)
    seconds: float = 0.0
    worked: dict[str, tuple[int, float]] = field(default_factory=dict)
    used: int = 0
    by_process: Counter[str] = field(default_factory=Counter)

    def look(self, found: DeviceMemory | None, pids: dict[int, str], others: int) -> None:
        if found is None:
            return
        self.used = max(self.used, found.total - found.free - others)
        for pid, held in (found.holders or {}).items():
            if pid in pids:
                self.by_process[pids[pid]] = max(self.by_process[pids[pid]], held)


def run(settings: PipelineSettings, clip: Path, folder: Path, card: Card, hungry: bool) -> Seen:
    """Work on ``clip``; where ``hungry``, somebody takes the card's memory for five of every fifteen seconds."""
    seen = Seen()
    pipeline = Pipeline(settings, seen.events.append)
    folder.mkdir()
    other = Holder(card.device) if hungry and card.index is not None else None
    try:
        pipeline.start()
        pipeline.submit(Job("job", str(clip), str(folder)))
        started = time.perf_counter()
        eats = False
        while not any(isinstance(event, JobDone | JobFailed) for event in seen.events):
            pipeline.step(0.2)
            status = pipeline.status()
            seen.worked = dict(status["worked"])
            pids = {process.pid: name for name, process in status["processes"].items() if process.pid}
            taken = 0
            if other is not None:
                wants = (time.perf_counter() - started) % 15 > 10
                if wants != eats:
                    eats = wants
                    taken = other.hold(-(64 << 20) if eats else 0)
            if not taken and not eats:
                seen.look(card.look(), pids, card.held)
        seen.seconds = time.perf_counter() - started
    finally:
        if other is not None:
            other.close()
        pipeline.close()
    return seen


@dataclass
class Card:
    """The device, and what of it is held to make it small."""

    device: str
    index: int | None
    held: int = 0
    probe: Nvml = field(default_factory=Nvml)

    def look(self) -> DeviceMemory | None:
        if self.index is None:
            return None
        return next((found for found in self.probe.devices() if found.index == self.index), None)


def say(what: str, **values: Any) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


def tell(what: str, seen: Seen, folder: Path) -> bytes:
    ended = next(event for event in seen.events if isinstance(event, JobDone | JobFailed))
    if isinstance(ended, JobFailed):
        say(what, failed=ended.error, message=ended.message)
        return b""
    outcome = ended.outcome
    states = Counter(event.state for event in seen.events if isinstance(event, StageEvent))
    say(
        what, frames=outcome.frames, seconds=round(seen.seconds, 1),
        frames_per_second={stage: round(count / spent, 2) for stage, (count, spent) in seen.worked.items() if spent},
        most_used_gib=round(seen.used / GIB, 2) if seen.used else None,
        deaths=len(outcome.restarts), failed_frames=len(outcome.failed_frames), shrunk=states["batch shrunk"],
        by_process_gib={name: round(held / GIB, 2) for name, held in sorted(seen.by_process.items())},
    )  # fmt: skip
    return (folder / "frames.msgpack").read_bytes()


def weights(folder: Path, small: bool) -> dict[str, Any]:
    """Write random weights by a process of its own, which keeps torch out of this one; the options that name them."""
    code = (
        "import json, sys; from pathlib import Path; from bench import humans4d_synthetic as synthetic\n"
        "synthetic.stand_in_torchvision_operators(); from stages.backends.humans4d import detect\n"
        "folder = Path(sys.argv[1]); options = synthetic.write_files(folder, full=True)\n"
        "options['vitdet_weights'] = str(folder / 'vitdet.pkl')\n"
        "synthetic.write_detector(folder / 'vitdet.pkl', detect.vitdet_config()); print(json.dumps(options))"
    )
    command = ["-m", "tests.backends.humans4d_small", str(folder)] if small else ["-c", code, str(folder)]
    ended = subprocess.run([sys.executable, *command], cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
    options: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return options


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, help="the clip; repeated where it is shorter than --frames")
    parser.add_argument("--card-gb", type=float, default=8.0, help="how large the card is to be (default: 8)")
    parser.add_argument("--frames", type=int, default=60, help="of the clip (default: 60)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--small", action="store_true", help="tiny networks")
    given = parser.parse_args()
    if not given.video.is_file():
        raise SystemExit(f"no file {given.video}")
    cuda = given.device.startswith("cuda")
    card = Card(given.device, int(given.device.partition(":")[2] or 0) if cuda else None)
    found = card.look()
    if cuda and found is None:
        raise SystemExit(
            f"no GPU {given.device} to be seen through NVML, the driver's library ({card.probe.problem}): "
            "--device cpu --small runs without one"
        )
    holder = Holder(given.device) if cuda else None
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            options: dict[str, Any] = {**weights(folder, given.small), "profile": "8gb"}
            if found is not None and holder is not None:
                card.held = holder.hold(max(0, found.total - int(given.card_gb * GIB)))
                after = card.look()
                assert after is not None
                card.held = after.total - after.free  # its context and what the desktop has included
                share = PROFILES["8gb"]["memory_fraction"] * given.card_gb * GIB / found.total
                options["memory_fraction"] = min(1.0, share)
                say(
                    "card",
                    name=found.name,
                    total_gib=round(found.total / GIB, 2),
                    left_gib=round(after.free / GIB, 2),
                )
            else:
                options["dtype"] = "bf16"
            stage = StageSettings(
                device=given.device, device_need_mb=2200 if cuda and not given.small else 0,
                env={"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))},
            )  # fmt: skip
            settings = PipelineSettings(
                backend="tests.backends.humans4d_small" if given.small else "bench.humans4d_few", options=options,
                detect=stage, mesh=stage, track=replace(stage, device="cpu"),
                deadlines=Deadlines(importing=300, loading=600, warming=300, working=300),
            )  # fmt: skip
            clip = folder / "clip.mp4"
            repeat(given.video, clip, given.frames)
            results = []
            for what, hungry in (("in peace", False), ("while the card is taken", True)):
                out = folder / what.replace(" ", "-")
                results.append(tell(what, run(settings, clip, out, card, hungry), out))
            same = bool(results[0]) and results[0] == results[1]
            say("results", same=same)
    finally:
        if holder is not None:
            with suppress(OSError):
                holder.close()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
