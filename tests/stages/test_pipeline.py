"""The four processes together, on a fast backend: order, recovery, isolation, nothing left behind."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from stages.owner.jobs import JobDone, JobFailed
from stages.results import read_results
from stages.settings import StageSettings
from tests.stages.clips import write_clip
from tests.stages.harness import FAST, Run, descendants, results_of, write_squares

FRAMES = 60


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


def test_every_frame_is_in_the_results_once_and_in_order(undisturbed: bytes, tmp_path: Path) -> None:
    (tmp_path / "frames.msgpack").write_bytes(undisturbed)
    with read_results(tmp_path / "frames.msgpack") as results:
        records = list(results)
    assert [record.frame for record in records] == list(range(FRAMES))
    assert all(len(record.tracks) == 2 for record in records)
    assert records[3].time == pytest.approx(0.1)


def test_the_outcome_counts_what_happened(clip: Path, tmp_path: Path) -> None:
    with Run() as run:
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    outcome = done.outcome
    assert (outcome.frames, outcome.people, outcome.tracks) == (FRAMES, 2 * FRAMES, 2)
    assert not outcome.failed_frames
    assert not outcome.restarts
    assert set(outcome.seconds) == {"decode", "detect", "mesh", "track"}


@pytest.mark.parametrize("stage", ["decode", "detect", "mesh", "track"])
def test_a_stage_killed_in_the_middle_changes_nothing(
    stage: str, clip: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    slow = replace(FAST, faults=("mesh:slow=0.02%1.0/1",))
    with Run(slow) as run:
        run.work(clip, tmp_path)
        for mark in (7, 31):
            run.until(lambda mark=mark: run.committed() >= mark and run.ready(stage), f"frame {mark}")  # type: ignore[misc]
            run.kill(stage)
            run.until(lambda: not run.ready(stage), "the death noticed")
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert len(done.outcome.restarts) == 2
    assert results_of(tmp_path) == undisturbed


def test_chaos_leaves_the_results_byte_identical(clip: Path, undisturbed: bytes, tmp_path: Path) -> None:
    rng = random.Random(20261123)
    slow = replace(FAST, faults=("mesh:slow=0.02%1.0/1",))
    with Run(slow) as run:
        run.work(clip, tmp_path)
        kills = 0
        while run.ended("clip") is None and kills < 12:
            # A frame that three deaths meet is poison by definition. Eight are in flight at most, so with five
            # commits between two kills no frame can be there for three.
            goal = run.committed() + rng.randint(5, 8)
            run.until(lambda goal=goal: run.committed() >= goal or run.ended("clip") is not None)  # type: ignore[misc]
            victim = rng.choice(["decode", "detect", "mesh", "track"])
            if run.ended("clip") is None and run.pid(victim) is not None:
                run.kill(victim, rng.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM]))
                kills += 1
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert kills >= 5
    assert results_of(tmp_path) == undisturbed


@pytest.mark.parametrize(
    "fault",
    [
        "detect:raise@11", "mesh:raise@0", "decode:raise@20", "track:raise@20", "mesh:kill@13",
        "decode:segv@9", "detect:hang@17", "mesh:oom@21", "mesh:corrupt@22", "detect:corrupt@5", "decode:corrupt@6",
        "track:kill@59",
    ],
)  # fmt: skip
def test_a_fault_that_fires_once_changes_nothing(
    fault: str, clip: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    with Run(faults=(fault,)) as run:
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert run.said("died") or run.said("batch shrunk") or run.said("corrupt message"), run.story()
    assert results_of(tmp_path) == undisturbed


@pytest.mark.parametrize("stage", ["decode", "detect", "mesh", "track"])
def test_a_poisonous_frame_is_skipped_by_name_and_the_others_get_through(
    stage: str, clip: Path, tmp_path: Path
) -> None:
    with Run(faults=(f"{stage}:kill@14xalways",)) as run:
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    ((frame, failure),) = done.outcome.failed_frames
    assert (frame, failure.stage) == (14, stage)
    assert "SIGKILL" in failure.reason
    assert len(done.outcome.restarts) == 3
    with read_results(tmp_path / "frames.msgpack") as results:
        records = list(results)
    assert [record.frame for record in records] == list(range(FRAMES))
    assert [record.frame for record in records if record.failed] == [14]
    assert [len(record.tracks) for record in records if not record.failed] == [2] * (FRAMES - 1)


def test_a_frame_that_decode_skips_keeps_its_own_time(tmp_path: Path) -> None:
    stamps = [0, 1, 5, 6, 14, 15, 16, 30, 31, 40, 41, 42, 50, 60, 61, 62, 70, 71, 90, 100]
    varying = write_clip(tmp_path / "varying.mp4", len(stamps), stamps=stamps, time_base=Fraction(1, 100))
    with Run(faults=("decode:kill@7xalways",)) as run:
        run.work(varying, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert [frame for frame, _ in done.outcome.failed_frames] == [7]
    with read_results(tmp_path / "frames.msgpack") as results:
        assert [record.time for record in results] == pytest.approx([stamp / 100 for stamp in stamps])


def test_where_two_frames_in_a_row_kill_the_decoder_it_goes_on_at_the_next_key_frame(
    clip: Path, tmp_path: Path
) -> None:
    with Run(faults=("decode:kill@14xalways", "decode:kill@15xalways")) as run:  # key frames are 0, 12, 24, …
        run.work(clip, tmp_path)
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert [frame for frame, _ in done.outcome.failed_frames] == list(range(14, 24))
    assert "builds on frame 15" in done.outcome.failed_frames[-1][1].reason
    assert len(done.outcome.restarts) == 6
    with read_results(tmp_path / "frames.msgpack") as results:
        assert [record.frame for record in results] == list(range(FRAMES))


def test_too_many_failed_frames_fail_the_job_and_the_next_one_runs(clip: Path, tmp_path: Path) -> None:
    faults = tuple(f"mesh:raise@{frame}xalways" for frame in range(3, 9))
    with Run(faults=faults, max_failed_fraction=0.05) as run:
        run.work(clip, tmp_path / "a", "a")
        failed = run.finish("a")
        assert isinstance(failed, JobFailed)
        assert failed.error == "too-many-failed-frames"
        assert "max_failed_fraction" in failed.message


def test_an_unreadable_file_fails_by_name_and_the_next_job_runs(clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("this is no video")
    with Run() as run:
        run.work(broken, tmp_path / "a", "a")
        run.work(clip, tmp_path / "b", "b")
        failed = run.finish("a")
        done = run.finish("b")
    assert isinstance(failed, JobFailed)
    assert "broken.mp4" in failed.message
    assert isinstance(done, JobDone)


def test_a_job_continues_from_its_journal_in_another_life(clip: Path, undisturbed: bytes, tmp_path: Path) -> None:
    slow = replace(FAST, faults=("mesh:slow=0.02%1.0/1",))
    with Run(slow) as first:
        first.work(clip, tmp_path)
        first.until(lambda: first.committed() >= 25, "25 frames")
    with Run() as second:
        second.work(clip, tmp_path)
        done = second.finish()
    assert isinstance(done, JobDone), second.story()
    assert done.outcome.source["frames"] == FRAMES
    assert results_of(tmp_path) == undisturbed


def test_an_urgent_image_goes_ahead_of_a_running_video(clip: Path, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[20:60, 20:60] = 255
    assert cv2.imwrite(str(image), picture)
    slow = replace(FAST, faults=("mesh:slow=0.05%1.0/1",))
    with Run(slow) as run:
        run.work(clip, tmp_path / "video", "video")
        run.until(lambda: run.committed() >= 5, "the video under way")
        run.work(image, tmp_path / "image", "image", urgent=True)
        done = run.finish("image")
        assert run.ended("video") is None
        assert isinstance(done, JobDone)
        assert done.outcome.people == 1
        assert isinstance(run.finish("video"), JobDone)


def test_an_image_does_not_wait_for_the_frames_that_are_in_the_pipes(clip: Path, tmp_path: Path) -> None:
    """Of a video whose frames take long, only those that are being worked on come before it."""
    image = tmp_path / "one.png"
    assert cv2.imwrite(str(image), np.full((100, 100, 3), 255, np.uint8))
    one = StageSettings(batch=1)
    slow = replace(FAST, slots=12, pipe_depth=2, detect=one, mesh=one, faults=("mesh:slow=0.2%1.0/1",))
    with Run(slow) as run:
        run.work(clip, tmp_path / "video", "video")
        run.until(lambda: run.committed() >= 5, "the video under way")
        before = run.committed()
        run.work(image, tmp_path / "image", "image", urgent=True)
        run.finish("image")
        between = run.committed() - before
    assert between <= 5, f"{between} frames of {slow.slots} in flight came first"


def test_replicas_keep_the_order_also_when_one_of_them_dies(
    clip: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    with Run(replace(FAST, faults=("mesh:slow=0.02%0.5/3",)), mesh=StageSettings(batch=2, replicas=3)) as run:
        run.work(clip, tmp_path)
        run.until(lambda: run.committed() >= 10, "10 frames")
        run.kill("mesh.1")
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert results_of(tmp_path) == undisturbed


def test_a_cancelled_job_frees_its_frames(clip: Path, tmp_path: Path) -> None:
    with Run(replace(FAST, faults=("mesh:slow=0.05%1.0/1",))) as run:
        run.work(clip, tmp_path / "a", "a")
        run.until(lambda: run.committed() >= 5, "5 frames")
        run.pipeline.cancel("a")
        run.work(clip, tmp_path / "b", "b")
        assert isinstance(run.finish("b"), JobDone), run.story()
    assert run.ended("a") is None


@pytest.mark.parametrize("stage", ["mesh", "track"])
def test_a_backend_that_cannot_load_fails_the_job_in_seconds(stage: str, clip: Path, tmp_path: Path) -> None:
    with Run(backend="tests.stages.unloadable", options={"lacks": stage}) as run:
        # Without a job: what a stage lacks is found when it starts, not by the first user.
        run.until(lambda: run.pipeline.status()["processes"][stage].last_exit is not None, "the end of the stage")
        run.work(clip, tmp_path)
        failed = run.finish()
    assert isinstance(failed, JobFailed)
    assert failed.error == "configuration-error"
    assert "weights.bin" in failed.message


def test_closing_leaves_no_process_and_no_folder(clip: Path, tmp_path: Path) -> None:
    before = {process.pid for process in descendants()}
    with Run() as run:
        run.work(clip, tmp_path)
        run.until(lambda: run.committed() >= 3, "3 frames")
        runtime = run.pipeline._runtime
        assert runtime.exists()
    assert not runtime.exists()
    left = [p for p in descendants() if p.pid not in before and p.status() != psutil.STATUS_ZOMBIE]
    assert not left
