"""The long test of the daemon: files and submissions by the hundred while everything is killed.

    python -m tests.storm [--files 1000] [--clients 20] [--each 10] [--kills 60] [--seed 1]

Drops files into the drop folder and submits jobs from many clients at once, kills stages and the daemon itself
meanwhile (and starts it again, as systemd would), and then looks at every job: each must have ended in exactly one
final state, with whole results where it is done, and each dropped file must lie in exactly one place.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from daemon.client import ClientError
from daemon.jobs.store import JobStore, StoredJob
from stages.results import read_results
from tests.daemon.daemons import PATIENCE, Daemon, until
from tests.stages.harness import write_squares

LENGTHS = (3, 4, 5, 6)


@dataclass
class Tally:
    """What was done and what came of it."""

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    states: collections.Counter[str] = field(default_factory=collections.Counter)
    reused: int = 0
    frames: int = 0
    seconds: float = 0.0


def clips(folder: Path) -> list[Path]:
    """A few short clips; what is dropped and submitted are copies, some with bytes of their own at the end."""
    folder.mkdir()
    return [write_squares(folder / f"{length}.mp4", length) for length in LENGTHS]


def storm(base: Path, files: int, clients: int, each: int, kills: int, seed: int) -> Tally:
    """Run it; raises AssertionError where a promise was broken."""
    rng = random.Random(seed)
    tally, began = Tally(), time.monotonic()
    originals = clips(base / "clips")
    inbox = base / "inbox"
    with Daemon(base, f"drop.folder={inbox}", "drop.settle=0.3") as daemon:
        until(lambda: (inbox / "failed").is_dir(), "the drop folder")
        submitted: dict[str, str] = {}
        threads = [threading.Thread(target=drop, args=(inbox, originals, files, seed))]
        for number in range(clients):
            work = (daemon, base, originals, number, each, submitted)
            threads.append(threading.Thread(target=submit, args=work))
        for thread in threads:
            thread.start()
        strike(daemon, kills, rng, tally, lambda: any(thread.is_alive() for thread in threads))
        for thread in threads:
            thread.join(PATIENCE)
        wait_for_end(daemon, inbox, files)
        daemon.stop()
    check(base, inbox, files, clients * each, submitted, tally)
    tally.seconds = time.monotonic() - began
    return tally


def drop(inbox: Path, originals: list[Path], files: int, seed: int) -> None:
    """Every fifth file is not a video, and one in ten is the same content as another."""
    rng = random.Random(seed + 1)
    for number in range(files):
        data = rng.choice(originals).read_bytes()
        if number % 5 == 4:
            data = b"not a video %d" % number
        elif number % 10:
            # A box that players skip: another content, the same frames.
            data += (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
        (inbox / f"dropped {number}.mp4").write_bytes(data)


def submit(
    daemon: Daemon, base: Path, originals: list[Path], number: int, each: int, submitted: dict[str, str]
) -> None:
    """One client; every submission may be repeated, since it has a key."""
    rng = random.Random(number)
    with daemon.client(600.0) as client:
        for turn in range(each):
            key = f"client-{number}-{turn}"
            path = rng.choice(originals)
            job = client.submit(path, key=key, recompute=turn % 2 == 0, priority=rng.randint(-5, 5))
            assert submitted.setdefault(key, job["id"]) == job["id"]
            if turn % 3 == 0:
                again = client.submit(path, key=key)
                assert again["id"] == job["id"], "one key, two jobs"


def strike(daemon: Daemon, kills: int, rng: random.Random, tally: Tally, busy: Any) -> None:
    """Kill stages, fork servers and, now and then, the daemon."""
    for _ in range(kills):
        threading.Event().wait(rng.uniform(0.05, 0.5))
        if rng.random() < 0.1:
            daemon.kill()
            tally.kills["daemon"] += 1
            daemon.start(wait=False)
            continue
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            victims = [process for process in daemon.below() if process.name().startswith("pw-")]
            if victims:
                victim = rng.choice(victims)
                name = victim.name().removeprefix("pw-")
                os.kill(victim.pid, rng.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)))
                tally.kills[name] += 1


def wait_for_end(daemon: Daemon, inbox: Path, files: int) -> None:
    def over() -> bool:
        assert daemon.process is not None and daemon.process.poll() is None, daemon.story()
        try:
            with daemon.client(20.0) as client:
                counts = client.list(limit=1)["counts"]
        except ClientError:
            return False
        placed = sum(1 for where in ("done", "failed") for _ in (inbox / where).glob("*.mp4"))
        return counts["queued"] + counts["running"] == 0 and placed == files

    until(over, "the end of all jobs", 20 * PATIENCE)


def check(base: Path, inbox: Path, files: int, asked: int, submitted: dict[str, str], tally: Tally) -> None:
    """Every promise, job by job."""
    store = JobStore(base / "state")
    jobs = store.jobs(limit=1_000_000)
    assert len(jobs) == files + asked == len({job.id for job in jobs}), f"{len(jobs)} jobs of {files + asked}"
    assert {job.client_key: job.id for job in jobs if job.client_key} == submitted
    digests: dict[str, set[str]] = collections.defaultdict(set)
    for job in jobs:
        assert job.state.final, job
        tally.states[job.state.value] += 1
        tally.reused += job.same_as is not None
        if job.name.startswith("dropped"):
            where = "failed" if int(job.name.split()[1].split(".")[0]) % 5 == 4 else "done"
            assert (inbox / where / job.name).is_file(), (
                f"{job.name} is not in {where}/: {job.error} {job.message}"
            )
            assert job.state.value == where, job
        if job.state.value == "done":
            tally.frames += _check_results(job, digests)
    assert all(len(found) == 1 for found in digests.values()), "the same video gave different bytes"
    owners = [job.results for job in jobs if job.results and job.same_as is None]
    assert len(owners) == len(set(owners)), "two jobs share a results folder"
    left = [path for path in (base / "results").iterdir() if path.name.endswith(".poseward-work")]
    assert not left, f"left behind: {left}"
    assert set(os.listdir(inbox / ".claimed")) == {".lock"}
    store.close()


def _check_results(job: StoredJob, digests: dict[str, set[str]]) -> int:
    assert job.results is not None
    path = Path(job.results) / "frames.msgpack"
    with read_results(path) as results:
        frames = [record.frame for record in results]
    assert frames == list(range(len(frames))) and len(frames) in LENGTHS and len(frames) == job.frames, job
    digests[str(len(frames))].add(hashlib.sha256(path.read_bytes()).hexdigest())
    return len(frames)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--each", type=int, default=10, help="submissions of each client")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "storm"
        base.mkdir()
        found = storm(base, given.files, given.clients, given.each, given.kills, given.seed)
    print(f"{given.files} files dropped, {given.clients * given.each} jobs submitted by {given.clients} clients")
    print(f"killed: {', '.join(f'{name} {count}' for name, count in sorted(found.kills.items()))}")
    print(
        f"ended: {dict(found.states)}; {found.reused} were offered earlier results; {found.frames} frames checked"
    )
    print(f"every job ended once, nothing missing, nothing doubled; {found.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
