"""Inputs that change while they are worked on, a loss of power, and what must stay bounded."""

from __future__ import annotations

import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import stages.owner.pipeline
from stages.owner.jobs import JobDone, JobFailed
from stages.owner.pipeline import REPLAYS_WITHOUT_PROGRESS, Pipeline
from stages.process.decode import MOST_FAILED
from stages.process.fold import SourceChangedError
from stages.results import read_results
from stages.source import Decoded, SourceInfo
from stages.transport.ring import RingError
from tests.stages.harness import FAST, Run, results_of, write_squares
from tests.stages.test_pipeline_fold import commit, fold_in, whole
from tests.stages.test_trouble_decode import PIPE, decode, turns

__all__ = ["decode"]
SLOWLY = ("mesh:slow=0.02%1.0/1",)


def test_a_video_that_was_replaced_by_another_fails_by_name(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 60)
    other = write_squares(tmp_path / "other.mp4", 40, size=(96, 80))
    with Run(faults=SLOWLY) as run:
        run.work(clip, tmp_path / "job")
        run.until(lambda: run.committed() > 5)
        os.replace(other, clip)
        run.kill("decode")
        failed = run.finish()
        assert isinstance(failed, JobFailed)
        assert failed.error == "source-changed"
        assert "40 frames of 96x80" in failed.message
        assert "60 frames of 160x120" in failed.message
        run.work(clip, tmp_path / "next", "next")
        assert isinstance(run.finish("next"), JobDone)


def test_also_where_the_pipeline_itself_was_gone_meanwhile(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 60)
    other = write_squares(tmp_path / "other.mp4", 40, size=(96, 80))
    with Run(faults=SLOWLY) as run:
        run.work(clip, tmp_path / "job")
        run.until(lambda: run.committed() > 5)
    kept = clip.read_bytes()
    os.replace(other, clip)
    with Run() as run:
        run.work(clip, tmp_path / "job")
        failed = run.finish()
        assert isinstance(failed, JobFailed)
        assert failed.error == "source-changed"
    clip.write_bytes(kept)
    with Run() as run:
        run.work(clip, tmp_path / "job")
        assert isinstance(run.finish(), JobDone)
        run.work(clip, tmp_path / "calm", "calm")
        assert isinstance(run.finish("calm"), JobDone)
    assert results_of(tmp_path / "job") == results_of(tmp_path / "calm")


def test_a_video_that_grows_is_worked_on_as_it_was(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 60)
    with Run(faults=SLOWLY) as run:
        run.work(clip, tmp_path / "job")
        run.until(lambda: run.committed() > 5)
        with clip.open("ab") as file:
            file.write(b"more of it, perhaps" * 1000)
        run.kill("decode")
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert done.outcome.frames == 60


def test_what_gets_lost_again_and_again_ends_also_long_after_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 60)

    def lose(run: Run, times: int) -> None:
        for _ in range(times):
            run.pipeline._on_message("track", "corrupt", {"reason": "lost"})

    with Run(faults=("mesh:hang@20xalways",)) as run:  # nothing is committed meanwhile
        run.work(clip, tmp_path / "job")
        run.until(lambda: run.committed() > 2)
        run.kill("decode")
        run.until(lambda: len(run.said("died")) == 1)
        lose(run, REPLAYS_WITHOUT_PROGRESS + 1)
        assert run.ended("clip") is None  # it may still have to do with the death
        monkeypatch.setattr(stages.owner.pipeline, "CALM_AFTER", 0.0)
        lose(run, REPLAYS_WITHOUT_PROGRESS + 1)
        failed = run.ended("clip")
    assert isinstance(failed, JobFailed)
    assert failed.error == "no-progress"


def test_deaths_alone_are_no_lack_of_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.owner.pipeline, "CALM_AFTER", -1.0)
    monkeypatch.setattr(stages.owner.pipeline, "REPLAYS_WITHOUT_PROGRESS", 0)
    clip = write_squares(tmp_path / "clip.mp4", 40)
    with Run(faults=("mesh:kill@20x2", "detect:kill@21x2")) as run:
        run.work(clip, tmp_path / "job")
        assert isinstance(run.finish(), JobDone), run.story()


class Disk:
    """What would be left of files after a loss of power: as much as was forced to the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.safe: dict[str, int] = {}
        fsync = os.fsync

        def noted(fd: int) -> None:
            fsync(fd)
            status = os.fstat(fd)
            self.safe[f"{status.st_dev}/{status.st_ino}"] = status.st_size

        monkeypatch.setattr(os, "fsync", noted)

    def lose_power(self, folder: Path) -> None:
        for path in folder.iterdir():
            status = path.stat()
            if path.name != "journal.lock":
                os.truncate(path, self.safe.get(f"{status.st_dev}/{status.st_ino}", 0))


def told(folder: Path) -> list[Any]:
    with read_results(folder) as results:
        return [(r.frame, r.time, [(t.id, t.box.tobytes(), t.betas.tobytes()) for t in r.tracks]) for r in results]


@pytest.mark.parametrize("frames", [5, 10, 29, 30, 47])
def test_after_a_loss_of_power_the_job_goes_on(
    frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job"
    whole(tmp_path / "calm", 60)
    disk = Disk(monkeypatch)
    fold = fold_in(folder)
    commit(fold, 0, frames)
    disk.lose_power(folder)  # nobody is there to close anything
    fold.journal._segment, lock = -1, fold.journal._lock
    os.close(lock)
    fold = fold_in(folder)
    assert fold.next_frame >= frames - 10
    commit(fold, fold.next_frame, 60)
    fold.finish()
    assert told(folder) == told(tmp_path / "calm")


def test_a_fold_of_another_input_is_refused_and_not_begun_anew(tmp_path: Path) -> None:
    fold = fold_in(tmp_path)
    commit(fold, 0, 5)
    fold.close()
    before = results_of(tmp_path)
    import tests.stages.test_pipeline_fold as folding

    with pytest.MonkeyPatch.context() as patched, pytest.raises(SourceChangedError, match="16x8"):
        patched.setattr(folding, "INFO", {"width": 16, "height": 8, "fps": 30.0})
        fold_in(tmp_path)
    assert results_of(tmp_path) == before
    fold_in(tmp_path).close()


def test_failed_frames_in_flight_are_bounded(decode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, link = decode

    class Damaged:
        truncated = None
        expected = 100_000
        info = SourceInfo("video", 4, 4, Fraction(30), 100_000, 0, "none", 1.0, (4, 4))

        def frames(self, start: int = 0) -> Any:
            return (Decoded(number, number / 30, None, "damaged") for number in range(start, self.expected))

        def name_of(self, frame: int) -> str | None:
            return f"{frame}.png"

        def close(self) -> None: ...

    monkeypatch.setattr("stages.process.decode.open_source", lambda path, **_: Damaged())
    turns(
        stage,
        link,
        ("open", {"job": 1, "source": "x", "urgent": False}),
        ("go", {"job": 1, "start": 0, "stop": None, "state": None}),
    )
    most = len(PIPE.sent)
    assert MOST_FAILED <= most < MOST_FAILED + 100
    turns(stage, link, ("commit", {"job": 1, "next": 500, "state": None}))
    assert len(PIPE.sent) == most + 500


def test_a_pipeline_that_cannot_have_its_memory_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(tempfile.mkdtemp(prefix="pw", dir="/tmp"))

    def refuse(slots: int, slot_bytes: int) -> Any:
        raise RingError("no memory")

    monkeypatch.setattr("stages.owner.pipeline.Ring.create", refuse)
    with pytest.raises(RingError):
        Pipeline(FAST, lambda event: None, runtime=base)
    assert list(base.iterdir()) == []
    base.rmdir()
