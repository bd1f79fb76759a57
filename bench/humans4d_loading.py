"""Seconds and host memory of a model's start: from its checkpoint, and from the copy in the stage's precision.

    python -m bench.humans4d_loading [--megabytes 800] [--dtype bf16]

A made-up model of so many megabytes in fp32, stored as detectron2 stores its own (a pickle of numpy arrays), is loaded
on the CPU by a process of its own each time: as a stage does without copies, while the copy is made, and from it.
The pages of the file are as the system has them, in its cache. Prints one JSON line for each start; memory is the
most that the process had (VmHWM), over what it had before the load.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=800, help="of the checkpoint (default: 800)")
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="bf16", help="(default: bf16)")
    parser.add_argument("--load", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--copies", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        load(Path(given.load), given.dtype, given.copies)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pkl")
        layers = max(1, (given.megabytes << 20) // (4 * SIDE * SIDE))
        random = np.random.default_rng(0)
        weights = {f"{layer}.weight": random.random((SIDE, SIDE), np.float32) for layer in range(layers)}
        with path.open("wb") as file:
            pickle.dump({"model": weights}, file, 4)
        del weights
        for what, copies in (("as it is stored", False), ("the copy is made", True), ("from the copy", True)):
            done = subprocess.run(
                [sys.executable, "-m", "bench.humans4d_loading", "--load", str(path), "--dtype", given.dtype,
                 *(["--copies"] if copies else [])],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            print(json.dumps({"what": what, **json.loads(done.stdout)}), flush=True)


def load(path: Path, dtype: str, copies: bool) -> None:
    """One start; prints what it took."""
    torch = import_module("torch")
    from stages.backends.humans4d import converted, detect, devices
    from stages.backends.humans4d.options import Options

    options = Options.from_mapping({"dtype": dtype, "converted": copies})
    layers = max(1, path.stat().st_size // (4 * SIDE * SIDE))
    with devices.without_initialisation(), torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(SIDE, SIDE, bias=False) for _ in range(layers)))
    before, started = memory("VmRSS"), time.perf_counter()
    devices.load_state(
        model, converted.state_of(path, options, partial(detect.read_weights, path)), options, quiet, source=path,
        half=devices.halved(model), may_lack=lambda name: False, keep=partial(converted.keep, path, options),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    said = {"seconds": round(seconds, 2), "peak_mb": memory("VmHWM") - before}
    # What the first pass has to read of a mapped file is part of the start.
    started = time.perf_counter()
    for value in model.parameters():
        value.sum()
    print(json.dumps({**said, "first_touch_seconds": round(time.perf_counter() - started, 2)}))


def quiet(detail: str, fraction: float | None = None) -> None:
    del detail, fraction


def memory(name: str) -> int:
    """Megabytes, of ``/proc/self/status``."""
    lines: list[Any] = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return next(int(line[1]) >> 10 for line in lines if line[0] == f"{name}:")


if __name__ == "__main__":
    main()
