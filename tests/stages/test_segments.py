"""Segments of a job, worked on apart and put together, give the bytes of the whole."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from stages.owner.jobs import Job, JobDone
from stages.results.journal import Journal
from tests.stages.harness import Run, results_of, write_squares


def journal_of(folder: Path, first: int) -> list[tuple[int, bytes]]:
    journal = Journal.open(folder, first)
    try:
        return list(journal.read(first))
    finally:
        journal.close()


@pytest.mark.parametrize(
    ("backend", "cuts"),
    [("blocks", (0, 60)), ("blocks", (0, 1, 2, 23, 59, 60)), ("blocks", (0, 30, 60)),
     ("following_blocks", (0, 20, 60))],
)  # fmt: skip
def test_segments_put_together_are_the_whole(tmp_path: Path, backend: str, cuts: tuple[int, ...]) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 60)
    with Run(backend=f"tests.stages.{backend}") as run:
        run.work(clip, tmp_path / "whole", "whole")
        assert isinstance(run.finish("whole"), JobDone)
        parts = list(pairwise(cuts))
        for number, (first, stop) in enumerate(parts):
            (tmp_path / f"part{first}").mkdir()
            run.pipeline.submit(
                Job(f"part{first}", str(clip), str(tmp_path / f"part{first}"), segment=(first, stop))
            )
            if number == len(parts) // 2:  # in the middle of whatever it is doing
                run.until(lambda: run.committed() > 0, "a committed frame")
                for process in ("decode", "mesh", "track"):
                    if run.ready(process):
                        run.kill(process)
        for first, _ in parts:
            assert isinstance(run.finish(f"part{first}"), JobDone)
        together = tmp_path / "together"
        gathered = Journal.open(together)
        for first, stop in parts:
            records = journal_of(tmp_path / f"part{first}", first)
            assert [frame for frame, _ in records] == list(range(first, stop))
            for frame, payload in records:
                gathered.append(frame, payload)
        gathered.close()
        run.work(clip, together, "together")
        assert isinstance(run.finish("together"), JobDone)
    assert results_of(together) == results_of(tmp_path / "whole")


def test_a_segment_within_a_group_of_followed_frames_is_refused(tmp_path: Path) -> None:
    with Run(backend="tests.stages.following_blocks") as run, pytest.raises(ValueError, match="20"):
        run.pipeline.submit(Job("part", "clip.mp4", str(tmp_path), segment=(30, 60)))


def test_a_segment_beyond_the_end_is_what_there_is(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 20)
    (tmp_path / "part").mkdir()
    with Run() as run:
        run.pipeline.submit(Job("part", str(clip), str(tmp_path / "part"), segment=(12, 40)))
        ended = run.finish("part")
    assert isinstance(ended, JobDone) and ended.outcome.frames == 20
    assert [frame for frame, _ in journal_of(tmp_path / "part", 12)] == list(range(12, 20))
