"""The journal: one job's mesh output, frame by frame, safe against every way a process can die.

Segments of records, each with its length and checksum; a new segment begins with each snapshot of the tracker,
and segments that lie before the older of the two kept snapshots are removed, so that disk use is bounded by
the distance of snapshots and not by the video's length.

What `Journal.append` has returned for survives the death of any process, since it is in the kernel's page cache;
snapshots and closing also force it to disk, against the loss of power.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

_MAGIC = b"PWJ1"
_RECORD = struct.Struct("<4sIQI")  # magic, length, frame, crc32 of frame and payload
_SEGMENT = re.compile(r"journal-(\d{12})")
_SNAPSHOT = re.compile(r"snapshot-(\d{12})")
_KEEP_SNAPSHOTS = 2


class JournalError(Exception):
    """The journal cannot be used; says which folder and the way out."""


class JournalOrderError(JournalError):
    """A frame that is not the next one was offered."""


class JournalFullError(JournalError):
    """The disk is full; what was journaled before is whole."""


class Journal:
    """Frames 0 to ``next_frame - 1`` of one job, in order, each exactly once. Use `Journal.open`.

    One process owns it, by a lock that the kernel drops when that process dies.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self._folder = folder
        self._lock = lock
        self._segment = -1
        self.next_frame = 0

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Open or create the journal in ``folder``; a torn or corrupt tail is cut off.

        Raises:
            JournalError: another process has it open, or the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "journal.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"{folder}: cannot keep a journal there: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise JournalError(f"{folder}: another process is working on this job") from None
        journal = cls(folder, lock)
        journal._recover()
        return journal

    def append(self, frame: int, payload: bytes) -> None:
        """Add the next frame.

        Raises:
            JournalOrderError: ``frame`` is not ``next_frame``.
            JournalFullError: no room on the disk; the journal stays valid.
        """
        if frame != self.next_frame:
            raise JournalOrderError(f"{self._folder}: frame {frame} offered, {self.next_frame} is next")
        checksum = zlib.crc32(payload, zlib.crc32(frame.to_bytes(8, "little")))
        record = _RECORD.pack(_MAGIC, len(payload), frame, checksum) + payload
        end = os.lseek(self._segment, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(record):
                written += os.write(self._segment, record[written:] if written else record)
        except OSError as error:
            os.ftruncate(self._segment, end)
            free = shutil.disk_usage(self._folder).free
            raise JournalFullError(
                f"{self._folder}: cannot journal frame {frame} ({len(record)} bytes): {error.strerror}; "
                f"{free >> 20} MB free; make room and submit the job again, it continues from here"
            ) from error
        self.next_frame += 1

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Frames from ``start`` on, with their payloads. Frames before the older snapshot are gone."""
        for path in self._paths(_SEGMENT):
            for frame, payload, _ in _records(path):
                if start <= frame < self.next_frame:
                    yield frame, payload

    def snapshot(self, frame: int, state: bytes) -> None:
        """Keep ``state``, in which all frames before ``frame`` are folded, and begin a new segment."""
        self.sync()
        target = self._folder / f"snapshot-{frame:012d}"
        beside = target.with_suffix(".part")
        try:
            with beside.open("wb") as file:
                file.write(zlib.crc32(state).to_bytes(4, "little") + state)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise JournalFullError(f"{self._folder}: cannot keep a snapshot: {error.strerror}") from error
        self._begin_segment(frame)
        self._prune()

    def latest_snapshot(self) -> tuple[int, bytes] | None:
        """The newest snapshot that is whole and that the journal reaches: (frame, state), or None."""
        for path in reversed(self._paths(_SNAPSHOT)):
            data = path.read_bytes()
            frame = _number(path)
            whole = len(data) >= 4 and zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little")
            if whole and frame <= self.next_frame:
                return frame, data[4:]
        return None

    def sync(self) -> None:
        """Force what was appended to the disk."""
        os.fsync(self._segment)

    def close(self) -> None:
        """Sync, and give the journal up. May be called twice."""
        if self._segment >= 0:
            self.sync()
            os.close(self._segment)
            os.close(self._lock)
            self._segment = -1

    # -- inside --------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find the end of what is whole, and cut off everything behind it."""
        segments = self._paths(_SEGMENT)
        expected = _number(segments[0]) if segments else 0
        intact = True
        for path in segments:
            if not intact or _number(path) != expected:
                path.unlink()  # behind a gap: those frames will come again
                intact = False
                continue
            end = 0
            for frame, _, after in _records(path):
                if frame != expected:
                    break
                expected, end = frame + 1, after
            if end < path.stat().st_size:
                os.truncate(path, end)
                intact = False
        self.next_frame = expected
        if segments and _number(segments[0]) > 0 and self.latest_snapshot() is None:
            # The frames before the first segment are gone, and so is their fold: begin anew.
            for path in self._paths(_SEGMENT):
                path.unlink()
            self.next_frame = 0
        kept = self._paths(_SEGMENT)
        self._begin_segment(_number(kept[-1]) if kept else self.next_frame)

    def _begin_segment(self, frame: int) -> None:
        if self._segment >= 0:
            os.close(self._segment)
        path = self._folder / f"journal-{frame:012d}"
        self._segment = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _prune(self) -> None:
        snapshots = self._paths(_SNAPSHOT)
        for path in snapshots[:-_KEEP_SNAPSHOTS]:
            path.unlink()
        oldest = _number(snapshots[-_KEEP_SNAPSHOTS:][0])
        segments = self._paths(_SEGMENT)
        for path, following in pairwise(segments):
            if _number(following) <= oldest:
                path.unlink()

    def _paths(self, pattern: re.Pattern[str]) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if pattern.fullmatch(path.name))


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _records(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """The whole records of a segment: frame, payload, and the offset behind it; ends at the first bad one."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(header := file.read(_RECORD.size)) == _RECORD.size:
            magic, length, frame, checksum = _RECORD.unpack(header)
            if magic != _MAGIC or length > size - file.tell():
                return
            payload = file.read(length)
            if zlib.crc32(payload, zlib.crc32(frame.to_bytes(8, "little"))) != checksum:
                return
            yield frame, payload, file.tell()
