"""Kinds of files that phones, cameras and other programs make: each comes out as it is meant (docs/inputs.md)."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from stages.source import Source, SourceError, open_source
from stages.source.geometry import Geometry, fitting, turn_of
from stages.source.images import gaps_in
from stages.source.rates import rate_of
from tests.stages.clips import H264, number_of, picture, write_clip

pillow_heif.register_heif_opener()
needs_h264 = pytest.mark.skipif(H264 != "libx264", reason="PyAV's FFmpeg cannot encode H.264 here")


def opened(path: Path, **options: Any) -> Source:
    return open_source(path, **{"max_pixels": 1 << 24, **options})


# -- pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["heic", "avif", "tif", "jpg", "webp", "png"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_pictures_are_turned_upright(suffix: str, orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.ascontiguousarray(picture(77)[:, :, ::-1]))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        image.save(path, tiffinfo={274: orientation})
    else:
        image.save(path, exif=exif.tobytes(), quality=95)
    image.getexif()[274] = orientation
    reference = np.asarray(ImageOps.exif_transpose(image))[:, :, ::-1]
    source = opened(path)
    (frame,) = source.frames()
    assert frame.image is not None
    assert (source.info.height, source.info.width) == reference.shape[:2]
    assert np.abs(frame.image.astype(int) - reference).mean() < 6


def test_a_large_heic_of_many_tiles_is_one_picture(tmp_path: Path) -> None:
    large = cv2.resize(picture(1234), (1920, 960), interpolation=cv2.INTER_NEAREST)
    path = tmp_path / "IMG_1.HEIC"
    pillow_heif.from_pillow(Image.fromarray(np.ascontiguousarray(large[:, :, ::-1]))).save(path, quality=90)
    source = opened(path)
    (frame,) = source.frames()
    assert (source.info.kind, source.info.width, source.info.height) == ("image", 1920, 960)
    assert frame.image is not None
    assert number_of(frame.image) == 1234


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_a_damaged_picture_of_that_kind_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture(5)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(SourceError, match="cannot be read as an image") as caught:
        opened(path)
    assert caught.value.name == "unreadable-image"


def test_what_cannot_be_read_in_a_folder_is_named_and_not_overlooked(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), picture(1))
    Image.fromarray(picture(2)[:, :, ::-1]).save(tmp_path / "2.heic", quality=95)
    (tmp_path / "3.dng").write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "4.jxl").write_bytes(b"\xff\x0a" + bytes(100))
    (tmp_path / "notes.txt").write_text("not meant")
    source = opened(tmp_path)
    frames = list(source.frames())
    assert [source.name_of(n) for n in range(4)] == ["1.png", "2.heic", "3.dng", "4.jxl"]
    assert [frame.image is not None for frame in frames] == [True, True, False, False]
    assert "raw picture" in (frames[2].failure or "")
    assert "4.jxl" in (frames[3].failure or "")


def test_gaps_in_the_numbering_are_said(tmp_path: Path) -> None:
    for number in (1, 2, 3, 6, 7, 9):
        cv2.imwrite(str(tmp_path / f"frame_{number:03d}.png"), picture(number))
    (note,) = opened(tmp_path).info.notes
    assert "4 to 5, 8" in note
    assert gaps_in(["1.png", "2.png", "3.png"]) is None
    assert gaps_in(["10.png", "20.png", "30.png"]) is None, "every tenth frame lacks none"
    assert gaps_in(["a.png", "b.png"]) is None
    assert gaps_in(["a1.png", "b2.png", "b4.png"]) is None


# -- size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_frames_beyond_the_working_size_are_scaled_down_and_others_are_not(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("png"):
        cv2.imwrite(str(path), picture(5, 768, 384))
    else:
        write_clip(path, 12, width=768, height=384)
    source = opened(path, working=192 * 96)
    assert (source.info.width, source.info.height, source.info.working) == (768, 384, (192, 96))
    for frame in source.frames():
        assert frame.image is not None
        assert frame.image.shape == (96, 192, 3)
        assert number_of(frame.image) == (frame.index if name == "a.mp4" else 5)
    assert opened(path, working=768 * 384).info.working == (768, 384)
    assert next(opened(path).frames()).image.shape == (384, 768, 3)  # type: ignore[union-attr]


def test_the_working_size_is_never_more_than_allowed_and_keeps_the_shape() -> None:
    for size in ((4032, 3024), (7680, 4320), (100_000, 3), (3, 100_000), (5, 1), (1, 1)):
        for most in (1, 7, 1000, 3840 * 2160):
            width, height = fitting(size, most)
            assert width >= 1 and height >= 1
            assert width * height <= max(most, 1)
            if size[0] * size[1] <= most:
                assert (width, height) == size
    width, height = fitting((4032, 3024), 3840 * 2160)
    assert abs(width / height - 4 / 3) < 0.001


def test_the_limit_that_is_left_names_the_number_to_set(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"set stages.max_pixels to 18432 or more") as caught:
        opened(write_clip(tmp_path / "a.mp4", 2), max_pixels=18_000)
    assert caught.value.name == "too-large"


# -- turned, mirrored, not square -----------------------------------------------------------------------

UNIT = 1 << 16
MATRICES = {
    "as it is": (1, 0, 0, 1), "by 90": (0, 1, -1, 0), "by 180": (-1, 0, 0, -1), "by 270": (0, -1, 1, 0),
    "left to right": (-1, 0, 0, 1), "top to bottom": (1, 0, 0, -1), "over one diagonal": (0, 1, 1, 0),
    "over the other": (0, -1, -1, 0),
}  # fmt: skip


def shown(image: Any, a: int, b: int, c: int, d: int) -> Any:
    """What a matrix asks for: the pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    height, width = image.shape[:2]
    corners = [(a * x + c * y, b * x + d * y) for x, y in itertools.product((0, width - 1), (0, height - 1))]
    left, top = (min(corner[axis] for corner in corners) for axis in (0, 1))
    right, bottom = (max(corner[axis] for corner in corners) for axis in (0, 1))
    out = np.zeros((bottom - top + 1, right - left + 1, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    out[b * x + d * y - top, a * x + c * y - left] = image
    return out


@pytest.mark.parametrize("name", MATRICES)
def test_the_whole_display_matrix_is_applied(name: str, tmp_path: Path) -> None:
    a, b, c, d = MATRICES[name]
    stored = tmp_path / "plain.mp4"
    write_clip(stored, 3)
    path = with_matrix(stored, tmp_path / "a.mp4", (a, b, c, d))
    plain, turned = (list(opened(file).frames()) for file in (stored, path))
    for before, after in zip(plain, turned, strict=True):
        assert after.image is not None
        assert np.array_equal(after.image, shown(before.image, a, b, c, d))
    info = opened(path).info
    assert (info.height, info.width) == turned[0].image.shape[:2]  # type: ignore[union-attr]
    assert json.loads(json.dumps(info.to_map())) == info.to_map(), "it travels"


@pytest.mark.parametrize(("matrix", "word"), [((0, 0, 0, 0), "empty"), ((0.7, 0.7, -0.7, 0.7), "315 degrees")])
def test_a_matrix_that_cannot_be_meant_is_said(matrix: Any, word: str, tmp_path: Path) -> None:
    path = with_matrix(write_clip(tmp_path / "plain.mp4", 3), tmp_path / "a.mp4", matrix)
    source = opened(path)
    assert [number_of(frame.image) for frame in source.frames()] == [0, 1, 2]  # type: ignore[arg-type]
    (note,) = source.info.notes
    assert word in note


def with_matrix(source: Path, target: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Write a display matrix into an MP4's track header, whose last 44 bytes are the matrix and the size."""
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd") - 4
    at = header + int.from_bytes(data[header : header + 4], "big") - 44
    a, b, c, d = (round(value * UNIT) for value in matrix)
    data[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    target.write_bytes(data)
    return target


def test_matrices_are_read_by_their_directions() -> None:
    for a, b, c, d in MATRICES.values():
        mirrored, rotation, note = turn_of(np.array([a, b, 0, c, d, 0, 0, 0, 1], "<i4").tobytes())
        image = picture(3)
        working = Geometry((192, 96), mirrored=mirrored, rotation=rotation)
        upright, _ = working.picture((192, 96), lambda width, height: picture(3, width, height))
        assert np.array_equal(upright, shown(image, a, b, c, d))
        assert note is None


@needs_h264
@pytest.mark.parametrize(("aspect", "size"), [("4/3", (256, 96)), ("1/2", (96, 96)), ("12/1", (192, 96))])
def test_pixels_that_are_not_square_are_made_square(aspect: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 6, options={"x264-params": f"sar={aspect}:scenecut=0"})
    source = opened(path)
    assert (source.info.width, source.info.height) == size
    for frame in source.frames():
        assert frame.image is not None
        assert frame.image.shape == (size[1], size[0], 3)
        assert number_of(frame.image) == frame.index
    assert len(source.info.notes) == (1 if aspect == "12/1" else 0)


# -- which stream -----------------------------------------------------------------------------------------


def with_streams(path: Path, *sizes: tuple[str, int, int, int], default: int | None = None) -> Path:
    """A file of several video streams: codec, frames, width and height of each."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for number, (codec, _, width, height) in enumerate(sizes):
            stream: Any = container.add_stream(codec, rate=30)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else 0
            streams.append(stream)
        for stream, (_, frames, width, height) in zip(streams, sizes, strict=True):
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="bgr24")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def test_of_several_streams_the_default_or_else_the_largest_is_read_and_said(tmp_path: Path) -> None:
    small, large = (H264, 5, 96, 48), (H264, 5, 384, 192)
    largest = opened(with_streams(tmp_path / "a.mkv", small, large, default=7))
    assert (largest.info.stream, largest.info.width) == (1, 384)
    (note,) = largest.info.notes
    assert "1: " in note and "96x48" in note and "--stream" in note
    flagged = opened(with_streams(tmp_path / "b.mkv", small, large, default=0))
    assert (flagged.info.stream, flagged.info.width) == (0, 96)
    named = opened(tmp_path / "a.mkv", stream=0)
    assert (named.info.stream, named.info.width, named.info.notes) == (0, 96, ())
    with pytest.raises(SourceError, match=r"no video in stream 5: it has 0: ") as caught:
        opened(tmp_path / "a.mkv", stream=5)
    assert caught.value.name == "no-such-stream"


def test_a_cover_that_nobody_flagged_is_not_the_video(tmp_path: Path) -> None:
    source = opened(with_streams(tmp_path / "a.mkv", ("mjpeg", 1, 768, 384), (H264, 6, 192, 96), default=0))
    assert (source.info.stream, source.info.frames) == (1, 6)


# -- rates -----------------------------------------------------------------------------------------------

NTSC = Fraction(30000, 1001)


def stamps(rate: Fraction, base: Fraction, count: int) -> Any:
    return np.array([round(n / rate / base) for n in range(count)], np.int64)


@pytest.mark.parametrize("rate", [NTSC, Fraction(30), Fraction(24000, 1001), Fraction(25), Fraction(60000, 1001)])
@pytest.mark.parametrize("base", [Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 30000), Fraction(1, 600)])
def test_rates_come_from_the_stamps_whatever_headers_claim(rate: Fraction, base: Fraction) -> None:
    found, variable = rate_of(stamps(rate, base, 2000), base, [Fraction(3013, 100), Fraction(39, 2), None])
    assert (found, variable) == (rate, False)


def test_a_few_frames_go_by_what_is_claimed_where_both_could_be() -> None:
    short = stamps(NTSC, Fraction(1, 1000), 5)
    assert rate_of(short, Fraction(1, 1000), [NTSC])[0] == NTSC
    assert rate_of(short, Fraction(1, 1000), [Fraction(30)])[0] == 30
    assert rate_of(short[:1], Fraction(1, 1000), [NTSC]) == (NTSC, False)
    assert rate_of(short[:1], Fraction(1, 1000), [None]) == (30, False)


def test_missing_late_and_varying_frames_are_told_apart() -> None:
    base = Fraction(1, 90000)
    even = stamps(NTSC, base, 200)
    assert rate_of(np.delete(even, [50, 51, 120]), base, []) == (NTSC, True)
    late = even.copy()
    late[-1] -= 1000
    assert rate_of(late, base, []) == (NTSC, True)
    chance = np.random.default_rng(1)
    wild = np.cumsum(chance.integers(1500, 6000, 200))
    rate, variable = rate_of(wild - wild[0], base, [Fraction(30)])
    assert variable
    assert float(rate) == pytest.approx(199 / (int(wild[-1] - wild[0]) / 90000), rel=1e-3)
    for far in ([0, 1, 1 << 40], [0, 1 << 40], [0, 1 << 40, 1 << 41]):
        assert rate_of(np.array(far, np.int64), Fraction(1, 1000), [])[0] > 0
    odd = stamps(Fraction(37, 2), base, 100)
    assert rate_of(odd, base, [])[0] == Fraction(37, 2)


@needs_h264
def test_a_codec_s_own_stream_goes_by_its_own_timing(tmp_path: Path) -> None:
    for rate in (30, 50):
        source = opened(write_clip(tmp_path / f"a{rate}.h264", 20, fps=rate, codec=H264))
        assert source.info.rate == rate
        assert [frame.time for frame in source.frames()] == pytest.approx([n / rate for n in range(20)])


def test_the_last_frame_s_length_and_a_cut_end_change_no_rate(tmp_path: Path) -> None:
    base = Fraction(1, 30000)
    path = write_clip(
        tmp_path / "a.mp4", 30, stamps=[n * 1001 for n in range(30)], time_base=base, index_in_front=True
    )
    assert opened(path).info.rate == NTSC
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    info = opened(cut).info
    assert info.rate == NTSC
    assert info.frames is not None and info.frames < 30


# -- colours ---------------------------------------------------------------------------------------------


@needs_h264
@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_brought_into_the_usual_range(transfer: int, name: str, tmp_path: Path) -> None:
    """A grey wedge: black stays black, a white sheet (58 % of PQ's signal, 75 % of HLG's) is bright, and what is
    brighter is brighter still."""
    if "libx265" not in av.codecs_available:
        pytest.skip("PyAV's FFmpeg cannot encode H.265 here")
    white = 0.58 if transfer == 16 else 0.75
    wedge = np.repeat(np.linspace(0, 1, 192)[None, :], 96, axis=0)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        kind = "smpte2084" if transfer == 16 else "arib-std-b67"
        coding = f"log-level=none:colorprim=bt2020:transfer={kind}:colormatrix=bt2020nc:range=limited"
        stream: Any = container.add_stream("libx265", rate=30, options={"x265-params": coding, "crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 192, 96, "yuv420p10le"
        frame = av.VideoFrame(192, 96, "yuv420p10le")
        for plane, values in zip(frame.planes, (64 + 876 * wedge, *[np.full((48, 96), 512.0)] * 2), strict=True):
            lines = np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)
            np.copyto(lines[:, : plane.width], np.rint(values).astype(np.uint16))
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = opened(path)
    (note,) = source.info.notes
    assert name in note
    (decoded,) = source.frames()
    assert decoded.image is not None
    row = decoded.image[40:56].mean(axis=(0, 2))
    assert row[2] < 12
    assert 200 < row[int(white * 191)] < 245
    assert row[188] > row[int(white * 191)] + 8
    assert (np.diff(row) > -2).all()
    assert np.ptp(decoded.image.astype(int), axis=2).max() < 8, "grey stays grey"
