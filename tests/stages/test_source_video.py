"""Videos: every frame once, with its own time and number, the same from wherever decoding starts."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from stages.source import Decoded, Source, open_source
from stages.source.base import DAMAGES
from tests.paths import SHARED
from tests.stages.clips import H264, cut, flip, number_of, picture, write_clip

PIXELS = 4_000_000
RUNNER = SHARED / "runner.mp4"
needs_h264 = pytest.mark.skipif(H264 != "libx264", reason="PyAV's FFmpeg cannot encode H.264 here")

KINDS: dict[str, dict[str, Any]] = {
    "a.mp4": {},
    "front.mp4": {"index_in_front": True},
    "a.mkv": {},
    "a.ts": {},
    "h264.avi": {"codec": H264},
    "a.avi": {"codec": "mpeg4"},
    "a.mpg": {"codec": "mpeg2video"},
    "a.h264": {"codec": H264},
    "intra.avi": {"codec": "mjpeg"},
    "offset.ts": {"stamps": [900 + n for n in range(45)]},
    "open.mp4": {"options": {"x264-params": "open-gop=1:scenecut=0"}},
    "open.ts": {"options": {"x264-params": "open-gop=1:scenecut=0:bframes=3"}},
    "refresh.ts": {"b_frames": 0, "options": {"x264-params": "intra-refresh=1"}},
    "Upper.MOV": {},
    "name: with 100% odd #1.mp4": {},
}


def opened(path: Path, **options: Any) -> Source:
    return open_source(path, **{"max_pixels": PIXELS, **options})


def same(a: Decoded, b: Decoded) -> bool:
    if replace(a, image=None) != replace(b, image=None) or (a.image is None) != (b.image is None):
        return False
    return a.image is None or b.image is None or np.array_equal(a.image, b.image)


def assert_same_from_anywhere(source: Source, step: int) -> list[Decoded]:
    """Read from the first frame, and then from several; hands back the whole."""
    whole = list(source.frames())
    assert [frame.index for frame in whole] == list(range(len(whole)))
    assert all((frame.image is None) == (frame.failure is not None) for frame in whole)
    assert all(a.time < b.time for a, b in pairwise(whole))
    for start in range(1, len(whole) + 1, step):
        part = list(source.frames(start))
        assert len(part) == len(whole) - start
        assert all(map(same, part, whole[start:])), f"from frame {start} on"
    return whole


def assert_numbers(frames: list[Decoded]) -> None:
    """Each frame that was given whole shows its own number."""
    for frame in frames:
        if frame.image is not None and frame.damaged is None:
            assert number_of(frame.image) == frame.index


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_of_every_kind_of_file(tmp_path: Path, name: str) -> None:
    if "x264-params" in KINDS[name].get("options", {}) and H264 != "libx264":
        pytest.skip("PyAV's FFmpeg cannot encode H.264 here")
    source = opened(write_clip(tmp_path / name, 45, **KINDS[name]))
    assert source.info.kind == "video"
    assert (source.info.width, source.info.height) == (192, 96)
    assert source.info.frames in (45, None)
    whole = assert_same_from_anywhere(source, 4)
    assert [frame.failure for frame in whole] == [None] * 45
    assert_numbers(whole)
    rate = source.info.fps
    assert [frame.time for frame in whole] == pytest.approx([n / rate for n in range(45)], abs=0.002)
    assert source.truncated is None
    source.close()


def test_what_a_file_says_about_itself(tmp_path: Path) -> None:
    info = opened(write_clip(tmp_path / "a.mp4", 45, fps=15)).info
    assert (info.frames, info.fps, info.rotation) == (45, 15.0, 0)
    assert info.duration == pytest.approx(3.0)
    assert info.codec in ("h264", "mpeg4")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_rate_keeps_each_frame_s_time(tmp_path: Path, suffix: str) -> None:
    stamps = [0, 10, 50, 55, 100, 300, 310, 1000, 1001, 2000, 2050, 2100]
    path = write_clip(tmp_path / f"a.{suffix}", 12, stamps=stamps, time_base=Fraction(1, 1000), gop=4)
    source = opened(path)
    whole = assert_same_from_anywhere(source, 1)
    assert [frame.time for frame in whole] == pytest.approx([stamp / 1000 for stamp in stamps], abs=1e-3)
    assert_numbers(whole)
    assert source.info.frames == 12
    assert source.info.fps == pytest.approx(11 / 2.1, rel=0.01)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_times_count_from_the_first_frame(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"a.{suffix}", 10, stamps=[300 + n for n in range(10)])
    times = [frame.time for frame in opened(path).frames()]
    assert times == pytest.approx([n / 30 for n in range(10)], abs=1e-3)


@pytest.mark.parametrize("hidden", [5, 12, 28])
def test_a_trimmed_video_starts_where_it_was_trimmed_to(tmp_path: Path, hidden: int) -> None:
    """As phones cut: the frames before the first shown one stay in the file, since later ones build on them."""
    path = write_clip(tmp_path / "a.mp4", 50, gop=10, stamps=[n - hidden for n in range(50)])
    source = opened(path)
    assert source.info.frames == 50 - hidden
    whole = assert_same_from_anywhere(source, 3)
    assert [number_of(frame.image) for frame in whole] == list(range(hidden, 50))  # type: ignore[arg-type]
    assert whole[0].time == 0.0
    assert source.info.fps == 30.0


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_metadata_is_applied(tmp_path: Path, rotation: int) -> None:
    path = write_clip(tmp_path / "phone.mov", 6, rotation=rotation)
    source = opened(path)
    assert source.info.rotation == rotation
    assert (source.info.width, source.info.height) == ((96, 192) if rotation != 180 else (192, 96))
    capture = cv2.VideoCapture(str(path))
    for frame in source.frames():
        assert frame.image is not None
        assert frame.image.shape == (source.info.height, source.info.width, 3)
        assert number_of(np.rot90(frame.image, -rotation // 90)) == frame.index
        ok, reference = capture.read()  # which turns frames upright by itself
        if ok and reference.shape == frame.image.shape:
            assert np.abs(reference.astype(int) - frame.image).mean() < 3
    capture.release()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_a_cut_file_gives_what_is_in_it_and_says_so(tmp_path: Path, suffix: str) -> None:
    whole = write_clip(tmp_path / f"whole.{suffix}", 60, index_in_front=suffix == "mp4", codec="mpeg4")
    source = opened(cut(whole, tmp_path / f"cut.{suffix}", 0.5))
    frames = assert_same_from_anywhere(source, 5)
    good = [frame for frame in frames if frame.image is not None]
    assert 20 <= len(good) < 45
    assert_numbers([frame for frame in good if frame.index < len(good) - 3])
    assert source.truncated is not None
    assert "cut off" in source.truncated


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mpg"])
def test_damage_gives_the_same_from_anywhere_and_no_wrong_frame(tmp_path: Path, suffix: str, seed: int) -> None:
    codec = "mpeg2video" if suffix == "mpg" else H264
    clip = write_clip(tmp_path / f"a.{suffix}", 48, gop=12, index_in_front=suffix == "mp4", codec=codec)
    source = opened(flip(clip, tmp_path / f"b.{suffix}", seed, count=1 + seed % 4))
    frames = assert_same_from_anywhere(source, 5)
    assert source.info.frames in (None, len(frames))
    if suffix == "mp4":  # its index is whole, so numbers cannot shift
        assert len(frames) == 48
        assert_numbers(frames)
        assert any(frame.failure or frame.damaged for frame in frames), "the damage went unnoticed"


@needs_h264
def test_damaged_frames_are_used_and_marked_up_to_the_next_key_frame(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 40, gop=10, index_in_front=True, b_frames=0)
    with av.open(str(clip)) as container:
        begin = next(packet.pos for packet in container.demux(video=0) if packet.pts == 14 * 512)
    data = bytearray(clip.read_bytes())
    data[begin + 4 : begin + 24] = b"\xff" * 20  # behind the length of the coded frame
    clip.write_bytes(data)
    frames = list(opened(clip).frames())
    assert [frame.index for frame in frames if frame.damaged or frame.failure] == list(range(14, 20))
    assert sum(frame.image is not None for frame in frames) >= 39, "what can be made of them is used"
    assert {frame.damaged for frame in frames[15:20]} <= set(DAMAGES)
    assert all("damaged here" in frame.failure for frame in frames if frame.failure)


def test_frames_that_change_size_are_fitted_into_the_first_one_s(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "small.ts", 10, gop=5)
    large = write_clip(tmp_path / "large.ts", 10, gop=5, width=384, height=256, stamps=[n + 60 for n in range(10)])
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    source = opened(both)
    frames = assert_same_from_anywhere(source, 5)
    assert len(frames) == 20
    assert all(frame.image is not None and frame.image.shape == (96, 192, 3) for frame in frames)
    assert [frame.size for frame in frames] == [None] * 10 + [(384, 256)] * 10
    # 384x256 fits as 144x96, in the middle: black beside it.
    image = frames[19].image
    assert image is not None
    assert image[:, :23].max() == 0 and image[:, 169:].max() == 0
    assert number_of(image[:, 24:168]) == 9


def test_a_file_that_vanishes_while_it_is_read_fails_frame_by_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 10)
    source = opened(path)
    path.unlink()
    frames = list(source.frames(3))
    assert [frame.index for frame in frames] == list(range(3, 10))
    assert all(frame.failure for frame in frames)


def test_a_second_reading_ends_the_first_and_close_ends_all(tmp_path: Path) -> None:
    source = opened(write_clip(tmp_path / "a.mp4", 30))
    first = source.frames()
    assert next(first).index == 0
    assert next(source.frames(20)).index == 20
    source.close()
    source.close()
    assert len(list(source.frames(29))) == 1


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    peaks = []
    for count in (100, 400):
        clip = write_clip(tmp_path / f"{count}.mp4", count, gop=25)
        tracemalloc.start()
        for frame in opened(clip).frames():
            assert frame.image is not None
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000  # four frames' worth of pixels


@needs_h264
def test_more_threads_change_nothing(tmp_path: Path) -> None:
    clip = flip(write_clip(tmp_path / "a.mp4", 40, index_in_front=True), tmp_path / "b.mp4", 3)
    one, two = (list(opened(clip, threads=n).frames()) for n in (1, 2))
    assert all(map(same, one, two))


def test_the_clip_s_own_pictures_can_be_told_apart() -> None:
    assert [number_of(picture(n)) for n in (0, 1, 77, 4095)] == [0, 1, 77, 4095]


@pytest.mark.video
@pytest.mark.skipif(not RUNNER.exists(), reason="shared/data/runner.mp4 is not here")
def test_the_runner() -> None:
    source = opened(RUNNER)
    assert (source.info.width, source.info.height, source.info.frames) == (1920, 1088, 180)
    capture = cv2.VideoCapture(str(RUNNER))
    tail = {}
    for frame in source.frames():
        ok, reference = capture.read()
        assert ok and frame.image is not None
        assert np.abs(reference[::8, ::8].astype(int) - frame.image[::8, ::8]).max() <= 2
        if frame.index >= 175:
            tail[frame.index] = frame
    assert frame.index == 179
    again = list(source.frames(175))
    assert len(again) == 5
    assert all(same(tail[frame.index], frame) for frame in again)
