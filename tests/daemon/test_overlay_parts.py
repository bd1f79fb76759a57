"""An overlay that is drawn in parts, beside the pipeline, is the one that is drawn at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from daemon.exports import drawing as module
from daemon.exports.drawing import Drawing, write_overlay
from daemon.exports.film import BT601, BT709, Look
from daemon.exports.style import Style
from stages.records import FrameRecord, Header, Track
from stages.results.stream import ResultWriter
from tests.stages.harness import write_squares
from tests.stages.test_results import HEADER

FRAMES = 33


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRAMES_PER_PART", 10)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "clip.mp4", FRAMES)


def person(frame: int, x: float = 40.0) -> Track:
    zeros = np.zeros((24, 3), np.float32)
    return Track(
        1 + frame // 10, np.array([x, 40, x + 40, 90], np.float32), 0.9, np.array([0, 0, 30], np.float32),
        np.tile(np.eye(3, dtype=np.float32), (24, 1, 1)), np.zeros(10, np.float32), zeros, zeros[:, :2],
        np.array([[-0.3, -0.3, 0], [0.3, -0.3, 0], [0, 0.3, 0.1 + frame / 100], [0, 0, 0.3]], np.float32),
    )  # fmt: skip


def header() -> Header:
    return replace(HEADER, width=160, height=120, fps=30.0, rate=(30, 1), focal=0.0)


def write(path: Path, frames: range, writer: ResultWriter | None = None, x: float = 40.0) -> ResultWriter:
    writer = writer or ResultWriter.create(path, header())
    for frame in frames:
        writer.append(FrameRecord(frame, frame / 30, [person(frame, x)]))
    writer.flush()
    return writer


def steps(drawing: Drawing) -> int:
    return sum(1 for _ in iter(drawing.step, False))


def film(drawing: Drawing, frames: Path, folder: Path) -> Path:
    drawing.settle(frames)
    steps(drawing)
    return drawing.finish(folder)


@pytest.fixture
def whole(tmp_path: Path, clip: Path) -> Iterator[tuple[Path, bytes]]:
    """Finished results, and the overlay that is drawn of them at once."""
    (tmp_path / "whole").mkdir()
    path = tmp_path / "whole" / "frames.msgpack"
    write(path, range(FRAMES)).close()
    yield path, write_overlay(clip, path, path.parent).read_bytes()


def test_as_the_results_grow(tmp_path: Path, clip: Path, whole: tuple[Path, bytes]) -> None:
    growing = tmp_path / "frames.msgpack"
    with closing(Drawing(clip, growing, tmp_path / "work")) as drawing:
        assert not drawing.step()  # there is not even a file
        writer = write(growing, range(7))
        assert steps(drawing) == 7 and steps(drawing) == 0
        write(growing, range(7, FRAMES), writer).close()
        assert steps(drawing) == FRAMES - 7
        out = tmp_path / "out"
        out.mkdir()
        assert film(drawing, whole[0], out).read_bytes() == whole[1]
    assert not (tmp_path / "work").exists() and [path.name for path in out.iterdir()] == ["overlay.mp4"]


@pytest.mark.parametrize("killed", [0, 3, 10, 17, 20, 32])
def test_killed_anywhere(tmp_path: Path, clip: Path, whole: tuple[Path, bytes], killed: int) -> None:
    first = Drawing(clip, whole[0], tmp_path / "work")
    for _ in range(killed):
        assert first.step()  # and no word any more from it
    out = tmp_path / "out"
    out.mkdir()
    with closing(Drawing(clip, whole[0], tmp_path / "work")) as second:
        assert steps(second) == FRAMES - killed // 10 * 10
        assert film(second, whole[0], out).read_bytes() == whole[1]
    first.close()


@pytest.mark.parametrize("harm", ["part", "note", "missing"])
def test_parts_that_are_not_whole_are_drawn_again(
    tmp_path: Path, clip: Path, whole: tuple[Path, bytes], harm: str
) -> None:
    work = tmp_path / "work"
    with closing(Drawing(clip, whole[0], work)) as first:
        steps(first)
    if harm == "note":
        (work / "1.json").write_text("{")
    elif harm == "missing":
        (work / "1.mp4").unlink()
    else:  # one that was never finished has no note
        (work / "3.mp4").write_bytes(b"half")
    out = tmp_path / "out"
    out.mkdir()
    with closing(Drawing(clip, whole[0], work)) as second:
        assert film(second, whole[0], out).read_bytes() == whole[1]


@pytest.mark.parametrize("seen", [25, 13, 4])
def test_what_the_pipeline_took_back_is_drawn_again(
    tmp_path: Path, clip: Path, whole: tuple[Path, bytes], seen: int
) -> None:
    growing = tmp_path / "frames.msgpack"
    write(growing, range(12)).close()
    kept = growing.stat().st_size
    with closing(Drawing(clip, growing, tmp_path / "work")) as drawing:
        writer = ResultWriter.resume(growing, kept)
        write(growing, range(12, max(seen, 12)), writer, x=99.0).close()
        assert steps(drawing) == max(seen, 12)
        if seen < 12:
            kept = 0
        writer = ResultWriter.resume(growing, kept) if kept else ResultWriter.create(growing, header())
        write(growing, range(12 if kept else 0, FRAMES), writer).close()
        steps(drawing)
        out = tmp_path / "out"
        out.mkdir()
        assert film(drawing, whole[0], out).read_bytes() == whole[1]


def test_another_style_begins_anew(tmp_path: Path, clip: Path, whole: tuple[Path, bytes]) -> None:
    work = tmp_path / "work"
    with closing(Drawing(clip, whole[0], work, Style(side=80))) as first:
        steps(first)
    out = tmp_path / "out"
    out.mkdir()
    with closing(Drawing(clip, whole[0], work)) as second:
        assert film(second, whole[0], out).read_bytes() == whole[1]


def test_no_longer_than_the_configured_side(tmp_path: Path, clip: Path, whole: tuple[Path, bytes]) -> None:
    made = write_overlay(clip, whole[0], tmp_path, style=Style(side=80))
    with av.open(str(made)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == (80, 60)


def test_times_are_those_of_the_input(clip: Path, whole: tuple[Path, bytes]) -> None:
    with av.open(str(whole[0].parent / "overlay.mp4")) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
        assert times == pytest.approx([number / 30 for number in range(FRAMES)], abs=1e-4)
        assert float(stream.duration * stream.time_base) == pytest.approx(FRAMES / 30, abs=1e-3)
        assert stream.average_rate == 30


@pytest.mark.parametrize(
    ("size", "tagged", "expected"),
    [((160, 120), 2, BT601), ((1280, 720), 2, BT709), ((720, 1280), 2, BT709), ((160, 120), 1, BT709),
     ((1280, 720), 5, BT601), ((720, 576), 2, BT601), ((1920, 1080), 9, BT709)],
)  # fmt: skip
def test_colours_are_written_as_the_tags_say(
    tmp_path: Path, size: tuple[int, int], tagged: int, expected: int
) -> None:
    look = Look.of(*size, Fraction(30), tagged, 1920)
    colour = np.array([30, 160, 220], np.uint8)  # BGR
    part = module.Part(tmp_path / "0.mp4", look)
    for _ in range(3):
        part.add(np.broadcast_to(colour, (look.height, look.width, 3)).copy())
    part.close()
    module.join([(tmp_path / "0.mp4", [0, 3000, 6000])], look, tmp_path / "film.mp4", None)
    with av.open(str(tmp_path / "film.mp4")) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert tags == (expected, expected, expected, 1)
        frame = next(container.decode(video=0))
        y, u, v = (int(plane[plane.shape[0] // 2, plane.shape[1] // 2]) for plane in planes(frame))
    # By the standards' own formulas, and not by the library that converted.
    kr, kb = (0.2126, 0.0722) if expected == BT709 else (0.299, 0.114)
    b, g, r = (float(value) / 255 for value in colour)
    luma = kr * r + (1 - kr - kb) * g + kb * b
    wanted = (16 + 219 * luma, 128 + 112 * (b - luma) / (1 - kb), 128 + 112 * (r - luma) / (1 - kr))
    assert (y, u, v) == pytest.approx(wanted, abs=3)


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    full = frame.to_ndarray()
    height, width = frame.height, frame.width
    flat = full.reshape(-1)
    luma, quarter = height * width, height * width // 4
    return [
        flat[:luma].reshape(height, width),
        flat[luma : luma + quarter].reshape(height // 2, width // 2),
        flat[luma + quarter :].reshape(height // 2, width // 2),
    ]


# -- sound -------------------------------------------------------------------------------------------------


def with_sound(path: Path, codec: str, late: float = 0.0) -> Path:
    """A clip of 33 frames with two seconds of sound that is silent but for a click at second 0.5 of the picture."""
    silent = write_squares(path.with_name("silent.mp4"), FRAMES)
    rate = 48_000
    sound = np.zeros((1, 2 * rate), np.int16)
    sound[0, rate // 2 : rate // 2 + 480] = 20_000
    with av.open(str(path), "w") as container, av.open(str(silent)) as pictures:
        video = container.add_stream_from_template(pictures.streams.video[0])
        audio = container.add_stream(codec, rate=rate, layout="mono")
        offset = round(late / pictures.streams.video[0].time_base)
        for packet in pictures.demux(video=0):
            if packet.size:
                packet.stream, packet.pts, packet.dts = video, packet.pts + offset, packet.dts + offset
                container.mux(packet)
        whole = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
        whole.sample_rate, whole.pts = rate, round(late * rate)
        fit = av.AudioResampler(audio.codec_context.format, "mono", rate, audio.codec_context.frame_size or 1024)
        for frame in [*fit.resample(whole), *fit.resample(None), None]:
            container.mux(audio.encode(frame))
    return path


def click(path: Path) -> float:
    """The second at which the sound of a film becomes loud."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = np.abs(frame.to_ndarray().astype(np.float64))[0]
            loud = np.flatnonzero(samples > 0.25 * (32768 if frame.format.name.startswith("s16") else 1))
            if len(loud):
                return float(frame.pts * frame.time_base) + loud[0] / frame.sample_rate
    raise AssertionError("silence")


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "pcm_s16le"), ("a.mkv", "ac3")])
@pytest.mark.parametrize("late", [0.0, 1.5])
def test_the_sound_goes_along_in_time(
    tmp_path: Path, whole: tuple[Path, bytes], name: str, codec: str, late: float
) -> None:
    clip = with_sound(tmp_path / name, codec, late)
    made = write_overlay(clip, whole[0], tmp_path)
    with av.open(str(made)) as container:
        kept = container.streams.audio[0].codec_context.name
        assert kept == ("aac" if codec.startswith("pcm") else codec)
        length = container.streams.audio[0].duration * container.streams.audio[0].time_base
        assert float(length) == pytest.approx(FRAMES / 30, abs=0.1)  # not longer than the picture
    assert click(made) == pytest.approx(0.5, abs=0.03)


def test_a_setting_says_no_sound(tmp_path: Path, whole: tuple[Path, bytes]) -> None:
    clip = with_sound(tmp_path / "a.mp4", "aac")
    made = write_overlay(clip, whole[0], tmp_path, style=Style(sound=False))
    with av.open(str(made)) as container:
        assert not container.streams.audio
