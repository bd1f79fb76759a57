"""Images that claim more than they hold, or hold more than one picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.owner.jobs import JobDone, JobFailed
from stages.source import open_source
from tests.stages.clips import write_clip
from tests.stages.harness import Run


def blank(path: Path, side: int) -> Path:
    cv2.imwrite(str(path), np.zeros((side, side, 3), np.uint8))
    return path


@pytest.mark.parametrize("suffix", [".jp2", ".avif", ".ras"])
def test_a_small_file_of_a_huge_image_is_refused_before_it_takes_memory(suffix: str, tmp_path: Path) -> None:
    if not cv2.haveImageWriter("x" + suffix):
        pytest.skip(f"this OpenCV writes no {suffix}")
    large, right = blank(tmp_path / f"large{suffix}", 5000), blank(tmp_path / f"right{suffix}", 200)
    with Run() as run:
        run.work(right, tmp_path / "right", "right", urgent=True)
        assert isinstance(run.finish("right"), JobDone)
        before = run.pipeline.status()["processes"]["decode"].peak_rss
        run.work(large, tmp_path / "large", "large", urgent=True)
        failed = run.finish("large")
        assert isinstance(failed, JobFailed)
        assert failed.error == "too-large"
        assert "stages.max_pixels" in failed.message
        run.work(right, tmp_path / "again", "again", urgent=True)
        run.finish("again")
        assert _peak(run.pid("decode")) < before + (60 << 20)


def _peak(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_of_an_animation_that_is_read_as_an_image_the_first_picture_is_read_and_that_is_said(
    suffix: str, tmp_path: Path
) -> None:
    if not hasattr(cv2, "Animation"):
        pytest.skip("this OpenCV writes no animations")
    animation = cv2.Animation()
    animation.frames = [np.full((40, 50, 4), 20 * number, np.uint8) for number in range(5)]
    animation.durations = [50] * 5
    path = tmp_path / f"animated{suffix}"
    try:
        written = cv2.imwriteanimation(str(path), animation)
    except cv2.error:
        written = False
    if not written:
        pytest.skip(f"this OpenCV writes no animated {suffix}")
    source = open_source(path, max_pixels=50_000)
    assert len(list(source.frames())) == 1
    assert source.truncated is not None
    assert "first of the 5 pictures" in source.truncated
    assert open_source(blank(tmp_path / f"one{suffix}", 50), max_pixels=50_000).truncated is None


def test_jpegs_one_behind_the_other_are_a_video(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "camera.mjpeg", 12, codec="mjpeg", b_frames=0)
    source = open_source(path, max_pixels=50_000)
    assert source.info.kind == "video"
    assert [frame.index for frame in source.frames() if frame.image is not None] == list(range(12))
    one = open_source(blank(tmp_path / "one.jpg", 50).rename(tmp_path / "one.mjpg"), max_pixels=50_000)
    assert len(list(one.frames())) == 1
