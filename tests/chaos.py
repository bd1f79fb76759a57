"""The long chaos run: kill everything, again and again, and compare the results byte by byte.

    python -m tests.chaos VIDEO [--faults 200] [--seed 1] [--backend blazepose]

Runs ``poseward run`` as its own process and strikes it from outside: stages, fork servers and the command itself
(SIGKILL, SIGSEGV, SIGTERM, SIGSTOP held until the watchdog notices), resuming after the command's own death.
Meanwhile faults from inside are injected at random frames: hangs with and without the interpreter's lock, real
exhaustion of memory, a GPU's out-of-memory, exceptions, segmentation faults, corrupt messages. Goes on until the
faults are spent. Prints a table of what was done, and fails unless every result equals the undisturbed one and
nothing of its own is left behind.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from stages.results import read_results

MAIN = "from daemon.cli import main; main()"
MARK = "POSEWARD_CHAOS"
"""Stands in the environment of the command, and so in that of every process below it, orphaned or not."""
PATIENCE = 300.0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSTOP)
WITHIN = ("hang", "hang-gil", "memory", "oom", "raise", "segv", "corrupt")
STAGES = ("decode", "detect", "mesh", "track")
SLOTS = 12
"""Frames in flight (the default of stages.slots)."""


class Round:
    """One video worked on under fire.

    Args:
        frames: of the video; 0 for the undisturbed run.
        total: bytes of the undisturbed results.
        within: faults to inject from inside, such as ``mesh:hang@31``.
    """

    def __init__(
        self,
        video: Path,
        base: Path,
        options: list[str],
        rng: random.Random,
        frames: int,
        total: int,
        within: list[str],
    ) -> None:
        self._video = video
        self._out = base / "out"
        self._runtime = base / "run"
        self._options = options
        self._rng = rng
        # At least as far apart as frames can be in flight together. A frame that three deaths of one stage meet is
        # poison by definition, and would rightly be skipped.
        self._least = min(1.1 * SLOTS / frames, 0.5) if frames else 0.0
        self._total = total
        self._within = {hashlib.sha256(text.encode()).hexdigest()[:12]: text for text in within}
        self._seen: set[str] = set()
        self.done: collections.Counter[tuple[str, str]] = collections.Counter()
        if within:
            self._options = [*options, "--set", f"stages.faults={json.dumps(within)}"]
        shutil.rmtree(self._out, ignore_errors=True)
        self._runtime.mkdir(parents=True, exist_ok=True)

    def run(self, faults: int) -> Path:
        """Work until the video is done, with at most ``faults`` strikes on the way; returns the results file."""
        struck = 0
        arguments: list[str] = []
        mark = {MARK: str(self._out.parent), "XDG_RUNTIME_DIR": str(self._runtime)}
        while True:
            said = tempfile.TemporaryFile()  # noqa: SIM115 - read once the command has ended
            command = subprocess.Popen(
                [sys.executable, "-c", MAIN, "run", str(self._video), "-o", str(self._out), *self._options, *arguments],
                stdout=subprocess.DEVNULL, stderr=said, env={**os.environ, **mark},
            )  # fmt: skip
            while command.poll() is None:
                if struck < faults:
                    if self._moved_on(command) and command.poll() is None:
                        struck += self._strike(command, itself=struck == faults // 2 or self._rng.random() < 0.1)
                else:
                    self._look_within()
                    time.sleep(0.05)
            said.seek(0)
            below = said.read().decode(errors="replace")
            if command.returncode == 0:
                (found,) = self._out.glob("*/frames.msgpack")
                return found
            if command.returncode != -signal.SIGKILL:
                raise SystemExit(f"the command ended with {command.returncode}:\n{below[-4000:]}")
            arguments = ["--resume"]

    def _moved_on(self, command: subprocess.Popen[bytes]) -> bool:
        """Wait until the results have grown by some frames."""
        start = self._size()
        share = self._rng.uniform(self._least, self._least + 0.1) * self._total
        deadline = time.monotonic() + PATIENCE
        while command.poll() is None:
            self._look_within()
            size = self._size()
            if size - start > share or size < start:
                return True
            if time.monotonic() > deadline:
                raise SystemExit("no progress: a frame was lost, or a process hangs unnoticed")
            time.sleep(0.02)
        return False

    def _size(self) -> int:
        size = 0
        for path in _glob(self._out, "*.poseward-work/**/frames.msgpack"):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def _look_within(self) -> None:
        """Count the injected faults that have fired: each leaves a file in its life's runtime folder."""
        for path in _glob(self._runtime, "poseward-*/fault-*"):
            if str(path) not in self._seen:
                self._seen.add(str(path))
                stage, _, kind = self._within[path.name.split("-")[1]].partition("@")[0].partition(":")
                self.done[stage, kind] += 1

    def _strike(self, command: subprocess.Popen[bytes], itself: bool) -> int:
        try:
            below = psutil.Process(command.pid).children(recursive=True)
            victims = [process for process in below if process.name().startswith("pw-")]
            if itself:
                command.kill()
                command.wait()
                self.done["the command itself", "SIGKILL"] += 1
                return 1
            if not victims:
                return 0
            victim = self._rng.choice(victims)
            name = victim.name().removeprefix("pw-")
            number = self._rng.choice(SIGNALS)
            os.kill(victim.pid, number)
        except (psutil.NoSuchProcess, ProcessLookupError):
            return 0
        self.done[name, number.name] += 1
        return 1


def _glob(folder: Path, pattern: str) -> list[Path]:
    """What matches, though folders may vanish meanwhile."""
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:
        return []


def faults_within(rng: random.Random, frames: int, count: int) -> list[str]:
    """Faults at ``count`` different frames; each fires once in each life of the command."""
    chosen = []
    for frame in rng.sample(range(frames), min(count, frames)):
        kind = rng.choice(WITHIN)
        stage = rng.choice(STAGES[:3] if kind == "corrupt" else STAGES)  # track sends no messages that could be
        chosen.append(f"{stage}:{kind}@{frame}")
    return chosen


def leftovers(base: Path) -> list[str]:
    """Processes and runtime folders of this run, and of no other, that nobody owns any more."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.environ().get(MARK) == str(base) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"process {process.info['name']} {process.pid}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found + [str(path) for path in (base / "run").glob("poseward-*")]


def wait_for_none(base: Path) -> list[str]:
    """What is left half a minute after the end; nothing, if all is well."""
    deadline = time.monotonic() + 30
    while (left := leftovers(base)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


SETTINGS = (
    # Faults come closer together here than a sane policy lets pass as bad luck.
    "restart.max_restarts=100000",
    "restart.max_delay=0.2",
    "deadlines.heartbeat=3",
    "deadlines.importing=8",
    "deadlines.working=10",
)


@dataclass
class Storm:
    """What was done, in how many runs, and what came of it; ``differs`` says where results did."""

    table: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    rounds: int = 0
    differs: str = ""
    left: list[str] = field(default_factory=list)


def rage(
    video: Path,
    base: Path,
    backend: str,
    seed: int,
    faults: int,
    per_round: int,
    within: int,
    settings: Sequence[str],
) -> Storm:
    """Work on the video undisturbed, then under fire until ``faults`` faults are spent.

    Args:
        base: an empty folder with a short path, for sockets.
        per_round: strikes from outside in each run, at most; ``within``: faults from inside.
        settings: of the stages, such as ``deadlines.working=10``.
    """
    rng = random.Random(seed)
    options = ["--set", f"stages.backend={backend}", "--no-exports"]
    for setting in (*SETTINGS, *settings):
        options += ["--set", f"stages.{setting}"]
    storm = Storm()
    calm = Round(video, base, options, rng, 0, 0, []).run(0)
    expected = calm.read_bytes()
    with read_results(calm) as results:
        frames = sum(1 for _ in results)
    while (struck := storm.table.total()) < faults:
        chosen = faults_within(rng, frames, within)
        fire = Round(video, base, options, rng, frames, len(expected), chosen)
        found = fire.run(min(per_round, faults - struck))
        storm.rounds += 1
        storm.table += fire.done
        print(f"round {storm.rounds}: {fire.done.total()} faults, {storm.table.total()} so far", file=sys.stderr)
        if found.read_bytes() != expected:
            kept = tempfile.mkdtemp(prefix="chaos-")
            shutil.copy(found, kept)
            shutil.copy(found.with_name("summary.json"), kept)
            storm.differs = f"round {storm.rounds} of seed {seed}, with {chosen} within; kept in {kept}"
            break
    storm.left = wait_for_none(base)
    return storm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--per-round", type=int, default=12)
    parser.add_argument("--within", type=int, default=3, help="faults injected from inside, in each round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="blazepose")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        storm = rage(
            given.video, Path(base), given.backend, given.seed, given.faults, given.per_round, given.within, ()
        )  # fmt: skip
    print("| struck | by | times |\n| --- | --- | --- |")
    for (name, kind), count in sorted(storm.table.items()):
        print(f"| {name} | {kind} | {count} |")
    outcome = f"the results differ: {storm.differs}" if storm.differs else "every result byte-identical"
    print(f"\n{storm.table.total()} faults in {storm.rounds} runs of {given.video.name}: {outcome}.")
    print(f"Left behind: {storm.left or 'nothing'}.")
    return 1 if storm.left or storm.differs else 0


if __name__ == "__main__":
    sys.exit(main())
