"""One overlay on its way: drawn frame by frame as the results grow, and going on where it was killed.

Its work folder holds the parts of the film that are whole (`daemon.exports.film`), each with a note of the times of
its frames and of which bytes of the results it was drawn from. In the end those bytes are compared with the finished
results, and what was drawn from others is drawn again: so nothing depends on when it was interrupted, or on what the
pipeline took back after a crash of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from daemon.exports.film import TICKS, Look, Part, join
from daemon.exports.overlay import draw_record
from daemon.exports.sound import Sound
from daemon.exports.style import Style
from daemon.jobs.summary import place, versions, write_json
from stages.protocols import BodyModel, find_backend
from stages.records import FrameRecord
from stages.results import Results, ResultsError, read_results
from stages.source import Decoded, Source, open_source

FRAMES_PER_PART = 240
"""What is drawn again after a kill, at most."""
LARGEST = 1 << 28
"""Pixels: the pipeline has worked on this input already, so its limits hold."""
LAYOUT = 1
PLAN = "plan.json"
FILM = "overlay.mp4"
STILL = "overlay.png"

Progress = Callable[[int], None]
"""Told how many frames are done."""


class OtherInputError(Exception):
    """The input is not the one that the results are of."""

    def __init__(self, source: Path, what: str) -> None:
        super().__init__(f"{source} is {what}, and not what the results are of; name the right one by --video")


@dataclass(frozen=True)
class _Note:
    """Of a part: its frames' times in ticks, and the bytes of the results that it was drawn from."""

    stamps: list[int]
    begin: int
    end: int
    digest: str


class Drawing:
    """The overlay of one video, or of a folder of images.

    Args:
        source: the input.
        frames: its ``frames.msgpack``, which may not be there yet, and may grow.
        work: a folder for the parts, made if need be; what is in it is gone on with.
        style: what can be chosen.
        options: of the backend, for the body model where the results hold no vertices.
        alive: called in the middle of what takes long.
    """

    def __init__(
        self,
        source: Path,
        frames: Path,
        work: Path,
        style: Style | None = None,
        options: Any = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._frames = frames
        self._work = work
        self._style = style or Style()
        self._options = options or {}
        self._alive = alive
        self._results: Results | None = None
        self._records: Iterator[tuple[FrameRecord, bytes]] | None = None
        self._opened: Source | None = None
        self._pictures: Iterator[Decoded] | None = None
        self._look: Look | None = None
        self._body: BodyModel | None = None
        self._notes: list[_Note] = []
        self._part: Part | None = None
        self._stamps: list[int] = []
        self._begin = self._end = 0
        self._hash = hashlib.blake2b()
        self._whole = self._waits = self._still = False

    @property
    def settled(self) -> bool:
        """Whether the results are known to be whole."""
        return self._whole

    @property
    def done(self) -> int:
        """Frames drawn."""
        return sum(len(note.stamps) for note in self._notes) + len(self._stamps)

    def step(self) -> bool:
        """Draw the next frame; False if it is not in the results yet.

        Raises:
            SourceError: the input cannot be read any more.
            ResultsError: the results cannot be read.
            OtherInputError: the input is not the one that the results are of.
            OSError: the disk refuses a part.
        """
        if self._waits or (self._results is None and not self._open()) or self._still:
            return False
        assert self._results is not None and self._look is not None
        if self._records is None:
            self._records = self._results.with_bytes()
        try:
            found = next(self._records, None)
        except ResultsError:
            if self._whole:
                raise
            self._waits = True  # the pipeline has taken back what was read: `finish` sees what stays
            return False
        if found is None:
            self._records = None
            return False
        record, data = found
        self._draw(record)
        self._hash.update(data)
        self._end += len(data)
        if len(self._stamps) >= FRAMES_PER_PART:
            self._close_part()
        return True

    def settle(self, frames: Path) -> None:
        """The results are whole, and stand in ``frames``: what was drawn from others is dropped.

        Raises:
            as `step`.
        """
        self._forget_results()
        self._frames, self._whole, self._waits = frames, True, False
        with read_results(frames) as whole:
            self._verify(whole)

    def finish(self, folder: Path) -> Path:
        """After `settle`, when `step` has no more to draw: join the parts, and bring the film into ``folder``.

        Returns:
            The film, or the picture of a single image.

        Raises:
            as `step`.
        """
        if self._still:
            return self._draw_still(folder)
        if self._stamps:
            self._close_part()
        if not self._notes or self._look is None:
            raise ResultsError(f"{self._frames}: there is not one frame to draw")
        film = self._work / FILM
        parts = [(self._path(number), note.stamps) for number, note in enumerate(self._notes)]
        join(parts, self._look, film, self._sound(), self._alive)
        place(film, folder / FILM)
        self.close()
        shutil.rmtree(self._work, ignore_errors=True)
        return folder / FILM

    def close(self) -> None:
        """Let go of everything; what is whole stays, to be gone on with."""
        self._forget_results()
        if self._part is not None:
            self._part.leave()
            self._part = None
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    # -- opening -------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Whether there are results to draw from; then everything is ready for the next frame."""
        try:
            results = read_results(self._frames, follow=True)
        except ResultsError:
            return False  # not even their header is there yet
        if self._opened is None:
            try:
                self._prepare(results)
            except BaseException:
                results.close()
                raise
        self._results = results
        if not self._still:
            results.go_on(self._end, self.done - 1)
        return True

    def _prepare(self, results: Results) -> None:
        header = results.header
        opened = open_source(self._source, max_pixels=LARGEST, stream=header.stream, progress=self._alive)
        size, expected = (opened.info.width, opened.info.height), (header.width, header.height)
        if size != expected:
            opened.close()
            raise OtherInputError(self._source, f"{size[0]}x{size[1]}, not {expected[0]}x{expected[1]}")
        self._opened = opened
        self._work.mkdir(parents=True, exist_ok=True)
        self._still = opened.info.kind == "image"
        if self._still:
            return
        matrix = int(getattr(opened.info, "matrix", 2))
        self._look = Look.of(header.width, header.height, Fraction(*header.rate), matrix, self._style.side)
        first = results.start
        plan = {
            "layout": LAYOUT, "look": {**asdict(self._look), "rate": list(self._look.rate.as_integer_ratio())},
            "header": hashlib.blake2b(results.read(0, first)).hexdigest(), "versions": versions(),
        }  # fmt: skip
        with contextlib.suppress(OSError, ValueError):
            if json.loads((self._work / PLAN).read_text()) == plan:
                self._notes = list(self._whole_parts(first))
        kept = {PLAN, *(f"{number}.{kind}" for number in range(len(self._notes)) for kind in ("mp4", "json"))}
        for path in self._work.iterdir():
            if path.name not in kept:
                path.unlink()
        write_json(self._work / PLAN, plan)
        self._end = self._notes[-1].end if self._notes else first
        self._pictures = opened.frames(self.done)

    def _whole_parts(self, first: int) -> Iterator[_Note]:
        end, number = first, 0
        while self._path(number).is_file():
            try:
                note = _Note(**json.loads(self._path(number).with_suffix(".json").read_text()))
            except (OSError, ValueError, TypeError):
                return
            if note.begin != end or len(note.stamps) != FRAMES_PER_PART:
                return  # the last one is short, and longer now
            yield note
            end, number = note.end, number + 1

    def _verify(self, whole: Results) -> None:
        """Drop what was drawn from other bytes than these results have."""
        if self._look is None:
            return
        good = 0
        for note in self._notes:
            self._alive()
            if hashlib.blake2b(whole.read(note.begin, note.end)).hexdigest() != note.digest:
                break
            good += 1
        open_part = hashlib.blake2b(whole.read(self._begin, self._end)).hexdigest() == self._hash.hexdigest()
        if good == len(self._notes) and (open_part or not self._stamps):
            return
        if self._part is not None:
            self._part.leave()
            self._part = None
        self._stamps, self._notes = [], self._notes[:good]
        self._end = self._notes[-1].end if self._notes else whole.start
        assert self._opened is not None
        self._pictures = self._opened.frames(self.done)

    def _forget_results(self) -> None:
        if self._results is not None:
            self._results.close()
        self._results = self._records = None

    # -- drawing -------------------------------------------------------------------------------------------

    def _draw(self, record: FrameRecord) -> None:
        assert self._results is not None and self._look is not None and self._pictures is not None
        decoded = next(self._pictures, None)
        if decoded is None:
            raise OtherInputError(self._source, f"of {record.frame} frames")
        if decoded.image is None:
            image = np.zeros((self._look.height, self._look.width, 3), np.uint8)
        else:
            image = self._look.fit(decoded.image)
        draw_record(image, record, self._results.header, self._body_model)
        stamp = round(decoded.time * TICKS)
        if self._part is None:
            self._begin, self._hash = self._end, hashlib.blake2b()
            self._part = Part(self._path(len(self._notes)), self._look)
        before = self._stamps[-1] if self._stamps else self._notes[-1].stamps[-1] if self._notes else -1
        self._part.add(image)
        self._stamps.append(max(stamp, before + 1))

    def _draw_still(self, folder: Path) -> Path:
        assert self._results is not None and self._opened is not None
        header = self._results.header
        record, decoded = next(iter(self._results), None), next(self._opened.frames(), None)
        if record is None or decoded is None:
            raise ResultsError(f"{self._frames}: there is not one frame to draw")
        image = decoded.image
        if image is None:
            image = np.zeros((header.height, header.width, 3), np.uint8)
        draw_record(image, record, header, self._body_model)
        path, beside = folder / STILL, self._work / STILL
        if not cv2.imwrite(str(beside), image):
            raise OSError(f"{path} cannot be written: is there room on that disk?")
        place(beside, path)
        self.close()
        shutil.rmtree(self._work, ignore_errors=True)
        return path

    def _close_part(self) -> None:
        assert self._part is not None
        part, self._part = self._part, None
        part.close()
        note = _Note(self._stamps, self._begin, self._end, self._hash.hexdigest())
        write_json(self._path(len(self._notes)).with_suffix(".json"), asdict(note))
        self._notes.append(note)
        self._stamps = []

    def _path(self, number: int) -> Path:
        return self._work / f"{number}.mp4"

    def _body_model(self) -> BodyModel:
        if self._body is None:
            assert self._results is not None
            self._body = find_backend(self._results.header.backend).body(self._options)
        return self._body

    def _sound(self) -> Sound | None:
        start = getattr(self._opened, "start", None)
        return Sound(self._source, start) if self._style.sound and start is not None else None


def write_overlay(
    source: Path,
    results: Path,
    folder: Path,
    progress: Progress = lambda done: None,
    options: Any = None,
    style: Style | None = None,
) -> Path:
    """Draw finished results onto their input, here and now.

    A video or folder of images becomes ``overlay.mp4`` with the timing of the input, a single image
    ``overlay.png``. One frame is in memory at a time; the file is renamed into place when it is whole.

    Args:
        source: the input that the results are of.
        results: its ``frames.msgpack``.
        folder: where the picture goes.
        options: of the backend, for the body model where the results hold no vertices.

    Raises:
        as `Drawing.step`.
    """
    work = folder / ".overlay"
    drawing = Drawing(source, results, work, style, options)
    try:
        drawing.settle(results)
        while drawing.step():
            progress(drawing.done)
        return drawing.finish(folder)
    finally:
        drawing.close()
        shutil.rmtree(work, ignore_errors=True)
