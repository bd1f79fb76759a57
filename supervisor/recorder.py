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

PAGE = 8192
HALF = PAGE // 2
_HEADER = struct.Struct("<QII")  # sequence, length, crc32
LARGEST = HALF - _HEADER.size


class FlightRecorder:
    """One process's page, by file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._page = mmap.mmap(fd, PAGE)
        self._sequence = max((entry[0] for entry in self._entries()), default=0)

    @classmethod
    def create(cls) -> FlightRecorder:
        """A new page in anonymous memory; it goes with the last process that holds it."""
        fd = os.memfd_create("flight-recorder", os.MFD_CLOEXEC)
        os.ftruncate(fd, PAGE)
        return cls(fd)

    def write(self, activity: dict[str, Any] | None) -> None:
        """Record what is about to be done, or None for: nothing. What is too long for a page is cut to its
        first keys rather than lost."""
        data = json.dumps(activity).encode()
        if len(data) > LARGEST:
            data = json.dumps({"too_long": len(data), **_shortened(activity or {})}).encode()[:LARGEST]
        self._sequence += 1
        start = (self._sequence % 2) * HALF
        body = start + _HEADER.size
        self._page[body : body + len(data)] = data
        _HEADER.pack_into(self._page, start, self._sequence, len(data), zlib.crc32(data))

    def read(self) -> dict[str, Any] | None:
        """The last whole entry, or None where nothing was being done."""
        entries = self._entries()
        if not entries:
            return None
        found = json.loads(max(entries)[1])
        return found if isinstance(found, dict) else None

    def clear(self) -> None:
        self.write(None)

    def close(self) -> None:
        self._page.close()
        os.close(self.fd)

    def _entries(self) -> list[tuple[int, bytes]]:
        found = []
        for start in (0, HALF):
            sequence, length, checksum = _HEADER.unpack_from(self._page, start)
            data = self._page[start + _HEADER.size : start + _HEADER.size + min(length, LARGEST)]
            if sequence and zlib.crc32(data) == checksum:
                found.append((sequence, data))
        return found


def _shortened(activity: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in activity.items():
        if len(json.dumps(kept)) + len(json.dumps(value)) < LARGEST - 200:
            kept[key] = value
    return kept
