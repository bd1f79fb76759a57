"""Single images and folders of numbered images as sources."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from stages.names import legible
from stages.records import U8
from stages.source.base import Decoded, Progress, SourceError, SourceInfo
from stages.source.geometry import Geometry
from stages.source.reading import RAW_SUFFIXES, is_image, pictures_in, read_image

FOLDER_RATE = Fraction(30)
"""Frames per second that a folder of images is taken to have."""

IMAGE_SUFFIXES = RAW_SUFFIXES | frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jp2", ".jpeg", ".jpg", ".jxl", ".pgm", ".png", ".ppm", ".tif",
     ".tiff", ".webp")
)  # fmt: skip
"""Endings that count as an image even if the content does not: a damaged one, or one of a kind that cannot be read, is
reported, not overlooked."""

GAPS_TOLD = 5


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts frame_2 before frame_10; names that differ only in zeros have an order too."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdigit() and p.isascii() else (1, 0, p) for p in parts], name


class ImageSource:
    """One image, or a folder of them in natural order.

    Args:
        path: of a file or folder.
        max_pixels: a larger image is an error before it is decoded, for the formats whose size can be read.
        working: the most pixels that an image is given with; larger ones are scaled down. None: any number.
        progress: called for each file while the folder is opened.

    Raises:
        SourceError: no image, or none that can be read.
        OSError: the folder cannot be read.
    """

    def __init__(
        self, path: Path, max_pixels: int, working: int | None = None, progress: Progress = lambda: None
    ) -> None:
        self._max_pixels = max_pixels
        self._progress = progress
        self.truncated: str | None = None
        self._folder = path.is_dir()
        self._files = _listed(path, progress) if self._folder else [path]
        self.expected = len(self._files)
        image, suffix = self._first_readable(path)
        if not self._folder and (pictures := pictures_in(path)) > 1:
            self.truncated = f"only the first of the {pictures} pictures in it is read; convert it to a video"
        self._geometry = Geometry((image.shape[1], image.shape[0]), most=working)
        gaps = gaps_in([file.name for file in self._files]) if self._folder else None
        self.info = SourceInfo(
            kind="images" if self._folder else "image",
            width=image.shape[1],
            height=image.shape[0],
            rate=FOLDER_RATE if self._folder else Fraction(0),
            frames=len(self._files),
            rotation=0,
            codec=legible(suffix),
            duration=float(len(self._files) / FOLDER_RATE) if self._folder else None,
            working=self._geometry.working,
            notes=() if gaps is None else (gaps,),
        )

    def frames(self, start: int = 0) -> Iterator[Decoded]:
        for index in range(start, len(self._files)):
            try:
                image = read_image(self._files[index], self._max_pixels)
            except SourceError as error:
                yield Decoded(index, self.time_of(index), None, str(error))
                continue
            yield self._fitted(index, image)

    def time_of(self, frame: int) -> float:
        return float(frame / self.info.rate) if self.info.rate else 0.0

    def name_of(self, frame: int) -> str | None:
        return legible(self._files[frame].name) if self._folder and frame < len(self._files) else None

    def next_start(self, frame: int) -> int | None:
        return frame + 1

    def close(self) -> None:
        pass

    def _fitted(self, index: int, image: U8) -> Decoded:
        def resize(width: int, height: int) -> U8:
            if (width, height) == (image.shape[1], image.shape[0]):
                return image
            return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

        fitted, size = self._geometry.picture((image.shape[1], image.shape[0]), resize)
        return Decoded(index, self.time_of(index), fitted, size=size)

    def _first_readable(self, path: Path) -> tuple[U8, str]:
        error: SourceError | None = None
        for file in self._files:
            self._progress()
            try:
                return read_image(file, self._max_pixels), file.suffix.lower().lstrip(".")
            except SourceError as found:
                error = error or found
        if error is not None and len(self._files) == 1:
            raise error
        raise SourceError("unreadable-image", f"{path}: not one image in it can be read; the first: {error}")


def check_folder(folder: Path) -> None:
    """That there is an image in it; looks no further than the first.

    Raises:
        SourceError: no-images.
        OSError: it cannot be read.
    """
    others: Counter[str] = Counter()
    if next(_images_in(folder, lambda: None, others), None) is None:
        raise _no_images(folder, others)


def _listed(folder: Path, progress: Progress) -> list[Path]:
    others: Counter[str] = Counter()
    if files := sorted(_images_in(folder, progress, others), key=lambda file: natural_key(file.name)):
        return files
    raise _no_images(folder, others)


def _no_images(folder: Path, others: Counter[str]) -> SourceError:
    kinds = ", ".join(f"{count} {legible(suffix)}" for suffix, count in others.most_common(5))
    instead = f" (it has: {kinds}); name the files themselves if they are videos" if kinds else ""
    return SourceError("no-images", f"{folder} is a folder without images{instead}")


def gaps_in(names: Sequence[str]) -> str | None:
    """What to say of numbers that are missing between images that are numbered one by one; None for nothing."""
    found = [re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.ASCII | re.DOTALL) for name in names]
    numbers = [int(match[2]) for match in found if match]
    if len(numbers) < len(names) or len({(match[1], match[3].lower()) for match in found if match}) > 1:
        return None
    steps = Counter(b - a for a, b in pairwise(numbers))
    if steps[1] * 2 <= len(numbers) - 1:  # every tenth frame, or dates: nothing is missing there
        return None
    gaps = [(a + 1, b - 1) for a, b in pairwise(numbers) if b - a > 1]
    if not gaps:
        return None
    told = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in gaps[:GAPS_TOLD])
    more = f" and {len(gaps) - GAPS_TOLD} more gaps" if len(gaps) > GAPS_TOLD else ""
    return f"missing in the numbering of its images: {told}{more}; the others follow each other without a pause"


def _images_in(folder: Path, progress: Progress, others: Counter[str]) -> Iterator[Path]:
    for path in folder.iterdir():
        progress()
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path
            continue
        with contextlib.suppress(OSError):
            if is_image(path):
                yield path
                continue
        others[path.suffix.lower() or "without an ending"] += 1
