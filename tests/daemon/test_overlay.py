"""The overlay is drawn on the input that the results are of, whatever its size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from daemon.cli.export import export
from daemon.exports.drawing import OtherInputError, write_overlay
from daemon.jobs.summary import identify, write_summary
from stages.records import FrameRecord
from stages.results.stream import ResultWriter
from tests.stages.harness import write_squares
from tests.stages.test_results import HEADER
from tests.stages.test_source_kinds import H264, with_streams


def results(folder: Path, frames: int, width: int, height: int, stream: int | None = None) -> Path:
    path = folder / "frames.msgpack"
    writer = ResultWriter.create(path, replace(HEADER, width=width, height=height, stream=stream))
    for frame in range(frames):
        writer.append(FrameRecord(frame, frame / 30, []))
    writer.close()
    return path


def test_as_many_frames_as_the_video_has(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 10)
    made = write_overlay(clip, results(tmp_path, 10, 160, 120), tmp_path)
    with av.open(str(made)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 10


def test_the_stream_that_the_results_are_of_is_drawn_on(tmp_path: Path) -> None:
    clip = with_streams(tmp_path / "two.mkv", (H264, 5, 96, 48), (H264, 5, 384, 192), default=7)
    made = write_overlay(clip, results(tmp_path, 5, 96, 48, stream=0), tmp_path)
    with av.open(str(made)) as container:
        assert container.streams.video[0].width == 96


@pytest.mark.parametrize(
    ("frames", "width", "what"), [(30, 160, "of 10 frames"), (10, 320, "160x120, not 320x120")]
)
def test_another_video_is_named_and_leaves_no_picture(tmp_path: Path, frames: int, width: int, what: str) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 10)
    with pytest.raises(OtherInputError, match=f"clip.mp4 is {what}.*--video"):
        write_overlay(clip, results(tmp_path, frames, width, 120), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "frames.msgpack"]


def test_the_command_knows_another_video_by_its_content(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 10)
    folder = tmp_path / "results"
    folder.mkdir()
    results(folder, 10, 160, 120)
    write_summary(
        folder,
        {"poseward": 1, "backend": "blazepose", "frames": 10, "input": {"path": str(clip), **identify(clip)}},
    )
    moved = clip.rename(tmp_path / "moved.mp4")
    write_squares(clip, 12)
    told = CliRunner().invoke(export, ["overlay", str(folder)])
    assert told.exit_code == 1 and "is not the video that" in told.output and "--video" in told.output
    made = CliRunner().invoke(export, ["overlay", str(folder), "--video", str(moved)])
    assert made.exit_code == 0 and (folder / "overlay.mp4").is_file(), made.output
    clip.unlink()
    gone = CliRunner().invoke(export, ["overlay", str(folder)])
    assert gone.exit_code == 1 and "clip.mp4" in gone.output and "--video" in gone.output


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (41, 1), (17, 33)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        assert cv2.imwrite(str(images / f"{number}.png"), np.full((size[1], size[0], 3), 200, np.uint8))
    assert write_overlay(images, results(tmp_path, 3, *size), tmp_path).stat().st_size > 0


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "one.png"
    assert cv2.imwrite(str(picture), np.zeros((120, 160, 3), np.uint8))
    path = results(tmp_path, 1, 160, 120)
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)
    with pytest.raises(OSError, match=r"overlay\.png cannot be written"):
        write_overlay(picture, path, tmp_path)
