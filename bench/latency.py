"""What the way through the daemon costs a single image: the API call beside the same networks in one process.

    python -m bench.latency IMAGE VIDEO [--calls 40] [--backend blazepose]

In one run and in turns: the image through a warm daemon that is idle, through one that works on a long video at the
same time, and through detector, regressor and tracker called directly in this process. Prints medians, 90th
percentiles and the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.memory import repeat
from daemon.client import Client
from stages.protocols import find_backend
from stages.records import Frame

MAIN = "from daemon.cli import main; main()"


def direct(backend_name: str, data: bytes) -> Callable[[], int]:
    """The networks in this process: from the file's bytes to the people in it."""
    backend = find_backend(backend_name)

    def quiet(_detail: str, _fraction: float | None = None) -> None:
        pass

    detector, mesh = backend.detector({}, quiet), backend.mesh({}, quiet)

    def call() -> int:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        frames = [Frame(image, 0, 0.0)]
        people = mesh.regress(frames, detector.detect(frames))[0]
        tracker = backend.tracker({}, image.shape[1], image.shape[0], 1.0)
        return sum(len(record.tracks) for record in [*tracker.update(0, 0.0, people), *tracker.finish()])

    return call


def timed(call: Callable[[], object], calls: int) -> list[float]:
    """Seconds of each call, after one that does not count."""
    call()
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


@contextlib.contextmanager
def daemon(base: Path, backend: str):  # type: ignore[no-untyped-def]
    """A daemon of its own, and a client of it."""
    address = f"ipc://{base / 'api.sock'}"
    sets = [
        f"daemon.state={base / 'state'}", f"results.folder={base / 'results'}", f"api.address={address}",
        f'api.roots=["{base}"]', f"stages.backend={backend}", "results.exports=[]", "daemon.log_level=error",
    ]  # fmt: skip
    flags = [part for item in sets for part in ("--set", item)]
    process = subprocess.Popen([sys.executable, "-c", MAIN, "serve", *flags], stderr=subprocess.DEVNULL)
    try:
        with Client(address, patience=120.0) as client:
            while not client.health()["ready"]:
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--backend", default="blazepose")
    given = parser.parse_args()
    data = given.image.read_bytes()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="pwl-") as scratch:
        base = Path(scratch)
        clip = base / "long.mp4"
        repeat(given.video, clip, 100_000 if given.backend != "blazepose" else 3000)
        with daemon(base, given.backend) as client:
            alone = direct(given.backend, data)

            def asked() -> object:
                return client.image(data)

            # In turns, so that a machine that is slow for a while is slow for both.
            for _ in range(4):
                rows.setdefault("in one process", []).extend(timed(alone, given.calls // 4))
                rows.setdefault("daemon, idle", []).extend(timed(asked, given.calls // 4))
            job = client.submit(clip)["id"]
            while client.status(job).get("progress", {}).get("committed", 0) < 20:
                time.sleep(0.1)
            for _ in range(4):
                rows.setdefault("daemon, with a video in work", []).extend(timed(asked, given.calls // 4))
                rows.setdefault("in one process, beside that", []).extend(timed(alone, given.calls // 4))
            assert client.status(job)["state"] == "running", "the video was too short for a measurement"
            client.cancel(job)
    table = Table(title=f"one image, {given.backend}, ms")
    for column in ("", "median", "90 %", "ratio of medians"):
        table.add_column(column, justify="right" if column else "left")
    for name, times in rows.items():
        base_row = rows["in one process, beside that" if "video" in name or "beside" in name else "in one process"]
        table.add_row(
            name,
            f"{np.median(times) * 1000:.1f}",
            f"{np.percentile(times, 90) * 1000:.1f}",
            f"{np.median(times) / np.median(base_row):.2f}",
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
