"""Single images and folders of numbered images, by OpenCV.

OpenCV turns images upright by their EXIF orientation and converts grey, 16-bit and transparent ones to BGR.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stages.names import legible, spelled
from stages.records import U8
from stages.source.base import Decoded, Progress, SourceError, SourceInfo, too_large
from stages.source.headers import ends_early, image_size

FOLDER_RATE = 30.0
"""Frames per second that a folder of images is taken to have."""

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)  # fmt: skip
"""Endings that count as an image even if the content does not: a damaged one is reported, not overlooked."""

IMAGE_BRANDS = frozenset((b"avif", b"heic", b"heix", b"mif1"))
"""Of the files that are built like MP4: the brands that are single images."""


MOTION_SUFFIXES = frozenset((".mjpeg", ".mjpg"))
"""Endings of JPEGs one behind the other, of which the first looks like any other JPEG."""


def is_image(path: Path) -> bool:
    """Whether the file's content is an image (animations count as videos, where they can be read as such)."""
    with path.open("rb") as file:
        start = file.read(12)
    if path.suffix.lower() in MOTION_SUFFIXES:
        return False
    if start.startswith(b"GIF8") or (start[4:8] == b"ftyp" and start[8:] not in IMAGE_BRANDS):
        return False  # OpenCV takes the start of some MP4 files for an image
    with spelled(path) as name:
        return bool(cv2.haveImageReader(name))


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts frame_2 before frame_10; names that differ only in zeros have an order too."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdigit() and p.isascii() else (1, 0, p) for p in parts], name


class ImageSource:
    """One image, or a folder of them in natural order.

    Args:
        path: of a file or folder.
        max_pixels: a larger image is an error before it is decoded, for the formats whose size can be read.
        progress: called for each file while the folder is opened.

    Raises:
        SourceError: no image, or none that can be read.
    """

    def __init__(self, path: Path, max_pixels: int, progress: Progress = lambda: None) -> None:
        self._max_pixels = max_pixels
        self._progress = progress
        self.truncated: str | None = None
        folder = path.is_dir()
        self._files = sorted(_images_in(path, progress), key=lambda p: natural_key(p.name)) if folder else [path]
        if not self._files:
            raise SourceError("no-images", f"{path} is a folder without images")
        self.expected = len(self._files)
        first, suffix = self._first_readable(path)
        if not folder and (pictures := _pictures_in(path)) > 1:
            self.truncated = f"only the first of the {pictures} pictures in it is read; convert it to a video"
        self._shape = first
        self.info = SourceInfo(
            kind="images" if folder else "image",
            width=first[1],
            height=first[0],
            fps=FOLDER_RATE if folder else 0.0,
            frames=len(self._files),
            rotation=0,
            codec=legible(suffix),
            duration=len(self._files) / FOLDER_RATE if folder else None,
        )

    def frames(self, start: int = 0) -> Iterator[Decoded]:
        for index in range(start, len(self._files)):
            file, time = self._files[index], self.time_of(index)
            try:
                image = read_image(file, self._max_pixels)
            except SourceError as error:
                yield Decoded(index, time, None, str(error))
                continue
            if image.shape[:2] != self._shape:
                size = f"{image.shape[1]}x{image.shape[0]} among images of {self.info.width}x{self.info.height}"
                yield Decoded(index, time, None, f"{file.name} is {size}; images of another size are left out")
                continue
            yield Decoded(index, time, image)

    def time_of(self, frame: int) -> float:
        return frame / self.info.fps if self.info.fps else 0.0

    def next_start(self, frame: int) -> int | None:
        return frame + 1

    def close(self) -> None:
        pass

    def _first_readable(self, path: Path) -> tuple[tuple[int, int], str]:
        error: SourceError | None = None
        for file in self._files:
            self._progress()
            try:
                image = read_image(file, self._max_pixels)
            except SourceError as found:
                error = error or found
                continue
            return (image.shape[0], image.shape[1]), file.suffix.lower().lstrip(".")
        if error is not None and len(self._files) == 1:
            raise error
        raise SourceError("unreadable-image", f"{path}: not one image in it can be read; the first: {error}")


def read_image(path: Path, max_pixels: int) -> U8:
    """Decode an image to (H, W, 3) uint8 BGR, upright.

    Raises:
        SourceError: it is too large, cut off or no image.
    """
    try:
        size = image_size(path)
        if size is not None and size[0] * size[1] > max_pixels:
            raise too_large(path, *size, max_pixels)
        cut = ends_early(path)
        with spelled(path) as name:
            image = None if cut else _imread(name)
    except MemoryLimitError as error:
        limit = f"{max_pixels / 1e6:.1f} million pixels are allowed; raise stages.max_pixels and stages.ring_mb"
        raise SourceError("too-large", f"{path} is larger: {limit}, or scale it down") from error
    except OSError as error:
        raise SourceError("unreadable-image", f"{path} cannot be read: {error.strerror}") from error
    if image is None:
        why = "its end is missing" if cut else "it is damaged or of an unknown format"
        raise SourceError("unreadable-image", f"{path} cannot be read as an image: {why}")
    if image.shape[0] * image.shape[1] > max_pixels:
        raise too_large(path, image.shape[1], image.shape[0], max_pixels)
    return np.asarray(image, np.uint8)


class MemoryLimitError(Exception):
    """OpenCV refuses an image by its header: see `stages.owner.processes.PIXELS_VARIABLE`."""


def _imread(name: str) -> Any:
    try:
        return cv2.imread(name, cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise MemoryLimitError from error
        return None


def _pictures_in(path: Path) -> int:
    """How many there are in an animation, or a file of pages."""
    with contextlib.suppress(cv2.error, OSError), spelled(path) as name:
        return int(cv2.imcount(name))
    return 1


def _images_in(folder: Path, progress: Progress) -> Iterator[Path]:
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
