"""Sizes of images from their first bytes, so that absurd ones are refused before memory is asked for.

The layouts are those of the formats' specifications: PNG (ISO/IEC 15948), JPEG (ITU T.81), WebP (RFC 9649),
BMP (BITMAPINFOHEADER), TIFF 6.0 and the Netpbm formats.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import BinaryIO

Size = tuple[int, int]
"""Width and height in pixels, as stored (before any EXIF rotation)."""


def image_size(path: Path) -> Size | None:
    """Width and height that the header claims, or None for a format not known here or a header cut short.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(64)
        try:
            return _size(file, start)
        except (struct.error, ValueError, IndexError):
            return None


def ends_early(path: Path) -> bool:
    """Whether a JPEG lacks its end: decoders fill the missing part with grey and say nothing.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(3) != b"\xff\xd8\xff":
            return False
        _, scan = _jpeg_markers(file)
        if scan is None:
            return True
        file.seek(scan)
        # A 0xFF within the coded data is always followed by 0, so the end marker cannot occur by chance.
        return b"\xff\xd9" not in file.read()


def tiff_orientation(path: Path) -> int:
    """How a TIFF is to be turned, by its tag of the same numbers as EXIF's: 1 to 8; 1 for every other file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] not in (b"II*\0", b"MM\0*"):
            return 1
        with contextlib.suppress(struct.error):
            return _tiff_tags(file, start, (274,)).get(274, 1)
    return 1


def _size(file: BinaryIO, start: bytes) -> Size | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _pair(start, 16, ">II")
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg_markers(file)[0]
    if start.startswith(b"BM"):
        width, height = _pair(start, 18, "<ii")
        return abs(width), abs(height)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _webp(start)
    if start[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(file, start)
    if start[:1] == b"P" and start[1:2].isdigit() and start[2:3].isspace():
        lines = [line for line in start.split(b"\n") if not line.startswith(b"#")]
        fields = b" ".join(lines).split()
        return int(fields[1]), int(fields[2])
    return None


def _pair(data: bytes, offset: int, layout: str) -> Size:
    first, second = struct.unpack_from(layout, data, offset)
    return int(first), int(second)


def _jpeg_markers(file: BinaryIO) -> tuple[Size | None, int | None]:
    """The size in the start-of-frame marker, and where the coded data begins."""
    size: Size | None = None
    file.seek(2)
    while True:
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            return size, None
        kind = marker[1]
        if kind == 0xFF:  # padding
            file.seek(-1, 1)
            continue
        length = file.read(2)
        if len(length) < 2:
            return size, None
        segment = struct.unpack(">H", length)[0]
        begin = file.tell()
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = _pair(file.read(5), 1, ">HH")
            size = width, height
        if kind == 0xDA:
            return size, begin + segment - 2
        file.seek(begin + segment - 2)


def _webp(start: bytes) -> Size | None:
    kind = start[12:16]
    if kind == b"VP8X":
        return (
            int.from_bytes(start[24:27], "little") + 1,
            int.from_bytes(start[27:30], "little") + 1,
        )
    if kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = _pair(start, 26, "<HH")
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff(file: BinaryIO, start: bytes) -> Size | None:
    found = _tiff_tags(file, start, (256, 257))
    return (found[256], found[257]) if len(found) == 2 else None


def _tiff_tags(file: BinaryIO, start: bytes, wanted: tuple[int, ...]) -> dict[int, int]:
    order = "<" if start[:2] == b"II" else ">"
    file.seek(struct.unpack_from(order + "I", start, 4)[0])
    count = struct.unpack(order + "H", file.read(2))[0]
    entries = file.read(12 * count)
    found: dict[int, int] = {}
    for offset in range(0, len(entries) - 11, 12):
        tag, kind = struct.unpack_from(order + "HH", entries, offset)
        if tag in wanted:
            found[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), entries, offset + 8)[0]
    return found
