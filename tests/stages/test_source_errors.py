"""Inputs that cannot be worked on: each ends with a named error, quickly, and never with anything else."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.source import SourceError, open_source
from tests.stages.clips import cut, picture, write_audio, write_clip

PIXELS = 4_000_000


def name_of(path: Path, max_pixels: int = PIXELS) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(path, max_pixels=max_pixels)
    assert str(path) in str(caught.value), "the message names the file"
    return caught.value.name


def test_missing(tmp_path: Path) -> None:
    assert name_of(tmp_path / "nowhere.mp4") == "missing-file"
    (tmp_path / "file").write_text("x")
    assert name_of(tmp_path / "file" / "below.mp4") == "missing-file"


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert name_of(tmp_path / "a.mp4") == "empty-file"


@pytest.mark.parametrize(
    "content", [b"hello world " * 100, b"x", b"\0" * 5000, b"\xff" * 5000, b"\0\0\0\x20ftypisom"]
)
def test_content_that_is_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert name_of(tmp_path / "a.mp4") == "unreadable-video"


def test_cut_before_the_index(tmp_path: Path) -> None:
    path = cut(write_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4", 0.5)
    assert name_of(path) == "unreadable-video"


@pytest.mark.parametrize("name", ["a.m4a", "a.mp4", "a.mkv"])
def test_sound_only(tmp_path: Path, name: str) -> None:
    assert name_of(write_audio(tmp_path / name)) == "no-video-stream"


def test_folders_without_images(tmp_path: Path) -> None:
    assert name_of(tmp_path) == "no-images"
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "clip.mp4").write_bytes(write_clip(tmp_path.parent / "c.mp4", 2).read_bytes())
    assert name_of(tmp_path) == "no-images"


def test_folders_of_damaged_images_only(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    assert name_of(tmp_path) == "unreadable-image"


def test_a_damaged_image(tmp_path: Path) -> None:
    data = cv2.imencode(".png", picture(1))[1].tobytes()
    (tmp_path / "a.png").write_bytes(data[:40])
    assert name_of(tmp_path / "a.png") == "unreadable-image"


def test_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")  # opening this would wait for a writer for ever
    assert name_of(tmp_path / "a.mp4") == "unsupported"


def test_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 2)
    if os.geteuid() == 0:  # root may read everything
        real = Path.open

        def refuse(self: Path, *arguments: str) -> object:
            if self == path:
                raise PermissionError(13, "Permission denied")
            return real(self, *arguments)

        monkeypatch.setattr(Path, "open", refuse)
    else:
        path.chmod(0)
    assert name_of(path) == "no-permission"


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{clip}'\n",
    ],
)
def test_lists_do_not_reach_for_other_files(tmp_path: Path, content: str) -> None:
    clip = write_clip(tmp_path / "clip.ts", 5)
    path = tmp_path / "a.mp4"
    path.write_text(content.format(clip=clip.name))
    assert name_of(path) in ("unsupported", "unreadable-video")


def test_absurd_dimensions(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 3, width=384, height=192)
    assert name_of(path, 384 * 192 - 1) == "too-large"
    assert open_source(path, max_pixels=384 * 192).info.frames == 3


def test_a_size_that_the_header_hides(tmp_path: Path) -> None:
    """The container says 192x96, the coded frames are larger."""
    path = write_clip(tmp_path / "a.mkv", 3, width=384, height=192, codec="mpeg4")
    data = path.read_bytes()
    for big, small in ((384, 192), (192, 96)):
        data = data.replace(b"\xb0\x82" + big.to_bytes(2, "big"), b"\xb0\x82" + small.to_bytes(2, "big"), 1)
    path.write_bytes(data)
    try:
        source = open_source(path, max_pixels=20_000)
    except SourceError as error:
        assert error.name in ("too-large", "unreadable-video")
    else:
        assert all(frame.image is None or frame.image.size <= 3 * 20_000 for frame in source.frames())


def test_frames_that_are_all_garbage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 30, index_in_front=True)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin:] = np.random.default_rng(0).integers(0, 256, len(data) - begin, np.uint8).tobytes()
    path.write_bytes(data)
    assert name_of(path) == "unreadable-video"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mangled_file_opens_or_is_named(tmp_path: Path, data: st.DataObject) -> None:
    clip = tmp_path / "clip.mp4"
    if not clip.exists():
        write_clip(clip, 8, gop=4)
    mangled = bytearray(clip.read_bytes())
    for _ in range(data.draw(st.integers(1, 12))):
        mangled[data.draw(st.integers(0, len(mangled) - 1))] = data.draw(st.integers(0, 255))
    del mangled[data.draw(st.integers(len(mangled) // 2, len(mangled))) :]
    path = tmp_path / "mangled.mp4"
    path.write_bytes(mangled)
    try:
        source = open_source(path, max_pixels=PIXELS)
    except SourceError:
        return
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert source.info.frames in (None, len(frames))
