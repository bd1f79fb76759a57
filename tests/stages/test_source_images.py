"""Single images and folders of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from stages.source import SourceError, open_source
from stages.source.images import natural_key
from tests.stages.clips import number_of, picture

PIXELS = 4_000_000


def opened(path: Path, max_pixels: int = PIXELS) -> Any:
    return open_source(path, max_pixels=max_pixels)


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (0, 2, 10, 1, 9, 100):
        cv2.imwrite(str(tmp_path / f"frame_{number}.png"), picture(number))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    source = opened(tmp_path)
    assert (source.info.kind, source.info.frames, source.info.fps) == ("images", 6, 30.0)
    frames = list(source.frames())
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 9, 10, 100]
    assert [frame.time for frame in frames] == pytest.approx([n / 30 for n in range(6)])
    assert [number_of(frame.image) for frame in source.frames(4)] == [10, 100]


def test_natural_order_is_total_over_odd_names() -> None:
    names = ["a", "1", "a1b", "10", "2", "a²", "", "1a", "01", "٣"]
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)
    assert sorted(["10", "9", "1"], key=natural_key) == ["1", "9", "10"]


def test_damaged_images_fail_by_number_and_the_others_go_on(tmp_path: Path) -> None:
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), picture(number))
    (tmp_path / "0.jpg").write_bytes(b"")
    data = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(data[: len(data) // 2])
    cv2.imwrite(str(tmp_path / "3.jpg"), picture(3, 384, 192))
    source = opened(tmp_path)
    assert (source.info.width, source.info.height) == (192, 96)
    frames = list(source.frames())
    assert [frame.image is not None for frame in frames] == [False, True, False, True, True]
    assert "0.jpg" in frames[0].failure
    assert "its end is missing" in frames[2].failure
    assert [frame.size for frame in frames] == [None, None, None, (384, 192), None]
    assert number_of(frames[3].image) == 3
    assert [source.name_of(number) for number in range(5)] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp", "ppm"])
def test_single_images_of_many_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), picture(77))
    wrongly_named = path.rename(tmp_path / "a.mp4")
    source = opened(wrongly_named)
    assert (source.info.kind, source.info.frames, source.info.fps) == ("image", 1, 0.0)
    (frame,) = source.frames()
    assert frame.time == 0.0
    assert number_of(frame.image) == 77
    assert list(source.frames(1)) == []


@pytest.mark.parametrize("kind", ["grey", "16 bit", "alpha", "grey 16 bit"])
def test_other_pixel_formats_become_bgr(tmp_path: Path, kind: str) -> None:
    image: Any = picture(77)
    if "grey" in kind:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if "16" in kind:
        image = image.astype(np.uint16) * 257
    if kind == "alpha":
        image = np.dstack([image, np.full(image.shape[:2], 128, np.uint8)])
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (frame,) = opened(tmp_path / "a.png").frames()
    assert (frame.image.shape, frame.image.dtype) == ((96, 192, 3), np.uint8)
    assert number_of(frame.image) == 77


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Insert an EXIF segment that holds only the orientation."""
    entry = struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + entry
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    lying = np.rot90(picture(77))  # as a camera held upright stores it
    data = cv2.imencode(".jpg", lying)[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(with_orientation(data, 6))
    source = opened(path)
    (frame,) = source.frames()
    assert (source.info.width, source.info.height) == (192, 96)
    assert number_of(frame.image) == 77


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


ABSURD = {
    "png": png_header(60000, 60000) + bytes(100),
    "jpg": b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03" + bytes(20),
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 60000, -60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "webp": b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\x01\xff\xff\x01" + bytes(40),
    "tiff": b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHII", 256, 4, 1, 60000, 257, 4, 1, 60000) + bytes(8),
    "ppm": b"P6\n# made by hand\n60000 60000\n255\n" + bytes(100),
}


@pytest.mark.parametrize("suffix", ABSURD)
def test_absurd_sizes_are_refused_before_decoding(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(ABSURD[suffix])
    monkeypatch.setattr(cv2, "haveImageReader", lambda name: True)
    monkeypatch.setattr(cv2, "imread", lambda *arguments: pytest.fail("decoded after all"))
    with pytest.raises(SourceError) as caught:
        opened(path)
    assert caught.value.name == "too-large"
    assert "stages.max_pixels" in str(caught.value)


def test_the_limit_is_exact(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture(1))
    assert opened(tmp_path / "a.png", 192 * 96).info.frames == 1
    with pytest.raises(SourceError):
        opened(tmp_path / "a.png", 192 * 96 - 1)
