"""Whether a video file is shorter than its own framing says: the sign of an upload or copy that broke off.

The layouts are those of ISO/IEC 14496-12 (boxes), RFC 8794 (EBML), the RIFF header and ISO/IEC 13818-1 (packets
of 188 bytes).
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

TS_PACKET = 188

_SEGMENT = 0x18538067
_EBML = 0x1A45DFA3


def missing_bytes(path: Path) -> int:
    """How many bytes the file lacks at least; 0 where it is whole or its format does not tell.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(12)
        if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            end = _boxes_end(file, size)
        elif int.from_bytes(start[:4], "big") == _EBML:
            end = _ebml_end(file, size)
        elif start[:4] == b"RIFF":
            end = 8 + int.from_bytes(start[4:8], "little")
        elif start[:1] == b"\x47" and size > TS_PACKET:
            file.seek(TS_PACKET)
            end = -(-size // TS_PACKET) * TS_PACKET if file.read(1) == b"\x47" else size
        else:
            end = size
    return max(end - size, 0)


def _boxes_end(file: BinaryIO, size: int) -> int:
    end = 0
    while end + 8 <= size:
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length == 0:  # up to the end of the file
            return size
        if length < 8 or not head[4:8].isalnum():  # trailing bytes that are no box
            return size
        end += length
    return end


def _ebml_end(file: BinaryIO, size: int) -> int:
    file.seek(0)
    end = 0
    while end < size:
        identity = _number(file, keep_marker=True)
        length = _number(file, keep_marker=False)
        if identity is None or length is None:  # live streams do not say their length
            return size
        end = file.tell() + length
        if identity == _SEGMENT:
            return end
        file.seek(end)
    return size


def _number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """A variable-length number of EBML; None for the reserved "unknown" or at the end."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    if len(rest) < extra:
        return None
    marker = 1 << (7 - extra)
    value = int.from_bytes(bytes([first[0] if keep_marker else first[0] & ~marker]) + rest, "big")
    unknown = (1 << 7 * (extra + 1)) - 1
    return None if not keep_marker and value == unknown else value
