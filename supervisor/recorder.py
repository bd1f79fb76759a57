"""The flight recorder: what a process was about to do, readable after any death.

A page of memory shared between the child, which writes, and the supervisor, which reads after a death, be it
by SIGKILL or a segmentation fault. Two halves are written in turn, each with a sequence number and a checksum,
so that a death in the middle of writing leaves the entry before it.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from typing import Any

PAGE = 1 << 16
"""Bytes; room for the longest list of work that a batch may have. Only what is used takes memory."""
_HEADER = struct.Struct("<QII")  # sequence, length, crc32


class FlightRecorder:
    """One process's page, by file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        size = os.fstat(fd).st_size
        self._page = mmap.mmap(fd, size)
        self._half = size // 2
        self._largest = self._half - _HEADER.size
        self._sequence = max((entry[0] for entry in self._entries()), default=0)

    @classmethod
    def create(cls) -> FlightRecorder:
        """A new page in anonymous memory; it goes with the last process that holds it."""
        fd = os.memfd_create("flight-recorder", os.MFD_CLOEXEC)
        os.ftruncate(fd, PAGE)
        return cls(fd)

    def write(self, activity: dict[str, Any] | None) -> None:
        """Record what is about to be done, or None for: nothing. What is too long for a page is cut to its
        those keys that fit rather than lost; what JSON does not know is written as text."""
        data = json.dumps(activity, default=str).encode()
        if len(data) > self._largest:
            data = _shortened(activity or {}, len(data), self._largest)
        self._sequence += 1
        start = (self._sequence % 2) * self._half
        body = start + _HEADER.size
        self._page[body : body + len(data)] = data
        _HEADER.pack_into(self._page, start, self._sequence, len(data), _checksum(self._sequence, data))

    def read(self) -> dict[str, Any] | None:
        """The last whole entry, or None where nothing was being done."""
        entries = self._entries()
        if not entries:
            return None
        found = json.loads(max(entries)[1])
        return found if isinstance(found, dict) else None

    def clear(self) -> None:
        """Nothing is being done: what the child writes when a piece of work is over."""
        self.write(None)

    def erase(self) -> None:
        """Forget the page, before a new life begins. Not `clear`: this side does not know the sequence that the
        dead child had reached, and an entry with a lower number would leave the old one in force."""
        for start in (0, self._half):
            _HEADER.pack_into(self._page, start, 0, 0, 0)
        self._sequence = 0

    def close(self) -> None:
        self._page.close()
        os.close(self.fd)

    def _entries(self) -> list[tuple[int, bytes]]:
        found = []
        for start in (0, self._half):
            sequence, length, checksum = _HEADER.unpack_from(self._page, start)
            data = self._page[start + _HEADER.size : start + _HEADER.size + min(length, self._largest)]
            if sequence and _checksum(sequence, data) == checksum:
                found.append((sequence, data))
        return found


def _checksum(sequence: int, data: bytes) -> int:
    # Over the header too: nothing at all has a valid CRC-32, of 0, and so would a header that is half written.
    return zlib.crc32(data, zlib.crc32(b"%d %d" % (sequence, len(data))))


def _shortened(activity: dict[str, Any], length: int, largest: int) -> bytes:
    kept: dict[str, Any] = {"too_long": length}
    data = json.dumps(kept).encode()
    for key, value in activity.items():
        longer = json.dumps({**kept, key: value}, default=str).encode()
        if len(longer) <= largest:
            kept[key] = value
            data = longer
    return data
