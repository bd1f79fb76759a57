"""One picture file to pixels: by OpenCV, and by Pillow what OpenCV does not read or does not turn upright.

Both turn pictures upright by their EXIF orientation, or by what HEIF and AVIF have for it, and convert grey, 16-bit and
transparent ones.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stages.names import spelled
from stages.records import U8
from stages.source.base import SourceError, too_large
from stages.source.headers import ends_early, image_size, tiff_orientation

IMAGE_BRANDS = frozenset((b"avif", b"heic", b"heim", b"heis", b"heix", b"mif1"))
"""Of the files that are built like MP4: the brands that are pictures. Sequences of pictures are videos."""

RAW_SUFFIXES = frozenset((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"))
"""Endings of what cameras store before it is a picture. Many look like a TIFF of the size of a stamp."""

MOTION_SUFFIXES = frozenset((".mjpeg", ".mjpg"))
"""Endings of JPEGs one behind the other, of which the first looks like any other JPEG."""


def is_image(path: Path) -> bool:
    """Whether the file's content is an image (animations count as videos, where they can be read as such).

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(12)
    if path.suffix.lower() in MOTION_SUFFIXES:
        return False
    if path.suffix.lower() in RAW_SUFFIXES:
        return True
    if start[4:8] == b"ftyp":
        return start[8:] in IMAGE_BRANDS  # OpenCV takes the start of some MP4 files for an image
    if start.startswith(b"GIF8"):
        return False
    with spelled(path) as name:
        return bool(cv2.haveImageReader(name))


def read_image(path: Path, max_pixels: int) -> U8:
    """Decode an image to (H, W, 3) uint8 BGR, upright.

    Raises:
        SourceError: it is too large, cut off, of a kind that cannot be read, or no image.
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        raise SourceError("unsupported", f"{path} is a camera's raw picture, which is not read; export it as JPEG")
    try:
        size = image_size(path)
        if size is not None and size[0] * size[1] > max_pixels:
            raise too_large(path, *size, max_pixels)
        cut = ends_early(path)
        image = None if cut else _by_pillow(path, max_pixels) if _wants_pillow(path) else _by_opencv(path)
    except _BeyondLimitError as error:
        limit = f"{max_pixels / 1e6:.1f} million pixels are allowed; raise stages.max_pixels"
        raise SourceError("too-large", f"{path} is larger: {limit}, or scale it down") from error
    except OSError as error:
        raise SourceError("unreadable-image", f"{path} cannot be read: {error.strerror or error}") from error
    if image is None:
        why = "its end is missing" if cut else "it is damaged or of an unknown format"
        raise SourceError("unreadable-image", f"{path} cannot be read as an image: {why}")
    if image.shape[0] * image.shape[1] > max_pixels:
        raise too_large(path, image.shape[1], image.shape[0], max_pixels)
    return np.asarray(image, np.uint8)


def pictures_in(path: Path) -> int:
    """How many there are in an animation, or a file of pages."""
    with contextlib.suppress(cv2.error, OSError), spelled(path) as name:
        return int(cv2.imcount(name)) if not _wants_pillow(path) else 1
    return 1


class _BeyondLimitError(Exception):
    """OpenCV refuses an image by its header: see `stages.owner.processes.PIXELS_VARIABLE`."""


def _by_opencv(path: Path) -> Any:
    try:
        with spelled(path) as name:
            return cv2.imread(name, cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise _BeyondLimitError from error
        return None


def _wants_pillow(path: Path) -> bool:
    """HEIC is unknown to OpenCV; it leaves AVIF as it lies, and gives nothing for a TIFF that is to be turned by 90
    degrees."""
    with path.open("rb") as file:
        start = file.read(12)
    return (start[4:8] == b"ftyp" and start[8:] in IMAGE_BRANDS) or tiff_orientation(path) >= 5


def _by_pillow(path: Path, max_pixels: int) -> Any:
    import pillow_heif
    from PIL import Image, ImageOps

    pillow_heif.register_heif_opener()
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and its message names the setting
    try:
        with path.open("rb") as file, Image.open(file) as image:
            if image.width * image.height > max_pixels:
                raise too_large(path, image.width, image.height, max_pixels)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[:, :, ::-1])
    except (SourceError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(
            "unreadable-image",
            f"{path} cannot be read as an image: it is damaged or coded in an unknown way: {error}",
        ) from error
