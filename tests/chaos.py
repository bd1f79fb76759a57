"""The long chaos run: kill everything, again and again, and compare the results byte by byte.

    python -m tests.chaos VIDEO [--faults 200] [--seed 1] [--backend blazepose]

Runs ``poseward run`` as its own process, kills stages, fork servers and the command itself (SIGKILL, SIGSEGV,
SIGTERM, SIGSTOP held until the watchdog notices), resumes after the command's own death, and does so until the
faults are spent. Prints a table of what was done, and fails unless every result equals the undisturbed one.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MAIN = "from daemon.cli import main; main()"
PATIENCE = 300.0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSTOP)


class Round:
    """One video worked on under fire."""

    def __init__(self, video: Path, out: Path, options: list[str], rng: random.Random, total: int) -> None:
        self._video = video
        self._out = out
        self._options = options
        self._rng = rng
        self._total = total  # bytes of the undisturbed results
        self.done: collections.Counter[tuple[str, str]] = collections.Counter()

    def run(self, faults: int) -> int:
        """Work until the video is done, with at most ``faults`` faults on the way; returns how many there were."""
        struck = 0
        arguments: list[str] = []
        while True:
            said = tempfile.TemporaryFile()  # noqa: SIM115 - read once the command has ended
            command = subprocess.Popen(
                [sys.executable, "-c", MAIN, "run", str(self._video), "-o", str(self._out), *self._options, *arguments],
                stdout=subprocess.DEVNULL, stderr=said,
            )  # fmt: skip
            while command.poll() is None:
                if struck < faults and self._moved_on(command) and command.poll() is None:
                    struck += self._strike(command)
            said.seek(0)
            below = said.read().decode(errors="replace")
            if command.returncode == 0:
                return struck
            if command.returncode != -signal.SIGKILL:
                raise SystemExit(f"the command ended with {command.returncode}:\n{below[-4000:]}")
            arguments = ["--resume"]

    def _moved_on(self, command: subprocess.Popen[str]) -> bool:
        """Wait until the results have grown: a frame that dies three times by chance would rightly be skipped."""
        start = self._size()
        share = self._rng.uniform(0.05, 0.2) * self._total
        deadline = time.monotonic() + PATIENCE
        while command.poll() is None:
            size = self._size()
            if size - start > share or size < start:
                return True
            if time.monotonic() > deadline:
                raise SystemExit("no progress: a frame was lost, or a process hangs unnoticed")
            time.sleep(0.02)
        return False

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self._out.glob("*.poseward-work/**/frames.msgpack"))

    def _strike(self, command: subprocess.Popen[str]) -> int:
        try:
            below = psutil.Process(command.pid).children(recursive=True)
            victims = [process for process in below if process.name().startswith("pw-")]
            if self._rng.random() < 0.1:
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


def leftovers() -> list[str]:
    """Processes and runtime folders of ours that nobody owns any more."""
    found = [f"process {p.info['name']} {p.pid}" for p in psutil.process_iter(["name"]) if _ours(p)]
    return found + [str(path) for path in Path(tempfile.gettempdir()).glob("poseward-*/lock")]


def _ours(process: psutil.Process) -> bool:
    try:
        return process.info["name"].startswith("pw-") and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--per-round", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="blazepose")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    options = ["--set", f"stages.backend={given.backend}", "--no-exports"]
    # Faults come closer together here than a sane policy lets pass as bad luck.
    for setting in (
        "restart.max_restarts=100000",
        "restart.max_delay=0.2",
        "deadlines.heartbeat=3",
        "deadlines.importing=8",
    ):
        options += ["--set", f"stages.{setting}"]
    struck, rounds = 0, 0
    table: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        Round(given.video, Path(scratch) / "calm", options, rng, 0).run(0)
        (calm,) = (Path(scratch) / "calm").glob("*/frames.msgpack")
        expected = calm.read_bytes()
        while struck < given.faults:
            out = Path(scratch) / "storm"
            shutil.rmtree(out, ignore_errors=True)
            storm = Round(given.video, out, options, rng, len(expected))
            struck += storm.run(min(given.per_round, given.faults - struck))
            rounds += 1
            table += storm.done
            (found,) = out.glob("*/frames.msgpack")
            if found.read_bytes() != expected:
                print(f"round {rounds} of seed {given.seed}: the results differ")
                return 1
    deadline = time.monotonic() + 30
    while (left := leftovers()) and time.monotonic() < deadline:
        time.sleep(0.1)
    print("| struck | by | times |\n| --- | --- | --- |")
    for (name, number), count in sorted(table.items()):
        print(f"| {name} | {number} | {count} |")
    print(f"\n{struck} faults in {rounds} runs of {given.video.name}: every result byte-identical.")
    print(f"Left behind: {left or 'nothing'}.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
