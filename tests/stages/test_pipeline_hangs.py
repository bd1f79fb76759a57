"""Hangs of every kind, and slow work that is none, through the whole pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stages.owner.jobs import JobDone
from supervisor.spec import Deadlines
from tests.stages.harness import FAST, Run, results_of, write_squares

FRAMES = 40
IMPATIENT = replace(FAST, deadlines=Deadlines(working=2.0, heartbeat=3.0, grace=0.5))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("clips") / "squares.mp4", FRAMES)


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    with Run() as run:
        run.work(clip, folder)
        assert isinstance(run.finish(), JobDone), run.story()
    return results_of(folder)


@pytest.mark.parametrize(
    "fault", ["decode:hang@9", "mesh:hang@13", "track:hang@20", "detect:hang-gil@17", "track:hang-gil@20"]
)
def test_a_hang_is_found_out_with_its_stack_and_changes_nothing(
    fault: str, clip: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    stage = fault.partition(":")[0]
    with Run(IMPATIENT, faults=(fault,)) as run:
        run.work(clip, tmp_path)
        done = run.finish()
        last = run.pipeline.status()["processes"][stage].last_exit
    assert isinstance(done, JobDone), run.story()
    assert [(death["process"], death["kind"]) for death in done.outcome.restarts] == [(stage, "hung")]
    assert last is not None
    assert last.stack_dump is not None
    assert "_fire" in last.stack_dump  # where it hung
    assert results_of(tmp_path) == undisturbed


def test_slow_work_is_not_a_hang_until_its_deadline(clip: Path, undisturbed: bytes, tmp_path: Path) -> None:
    with Run(IMPATIENT, faults=("mesh:slow=0.7@5", "detect:slow=0.7@12", "mesh:slow=100@20x1")) as run:
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    ((kind, reason),) = [(death["kind"], death["reason"]) for death in done.outcome.restarts]
    assert kind == "hung"
    assert "deadlines.working" in reason
    assert results_of(tmp_path) == undisturbed


def test_a_batch_may_take_longer_than_the_deadline_if_its_backend_says_that_it_goes_on(tmp_path: Path) -> None:
    """A large network on a CPU takes a minute for a frame; the deadline is one on silence, not on work."""
    settings = replace(
        IMPATIENT,
        backend="tests.stages.slow_blocks",
        options={"seconds": 1.2},
        detect=replace(FAST.detect, batch=6),
    )
    clip = write_squares(tmp_path / "short.mp4", 8)
    with Run(settings) as run:
        run.work(clip, tmp_path / "results")
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert not done.outcome.restarts and not done.outcome.failed_frames
