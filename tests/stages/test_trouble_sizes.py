"""Large, damaged and impossible inputs through a whole pipeline: results in the input's pixels, or a name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from stages.owner.jobs import JobDone, JobFailed
from stages.results import read_results
from stages.source import SourceError, open_source
from stages.source.kinds import check_input
from tests.stages.clips import H264, picture, write_clip
from tests.stages.harness import Run, write_squares

FRAMES = 20


def test_what_is_worked_on_smaller_has_its_results_in_the_input_s_pixels(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", FRAMES)
    found = {}
    for name, pixels in (("whole", 320 * 240), ("half", 80 * 60)):
        with Run(working_pixels=pixels) as run:
            run.work(clip, tmp_path / name)
            done = run.finish()
            assert isinstance(done, JobDone), run.story()
            assert done.outcome.source["working"] == ([160, 120] if name == "whole" else [80, 60])
        with read_results(tmp_path / name) as results:
            assert (results.header.width, results.header.height) == (160, 120)
            found[name] = list(results)
    pairs = list(zip(found["whole"], found["half"], strict=True))
    assert len(pairs) == FRAMES
    compared = 0
    for whole, half in pairs:
        assert len(whole.tracks) == len(half.tracks)
        for a, b in zip(whole.tracks, half.tracks, strict=True):
            compared += 1
            assert np.abs(a.box - b.box).max() < 5
            assert np.abs(a.joints_2d - b.joints_2d).max() < 5
    assert compared >= FRAMES


def test_frames_larger_than_a_slot_are_no_failure(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 8, size=(1280, 960))
    with Run(max_pixels=1 << 24, working_pixels=1 << 24, ring_mb=2) as run:
        run.work(clip, tmp_path / "job")
        done = run.finish()
        assert isinstance(done, JobDone), run.story()
    width, height = done.outcome.source["working"]
    assert width * height * 3 <= (2 << 20) / 8
    assert done.outcome.failed_frames == []


def test_what_is_used_though_damaged_is_marked_in_records_and_counted(tmp_path: Path) -> None:
    if H264 != "libx264":
        pytest.skip("PyAV's FFmpeg cannot encode H.264 here")
    clip = damaged(tmp_path)
    with Run() as run:
        run.work(clip, tmp_path / "job")
        done = run.finish()
        assert isinstance(done, JobDone), run.story()
    with read_results(tmp_path / "job") as results:
        records = list(results)
    assert len(records) == 40
    marked = [record.frame for record in records if record.damaged is not None]
    failed = [record.frame for record in records if record.failed is not None]
    assert sorted(marked + failed) == list(range(14, 20))
    runs = [frame for first, last, _ in done.outcome.damaged_frames for frame in range(first, last + 1)]
    assert runs == marked
    assert [frame for frame, _ in done.outcome.failed_frames] == failed


@pytest.mark.parametrize("death", ["decode:kill@16", "track:kill@17"])
def test_a_death_in_the_middle_of_damage_changes_no_byte(death: str, tmp_path: Path) -> None:
    if H264 != "libx264":
        pytest.skip("PyAV's FFmpeg cannot encode H.264 here")
    clip = damaged(tmp_path)
    bytes_of = []
    for number, faults in enumerate(((), (death,))):
        with Run(faults=faults) as run:
            run.work(clip, tmp_path / str(number))
            assert isinstance(run.finish(), JobDone), run.story()
        bytes_of.append((tmp_path / str(number) / "frames.msgpack").read_bytes())
    assert bytes_of[0] == bytes_of[1]


def damaged(folder: Path) -> Path:
    """A video of four groups of ten frames, damaged in the middle of the second."""
    import av

    clip = write_clip(folder / "a.mp4", 40, gop=10, index_in_front=True, b_frames=0)
    with av.open(str(clip)) as container:
        begin = next(packet.pos for packet in container.demux(video=0) if packet.pts == 14 * 512)
    data = bytearray(clip.read_bytes())
    data[begin + 4 : begin + 24] = b"\xff" * 20
    clip.write_bytes(data)
    return clip


def test_a_job_fails_only_if_nothing_has_a_result_and_says_why(tmp_path: Path) -> None:
    import cv2

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), picture(number))
    for number in range(1, 6):
        (folder / f"{number}.png").write_bytes(b"damaged")
    with Run() as run:
        run.work(folder, tmp_path / "one")
        done = run.finish()
        assert isinstance(done, JobDone), "one of six is worth having"
        assert [frame for frame, _ in done.outcome.failed_frames] == [1, 2, 3, 4, 5]
        with read_results(tmp_path / "one") as results:
            assert [record.source for record in results] == [f"{number}.png" for number in range(6)]
    for number in range(1, 6):
        (folder / f"{number}.png").unlink()
    with Run(faults=("detect:kill@0xalways",)) as run:
        run.work(folder, tmp_path / "none", "none")
        failed = run.finish("none")
        assert isinstance(failed, JobFailed), run.story()
        assert failed.error == "no-frames"
        assert "SIGKILL" in failed.message
        assert [frame for frame, _ in failed.outcome.failed_frames] == [0]


def test_pipes_sockets_devices_and_loops_are_refused_without_opening_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    names = {}
    for name in ("fifo", "socket", "loop", "link", "empty", "notes"):
        for check in (check_input, lambda path: open_source(path, max_pixels=1 << 20)):
            with pytest.raises(SourceError) as caught:
                check(tmp_path / name)
            names[name] = caught.value.name
            assert str(tmp_path / name) in str(caught.value)
    listening.close()
    assert names == {
        "fifo": "unsupported", "socket": "unsupported", "link": "unsupported", "loop": "unreadable-file",
        "empty": "no-images", "notes": "no-images",
    }  # fmt: skip
