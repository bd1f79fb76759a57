"""Memory that really runs out, through the whole pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from stages.owner.jobs import JobDone
from stages.settings import StageSettings
from tests.stages.harness import FAST, Run, results_of, write_squares

FRAMES = 40
ROOM_MB = 160
"""Address space above what a loaded stage uses: less than the fault ``memory`` would allow itself."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("clips") / "squares.mp4", FRAMES)


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The results, and the largest address space of a stage in MB."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Run(replace(FAST, faults=("mesh:slow=0.01%1.0/1",))) as run:
        run.work(clip, folder)
        run.until(lambda: run.committed() >= FRAMES // 2, "half of it")
        pids = [run.pid(stage) for stage in ("decode", "detect", "mesh", "track")]
        size = max(psutil.Process(pid).memory_info().vms for pid in pids)
        assert isinstance(run.finish(), JobDone), run.story()
    return results_of(folder), size >> 20


def limited(undisturbed: tuple[bytes, int], *faults: str) -> Run:
    """Every stage under a limit of address space that its work fits into."""
    tight = StageSettings(batch=3, address_space_mb=undisturbed[1] + ROOM_MB)
    return Run(faults=faults, decode=tight, detect=tight, mesh=tight, track=tight)


@pytest.mark.parametrize("stage", ["detect", "mesh"])
def test_a_batch_that_exhausts_memory_is_halved_and_nothing_else_happens(
    stage: str, clip: Path, undisturbed: tuple[bytes, int], tmp_path: Path
) -> None:
    with limited(undisturbed, f"{stage}:memory@30", f"{stage}:slow=0.02%1.0/1") as run:
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    (shrunk,) = run.said("batch shrunk")
    assert "to 1: MemoryError" in shrunk.message
    assert not done.outcome.restarts
    assert results_of(tmp_path) == undisturbed[0]


def test_exhaustion_by_one_frame_alone_restarts_the_process(
    clip: Path, undisturbed: tuple[bytes, int], tmp_path: Path
) -> None:
    with limited(undisturbed, "mesh:memory@30x2") as run:
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert [death["kind"] for death in done.outcome.restarts] == ["host out of memory"]
    assert not done.outcome.failed_frames
    assert results_of(tmp_path) == undisturbed[0]


@pytest.mark.parametrize("stage", ["decode", "track"])
def test_stages_without_batches_are_restarted_at_once(
    stage: str, clip: Path, undisturbed: tuple[bytes, int], tmp_path: Path
) -> None:
    with limited(undisturbed, f"{stage}:memory@17") as run:
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert [(death["process"], death["kind"]) for death in done.outcome.restarts] == [
        (stage, "host out of memory")
    ]
    assert results_of(tmp_path) == undisturbed[0]


@pytest.mark.parametrize(("fault", "kind"), [("memory", "host out of memory"), ("oom", "device out of memory")])
def test_a_frame_that_always_exhausts_memory_is_blamed_at_last(
    fault: str, kind: str, clip: Path, undisturbed: tuple[bytes, int], tmp_path: Path
) -> None:
    with limited(undisturbed, f"mesh:{fault}@14xalways") as run:
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert [death["kind"] for death in done.outcome.restarts] == [kind] * 3
    ((frame, failure),) = done.outcome.failed_frames
    assert (frame, failure.stage) == (14, "mesh")
    assert failure.reason.startswith(kind)
