"""Small synthetic video files for tests. Every frame carries its own number, readable after lossy coding."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

BITS = 12
"""Bits of the frame number that are drawn, as black and white blocks along the upper edge."""

H264 = "libx264" if "libx264" in av.codecs_available else "mpeg4"


def picture(number: int, width: int = 192, height: int = 96) -> npt.NDArray[np.uint8]:
    """Frame ``number`` (H, W, 3) uint8 BGR: its number in blocks, and below a box that moves."""
    image = np.full((height, width, 3), 60, np.uint8)
    block = width // BITS
    for bit in range(BITS):
        image[: height // 3, bit * block : (bit + 1) * block] = 255 if number >> bit & 1 else 0
    x = (number * 7) % max(width - 24, 1)
    y = height // 3 + (number * 5) % max(height * 2 // 3 - 24, 1)
    image[y : y + 24, x : x + 24] = (40, 160 + number % 60, 220)
    return image


def number_of(image: npt.NDArray[np.uint8]) -> int:
    """The number that `picture` drew into an upright image."""
    height, width = image.shape[:2]
    block = width // BITS
    row = image[height // 12 : height // 4]
    return sum(
        1 << bit
        for bit in range(BITS)
        if row[:, bit * block + block // 4 : (bit + 1) * block - block // 4].mean() > 127
    )


def write_clip(
    path: Path,
    frames: int = 30,
    *,
    width: int = 192,
    height: int = 96,
    fps: int = 30,
    stamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = H264,
    gop: int = 10,
    b_frames: int = 2,
    rotation: int = 0,
    index_in_front: bool = False,
    container_format: str | None = None,
    options: dict[str, str] | None = None,
    sizes: Iterable[tuple[int, int]] | None = None,
    images: Iterable[npt.NDArray[np.uint8]] | None = None,
) -> Path:
    """Write a video and return ``path``.

    ``stamps`` are presentation times in units of ``time_base`` (default 1/fps), one a frame; ``rotation`` in
    degrees counter-clockwise is written as metadata only; ``index_in_front`` puts an MP4's moov before its
    frames, so that a cut file can still be read.
    """
    base = time_base or Fraction(1, fps)
    flags = {"movflags": "faststart"} if index_in_front else {}
    with av.open(str(path), "w", format=container_format, options=flags) as container:
        coding: dict[str, str] = {}
        if codec == "libx264":
            coding = {"preset": "ultrafast", "crf": "18", "bf": str(b_frames), "threads": "1"}
            coding |= {"x264-params": "scenecut=0"}
        stream: Any = container.add_stream(codec, rate=fps, options=coding | (options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec in ("mjpeg",):
            stream.pix_fmt = "yuvj420p"
        stream.codec_context.gop_size = gop
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = b_frames
            stream.codec_context.bit_rate = 4_000_000
        stream.codec_context.time_base = base
        stream.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        drawn = images if images is not None else (picture(n, width, height) for n in range(frames))
        for number, image in enumerate(drawn):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = stamps[number] if stamps is not None else number
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path, seconds: float = 1.0) -> Path:
    """Write a file with sound only."""
    rate = 16000
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=rate)
        stream.layout = "mono"
        for start in range(0, int(seconds * rate), 1024):
            tone = np.sin(np.arange(start, start + 1024) * 0.1).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(source: Path, target: Path, keep: float) -> Path:
    """Copy the first ``keep`` (0 to 1) of a file, an odd number of bytes: no format's packets end there."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * keep) | 1])
    return target


def flip(source: Path, target: Path, seed: int, count: int = 5, start: float = 0.3, stop: float = 0.9) -> Path:
    """Copy a file with ``count`` bytes changed between the fractions ``start`` and ``stop`` of it."""
    data = bytearray(source.read_bytes())
    chance = random.Random(seed)
    for _ in range(count):
        data[chance.randrange(int(len(data) * start), int(len(data) * stop))] ^= chance.randrange(1, 256)
    target.write_bytes(data)
    return target
