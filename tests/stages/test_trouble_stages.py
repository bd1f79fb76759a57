"""What stages do after work that failed by name: they are not busy, hold no lock, and leave at once when asked to."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from stages.owner.jobs import Job, JobDone, JobFailed
from stages.results.stream import ResultsWriteError, ResultWriter, read_results
from supervisor.spec import Deadlines
from tests.stages.harness import FAST, Run, results_of, write_squares
from tests.stages.test_pipeline_fold import commit, fold_in, whole

IMPATIENT = replace(FAST, deadlines=Deadlines(working=0.8, heartbeat=10.0, grace=2.0))


def deaths(run: Run) -> list[str]:
    return [event.message for event in run.said("died") if "stopped" not in event.message]


def wait(run: Run, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        run.pipeline.step(0.05)


def test_a_file_that_cannot_be_opened_leaves_nobody_busy(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video" * 100)
    with Run(IMPATIENT) as run:
        run.work(bad, tmp_path / "job")
        assert isinstance(run.finish(), JobFailed)
        wait(run, 2.5)
        assert run.pipeline.status()["processes"]["decode"].busy_seconds == 0
    assert not deaths(run), run.story()


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_folder_that_cannot_be_written_leaves_nobody_busy(when: str, tmp_path: Path) -> None:
    clip, folder = write_squares(tmp_path / "clip.mp4", 40), tmp_path / "job"
    folder.mkdir()
    if when == "at once":
        (folder / "journal.lock").mkdir()
    else:
        (folder / "snapshot-000000000010.part").mkdir()  # in the way of the snapshot at frame 10
        (folder / "snapshot-000000000010.part" / "file").touch()
    with Run(IMPATIENT) as run:
        run.work(clip, folder)
        ended = run.finish()
        assert isinstance(ended, JobFailed)
        assert ended.error == "cannot-write-results"
        wait(run, 2.5)
        assert run.pipeline.status()["processes"]["track"].busy_seconds == 0
        assert not deaths(run), run.story()
        run.work(clip, tmp_path / "other", "other")
        assert isinstance(run.finish("other"), JobDone)


def test_stages_leave_at_once_when_asked_to(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 10)
    with Run(replace(FAST, deadlines=Deadlines(grace=60.0))) as run:
        run.work(clip, tmp_path / "job")
        run.finish()
        asked = time.monotonic()
        run.pipeline.restart("mesh", "to see how long it takes")
        run.until(lambda: bool(run.said("died")))
        assert time.monotonic() - asked < 0.8


def test_a_result_that_cannot_travel_costs_its_frame_and_no_other(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 20)
    with Run(replace(FAST, backend="tests.stages.unfit_blocks")) as run:
        run.work(clip, tmp_path / "job")
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    (frame, failure), *others = done.outcome.failed_frames
    assert (frame, failure.stage, others) == (7, "mesh", [])
    assert "object cannot travel" in failure.reason


def test_what_could_not_be_folded_for_want_of_room_can_be_folded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(tmp_path / "calm", 30)
    fold = fold_in(tmp_path / "job")
    commit(fold, 0, 8)
    fold.close()
    with monkeypatch.context() as patched:

        def full(self: Any, record: Any) -> None:
            raise ResultsWriteError("no room")

        patched.setattr(ResultWriter, "append", full)
        with pytest.raises(ResultsWriteError):
            fold_in(tmp_path / "job")
    fold = fold_in(tmp_path / "job")  # and not: another process is working on this job
    commit(fold, 8, 30)
    fold.finish()
    assert results_of(tmp_path / "job") == expected


def test_a_fold_whose_results_cannot_be_closed_gives_its_journal_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = fold_in(tmp_path / "job")
    commit(fold, 0, 5)

    def refuse(self: Any) -> None:
        raise ResultsWriteError("no room")

    with monkeypatch.context() as patched, pytest.raises(ResultsWriteError):
        patched.setattr(ResultWriter, "close", refuse)
        fold.close()
    fold_in(tmp_path / "job").close()


STRANGE = os.fsdecode(b"vid\xff\n\x01 %d: \xe2\x82.mp4")


def test_names_that_are_no_text_are_names_of_files_nevertheless(tmp_path: Path) -> None:
    write_squares(tmp_path / "clip.mp4", 10).rename(tmp_path / STRANGE)
    broken = tmp_path / os.fsdecode(b"broken\xff.mp4")
    broken.write_bytes(b"no video")
    with Run() as run:
        run.work(tmp_path / STRANGE, tmp_path / os.fsdecode(b"job\xfe"))
        done = run.finish()
        assert isinstance(done, JobDone), run.story()
        run.work(broken, tmp_path / "other", "other")
        failed = run.finish("other")
        assert isinstance(failed, JobFailed)
        assert (failed.error, "broken\\udcff.mp4" in failed.message) == ("unreadable-video", True)
        (tmp_path / os.fsdecode(b"third\xfd")).touch()  # a file where the folder should be
        run.pipeline.submit(Job("third", str(tmp_path / STRANGE), str(tmp_path / os.fsdecode(b"third\xfd"))))
        failed = run.finish("third")
        assert isinstance(failed, JobFailed)
        assert (failed.error, "third\\udcfd" in failed.message) == ("cannot-write-results", True)
    assert not deaths(run), run.story()
    assert done.outcome.people == 20


def test_images_with_such_names_are_read_or_fail_by_number(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((50, 60, 3), 30 * number, np.uint8))
    (folder / "2.png").rename(folder / os.fsdecode(b"2\xff.png"))
    (folder / os.fsdecode(b"3\xff.png")).write_bytes(b"damaged")
    with Run() as run:
        run.work(folder, tmp_path / "job")
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert not deaths(run), run.story()
    assert done.outcome.frames == 7
    (frame, failure), *others = done.outcome.failed_frames
    assert (frame, others) == (4, [])
    assert "3\\udcff.png" in failure.reason
    with read_results(tmp_path / "job" / "frames.msgpack") as results:
        assert [record.frame for record in results] == list(range(7))
