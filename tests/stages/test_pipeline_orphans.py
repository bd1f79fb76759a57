"""The owner of a pipeline is killed: nothing of it may stay, whatever its processes are doing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.paths import ROOT
from tests.stages.harness import PATIENCE, write_squares

OWNER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from tests.stages.harness import FAST, Run
from supervisor.spec import Deadlines

clip, folder, fault = sys.argv[1:]
settings = replace(FAST, faults=(fault,), deadlines=Deadlines(working=600, heartbeat=600))
with Run(settings) as run:
    run.work(Path(clip), Path(folder))
    run.until(lambda: run.committed() >= 10)
    states = run.pipeline.status()["processes"].values()
    print(json.dumps([str(run.pipeline._runtime), [state.pid for state in states]]), flush=True)
    while True:
        run.pipeline.step(1.0)
"""


@pytest.mark.parametrize("doing", ["mesh:slow=0.05%1.0/1", "track:hang-gil@18", "detect:hang@18", "stopped"])
def test_a_pipeline_whose_owner_is_killed_leaves_nothing(doing: str, tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "squares.mp4", 60)
    fault = "mesh:slow=0.05%1.0/1" if doing == "stopped" else doing
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(clip), str(tmp_path / "job"), fault],
        stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert owner.stdout is not None
    runtime, pids = json.loads(owner.stdout.readline())
    below = psutil.Process(owner.pid).children(recursive=True)
    assert {child.pid for child in below} > set(pids)  # fork servers and the janitor besides
    if doing == "stopped":  # neither a stopped stage nor a stopped fork server can do anything for itself
        for child in below:
            if child.name().startswith("pw-"):
                os.kill(child.pid, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + PATIENCE
    while Path(runtime).exists() or any(alive(child) for child in below):
        assert time.monotonic() < deadline, [child for child in below if alive(child)]
        time.sleep(0.02)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
