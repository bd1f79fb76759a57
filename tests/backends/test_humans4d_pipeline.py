"""The 4D-Humans backend through real stage processes, each with the interpreter that has its packages.

``POSEWARD_HUMANS4D_PYTHON`` names an interpreter with torch and the packages, ``POSEWARD_HUMANS4D_PATH`` what its
PYTHONPATH must hold besides (checkouts); without, the tests' own interpreter is tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import joblib
import pytest

from bench.memory import repeat
from daemon.exports import export
from stages.backends.humans4d.pickle import KEYS
from stages.owner.jobs import JobDone
from stages.results import read_results
from stages.settings import PipelineSettings, StageSettings
from supervisor.spec import Deadlines, RestartPolicy
from tests.daemon.daemons import MAIN, Daemon
from tests.paths import ROOT
from tests.stages.harness import Run, results_of

pytestmark = pytest.mark.humans4d

VIDEO = ROOT.parent / "shared" / "data" / "runner.mp4"
PYTHON = os.environ.get("POSEWARD_HUMANS4D_PYTHON", sys.executable)
PATH = os.pathsep.join([str(ROOT), os.environ.get("POSEWARD_HUMANS4D_PATH", "")]).strip(os.pathsep)
FRAMES = 14


def child(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    return subprocess.run([PYTHON, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PipelineSettings:
    if not VIDEO.is_file():
        pytest.skip("needs ../shared/data/runner.mp4")
    wanted = "import torch, hmr2, phalp, detectron2, zmq, msgpack, psutil"
    if (found := child("-c", wanted)).returncode:
        pytest.skip(f"{PYTHON} lacks a package: {found.stderr.strip().splitlines()[-1]}")
    written = child("-m", "tests.backends.humans4d_small", str(tmp_path_factory.mktemp("weights")))
    assert written.returncode == 0, written.stderr
    options: dict[str, Any] = json.loads(written.stdout.splitlines()[-1])
    stage = StageSettings(python=PYTHON, env={"PYTHONPATH": PATH}, batch=2)
    return PipelineSettings(
        backend="tests.backends.humans4d_small",
        options=options,
        slots=6,
        ring_mb=64,
        snapshot_every=5,
        decode=StageSettings(),
        detect=stage,
        mesh=stage,
        track=stage,
        deadlines=Deadlines(importing=300, loading=300, warming=300, working=300),
        restart=RestartPolicy(base_delay=0.01, max_delay=0.1, max_restarts=100),
    )


@pytest.mark.timeout(1200)
def test_a_clip_through_the_processes_while_they_are_killed(settings: PipelineSettings, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    repeat(VIDEO, clip, FRAMES)
    outcomes = {}
    for name, faults in (("calm", ()), ("storm", ("detect:segv@4", "mesh:kill@6", "mesh:oom@9", "track:kill@11"))):
        with Run(replace(settings, faults=faults)) as run:
            run.work(clip, tmp_path / name, name)
            ended = run.finish(name)
            assert isinstance(ended, JobDone), f"{ended}\n{run.story()}"
            outcomes[name] = ended.outcome
    assert {death["kind"] for death in outcomes["storm"].restarts} >= {"killed by signal"}
    assert results_of(tmp_path / "calm") == results_of(tmp_path / "storm")
    assert outcomes["calm"].frames == FRAMES and not outcomes["calm"].failed_frames
    with read_results(tmp_path / "storm" / "frames.msgpack") as results:
        assert results.header.backend == "humans4d"
        tracks = [track for record in results for track in record.tracks]
    assert tracks and all(track.vertices is not None and track.vertices.shape == (6890, 3) for track in tracks)
    made = export("tracks", clip, tmp_path / "storm" / "frames.msgpack", tmp_path, options=settings.options)
    stored = joblib.load(made)
    assert len(stored) == FRAMES and all(tuple(frame) == KEYS for frame in stored.values())
    assert sum(len(frame["tid"]) for frame in stored.values()) >= len(tracks)


@pytest.mark.timeout(1200)
def test_the_small_profile_through_the_processes(settings: PipelineSettings, tmp_path: Path) -> None:
    """Its half precision as far as a CPU has it; the tracker, which has no backbone, takes part unchanged."""
    clip = tmp_path / "clip.mp4"
    repeat(VIDEO, clip, 6)
    options = {**settings.options, "profile": "8gb", "dtype": "bf16"}
    with Run(replace(settings, options=options)) as run:
        run.work(clip, tmp_path / "results", "small")
        ended = run.finish("small")
    assert isinstance(ended, JobDone), f"{ended}\n{run.story()}"
    assert ended.outcome.frames == 6 and not ended.outcome.failed_frames and not ended.outcome.restarts
    with read_results(tmp_path / "results" / "frames.msgpack") as results:
        assert any(record.tracks for record in results)


@pytest.mark.timeout(1800)
def test_an_image_and_short_clips_give_their_people_through_every_way_in(
    settings: PipelineSettings, tmp_path: Path
) -> None:
    """PHALP confirms a track after five frames: what has fewer would have nobody in it."""
    own = {"stages.options." + name: value for name, value in settings.options.items()}
    for stage in ("detect", "mesh", "track"):
        own |= {f"stages.{stage}.python": PYTHON, f"stages.{stage}.env.PYTHONPATH": PATH}
    own |= {f"stages.deadlines.{phase}": 300 for phase in ("importing", "loading", "warming", "working")}
    own |= {"stages.max_pixels": 4_000_000, "stages.ring_mb": 128, "api.roots": [str(tmp_path)]}
    sets = [f"{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in own.items()]
    picture = tmp_path / "picture.jpg"
    with av.open(str(VIDEO)) as container:
        frame = next(iter(container.decode(video=0)))
        assert cv2.imwrite(str(picture), frame.to_ndarray(format="bgr24"))
    with Daemon(tmp_path / "daemon", *sets, backend=settings.backend) as daemon, daemon.client() as client:
        record, header = client.image(picture.read_bytes())
        alone = [track.box.tolist() for track in record.tracks]
        assert alone and header.backend == "humans4d"
        for length in (0, 1, 2, 4, 5):
            source = picture
            if length:
                repeat(VIDEO, source := tmp_path / f"clip{length}.mp4", length)
            job = client.submit(source)
            ended = client.wait(job["id"], 900.0)
            assert ended["state"] == "done", ended
            folder = daemon.results / ended["folder"]
            with read_results(folder / "frames.msgpack") as results:
                people = [[track.box.tolist() for track in record.tracks] for record in results]
            assert len(people) == (length or 1) and all(people), (length, people)
            if not length:
                assert people == [alone]
            told = json.loads((folder / "summary.json").read_text())["versions"]
            assert "torch" in told and "timm" in told
    arguments = [part for item in (*sets, f"stages.backend={settings.backend}") for part in ("--set", item)]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "run", "-o", str(tmp_path / "run"), *arguments, str(picture)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "run").rglob("frames.msgpack")
    with read_results(found) as results:
        assert [[track.box.tolist() for track in record.tracks] for record in results] == [alone]
