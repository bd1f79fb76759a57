"""Files of many kinds, damaged by chance: each ends with a name or with frames accounted for, never with nothing.

``python -m tests.stages.fuzz_sources --files 2000`` for a long run: first each file by itself, then through a pipeline.
The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pillow_heif
from PIL import Image

from stages.owner.jobs import JobDone, JobFailed
from stages.source import Decoded, SourceError, open_source
from tests.stages.clips import H264, picture, write_clip
from tests.stages.harness import Run

PATIENCE = 120.0
"""Seconds after which a file counts as a hang: a busy machine must not be one."""

PIXELS = 1 << 22


def clip(name: str, codec: str = H264, **options: object) -> Callable[[Path], Path]:
    return lambda folder: write_clip(folder / name, 14, codec=codec, gop=5, **options)  # type: ignore[arg-type]


def image(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pillow_heif.register_heif_opener()
        Image.fromarray(np.ascontiguousarray(picture(77)[:, :, ::-1])).save(folder / name)
        return folder / name

    return write


KINDS: dict[str, Callable[[Path], Path]] = {
    "mp4": clip("a.mp4"), "faststart": clip("front.mp4", index_in_front=True), "mov": clip("a.mov", "mpeg4"),
    "mkv": clip("a.mkv"), "ts": clip("a.ts"), "avi": clip("a.avi", "mpeg4"), "mpg": clip("a.mpg", "mpeg2video"),
    "h264": clip("a.h264"), "flv": clip("a.flv"), "mjpeg": clip("intra.avi", "mjpeg"), "heic": image("a.heic"),
    "avif": image("a.avif"), "jpg": image("a.jpg"), "png": image("a.png"), "tiff": image("a.tif"),
}  # fmt: skip
if "libx265" in av.codecs_available:
    KINDS["hevc"] = clip("hevc.mkv", "libx265", options={"x265-params": "log-level=none"})
if "libvpx-vp9" in av.codecs_available:
    KINDS["webm"] = clip("a.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same file after one to three accidents."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(found))
        length = min(chance.choice((1, 4, 40, 400)), len(found) - at)
        kind = chance.randrange(7)
        if kind == 0:
            for _ in range(chance.choice((1, 3, 30))):
                found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[at : at + length] = bytes(length)
        elif kind == 2:
            found[at : at + length] = chance.randbytes(length)
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length]
        elif kind == 5 and at > 16:
            del found[at:]
        else:  # a header is hit more often than its share of the bytes
            place = chance.randrange(min(len(found), 300))
            found[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(found)


def files(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path]]:
    """``count`` damaged files, of all kinds in turn; each is there until the next is asked for."""
    whole = {name: write(folder) for name, write in KINDS.items()}
    content = {name: path.read_bytes() for name, path in whole.items()}
    for number in range(count):
        name = list(KINDS)[number % len(KINDS)]
        path = folder / f"{number}-{whole[name].name}"
        path.write_bytes(mutated(content[name], random.Random(f"{seed} {number}")))
        yield name, path
        path.unlink()


def check(path: Path) -> str:
    """How one file ends, in few words.

    Raises:
        AssertionError: a promise is broken.
    """
    try:
        source = open_source(path, max_pixels=PIXELS, working=PIXELS)
    except SourceError as error:
        assert str(error), error.name
        return error.name
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert all((frame.image is None) == (frame.failure is not None) for frame in frames)
    assert source.info.frames in (None, len(frames))
    assert frames or source.truncated, "nothing, and not a word why"
    size = source.info.working
    assert all(frame.image is None or frame.image.shape == (size[1], size[0], 3) for frame in frames)
    for start in {len(frames) // 3, len(frames) * 2 // 3, max(len(frames) - 1, 0)}:
        again = list(source.frames(start))
        assert len(again) == len(frames) - start
        assert all(map(same, frames[start:], again)), f"other frames from {start} on"
    if any(frame.failure for frame in frames):
        return "some frames failed"
    return "some frames damaged" if any(frame.damaged for frame in frames) else "all frames"


def same(a: Decoded, b: Decoded) -> bool:
    if (a.index, a.time, a.failure, a.damaged, a.size) != (b.index, b.time, b.failure, b.damaged, b.size):
        return False
    return a.image is b.image if a.image is None or b.image is None else np.array_equal(a.image, b.image)


def checked_apart(path: Path) -> tuple[bool, str]:
    """`check` in a process of its own: whether all is well, and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            told = f"+{check(path)}"
        except BaseException:  # noqa: BLE001 - whatever it is
            told = f"-{traceback.format_exc(limit=-3)}"
        os.write(writer, told.encode(errors="replace")[-4000:])
        os._exit(0)
    os.close(writer)
    try:
        ended, _, _ = select.select([reader], [], [], PATIENCE)
        if not ended:
            os.kill(child, signal.SIGKILL)
        told = os.read(reader, 5000).decode() if ended else ""
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(reader)
    if not ended:
        return False, f"a hang: nothing for {PATIENCE:.0f} s"
    if not told:
        return False, f"the decoder died by signal {os.waitstatus_to_exitcode(status)}"
    return told[0] == "+", told[1:]


def by_themselves(folder: Path, count: int, seed: int, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """How many files ended how, by kind, and what is wrong."""
    ends: Counter[str] = Counter()
    wrong = []
    for number, (name, path) in enumerate(files(folder, count, seed)):
        fine, how = checked_apart(path)
        ends[how if fine else "WRONG"] += 1
        if not fine:
            wrong.append(f"{path.name} ({name}): {how}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / path.name).write_bytes(path.read_bytes())
        if keep is not None and number % 100 == 99:
            print(f"{number + 1}: {dict(ends)}", flush=True)
    return ends, wrong


def through_a_pipeline(folder: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """The same for jobs of one pipeline, one after the other."""
    ends: Counter[str] = Counter()
    wrong = []
    with Run(max_pixels=PIXELS) as run:
        for number, (name, path) in enumerate(files(folder, count, seed)):
            work = folder / f"work-{number}"
            run.work(path, work, f"job-{number}")
            ended = run.finish(f"job-{number}")
            if isinstance(ended, JobDone):
                ends["done"] += 1
                fine = ended.outcome.frames > len(ended.outcome.failed_frames)
            else:
                assert isinstance(ended, JobFailed)
                ends[ended.error] += 1
                fine = bool(ended.error and ended.message) and "crashed" not in ended.error
            if not fine:
                wrong.append(f"{path.name} ({name}): {ended}")
    return ends, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--pipeline", type=int, default=200, help="how many go through a pipeline too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-found"), help="where files go that broke a promise"
    )
    asked = parser.parse_args()
    os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
    began = time.monotonic()
    broken = 0
    for what, count in ((by_themselves, asked.files), (through_a_pipeline, asked.pipeline)):
        with tempfile.TemporaryDirectory() as folder:
            more = (asked.keep,) if what is by_themselves else ()
            ends, wrong = what(Path(folder), count, asked.seed, *more)
        broken += len(wrong)
        print(f"{what.__name__}: {count} files of {len(KINDS)} kinds, {time.monotonic() - began:.0f} s")
        for how, number in ends.most_common():
            print(f"  {number:6} {how}")
        for line in wrong:
            print("  wrong:", line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
