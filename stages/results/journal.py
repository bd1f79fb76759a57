"""The journal: one job's mesh output, frame by frame, safe against every way a process can die.

Segments of records, each with its length and checksum; a new segment begins with each snapshot of the tracker,
and segments that lie before the older of the two kept snapshots are removed, so that disk use is bounded by
the distance of snapshots and not by the video's length.

What `Journal.append` has returned for survives the death of any process, since it is in the kernel's page cache;
snapshots and closing also force it to disk, against the loss of power.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

_FORMAT = b"poseward journal 1\n"
"""Stands in the lock file. Records of another version must be refused, not taken for damage and cut off."""
_MAGIC = b"PWJ1"
_RECORD = struct.Struct("<4sIQI")  # magic, length, frame, crc32 of frame and payload
_SEGMENT = re.compile(r"journal-(\d{12})")
_SNAPSHOT = re.compile(r"snapshot-(\d{12})")
_UNFINISHED = re.compile(r"snapshot-(\d{12})\.part")
_KEEP_SNAPSHOTS = 2
_LARGEST_PAYLOAD = 0xFFFFFFFF
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JournalError(Exception):
    """The journal cannot be used; says which folder and the way out."""


class JournalOrderError(JournalError):
    """A frame that is not the next one was offered."""


class JournalFullError(JournalError):
    """The disk is full; what was journaled before is whole."""


class Journal:
    """Frames ``first`` (0 but for segments) to ``next_frame - 1`` of one job, in order, each exactly once. Use
    `Journal.open`.

    One process owns it, by a lock that the kernel drops when that process dies.
    """

    def __init__(self, folder: Path, lock: int, first: int = 0) -> None:
        self._folder = folder
        self._first = first
        self._lock = lock
        self._segment = -1
        self.next_frame = first

    @classmethod
    def open(cls, folder: Path, first: int = 0) -> Journal:
        """Open or create the journal in ``folder``; a torn or corrupt tail is cut off.

        Raises:
            JournalError: another process has it open, another version wrote it, or the folder cannot be
                read or written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "journal.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"{folder}: cannot keep a journal there: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_format(folder, lock)
            journal = cls(folder, lock, first)
            journal._recover()
        except BlockingIOError:
            os.close(lock)
            raise JournalError(f"{folder}: another process is working on this job") from None
        except OSError as error:
            os.close(lock)
            raise JournalError(f"{folder}: cannot open the journal: {error.strerror}") from error
        except BaseException:
            os.close(lock)
            raise
        return journal

    def append(self, frame: int, payload: bytes) -> None:
        """Add the next frame.

        Raises:
            JournalOrderError: ``frame`` is not ``next_frame``.
            JournalFullError: no room on the disk; the journal stays valid.
        """
        if frame != self.next_frame:
            raise JournalOrderError(f"{self._folder}: frame {frame} offered, {self.next_frame} is next")
        if len(payload) > _LARGEST_PAYLOAD:
            raise JournalError(f"{self._folder}: frame {frame} is too large to journal ({len(payload) >> 20} MB)")
        record = _RECORD.pack(_MAGIC, len(payload), frame, _checksum(frame, payload)) + payload
        end = os.lseek(self._segment, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(record):
                written += os.write(self._segment, record[written:] if written else record)
        except OSError as error:
            os.ftruncate(self._segment, end)
            raise self._unwritten(f"journal frame {frame} ({len(record)} bytes)", error) from error
        self.next_frame += 1

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Frames from ``start`` on, with their payloads. Frames before the older snapshot are gone.

        Raises:
            JournalError: a frame between ``start`` and ``next_frame`` is gone or damaged.
        """
        segments = self._paths(_SEGMENT)
        needed = [path for path, after in pairwise(segments) if _number(after) > start] + segments[-1:]
        expected = start
        for path in needed:
            for frame, payload, _ in _records(path):
                if expected == frame < self.next_frame:
                    expected += 1
                    yield frame, payload
        if expected < self.next_frame:
            raise JournalError(f"{self._folder}: frame {expected} of the journal is gone or damaged")

    def snapshot(self, frame: int, state: bytes) -> None:
        """Keep ``state``, in which all frames before ``frame`` are folded, and begin a new segment.

        Raises:
            JournalOrderError: ``frame`` is beyond ``next_frame``.
            JournalFullError: no room on the disk; journal and snapshots stay as they were.
        """
        if not 0 <= frame <= self.next_frame:
            raise JournalOrderError(
                f"{self._folder}: snapshot {frame} offered, the journal ends at {self.next_frame}"
            )
        target = self._folder / f"snapshot-{frame:012d}"
        beside = target.with_name(target.name + ".part")
        try:
            self.sync()
            with beside.open("wb") as file:
                file.write(zlib.crc32(state).to_bytes(4, "little") + state)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
            self._begin_segment(self.next_frame)
            _sync_folder(self._folder)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise self._unwritten(f"keep the snapshot at frame {frame}", error) from error
        # Only now: what the new snapshot makes superfluous may go once that is on the disk.
        self._prune()

    def latest_snapshot(self) -> tuple[int, bytes] | None:
        """The newest of `snapshots`, or None."""
        return next(self.snapshots(), None)

    def snapshots(self) -> Iterator[tuple[int, bytes]]:
        """Those that are whole and from which the journal goes on, newest first: (frame, state)."""
        for path in reversed(self._paths(_SNAPSHOT)):
            state = _state(path)
            if state is not None and self.first_frame <= _number(path) <= self.next_frame:
                yield _number(path), state

    @property
    def first_frame(self) -> int:
        """The first frame that the journal still holds, or would: frames before the older snapshot are gone."""
        segments = self._paths(_SEGMENT)
        return _number(segments[0]) if segments else self._first

    def discard_snapshots(self, frame: int) -> None:
        """Remove the snapshots behind ``frame``: their reader cannot use them."""
        for path in self._paths(_SNAPSHOT):
            if _number(path) > frame:
                path.unlink()

    def sync(self) -> None:
        """Force what was appended to the disk."""
        os.fsync(self._segment)

    def close(self) -> None:
        """Sync, and give the journal up. May be called twice."""
        if self._segment < 0:
            return
        try:
            self.sync()
        finally:
            os.close(self._segment)
            os.close(self._lock)
            self._segment = -1

    # -- inside --------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find the newest state that can be gone on from, and cut off everything behind what is whole."""
        for path in self._paths(_UNFINISHED):
            path.unlink()
        for path in self._paths(_SNAPSHOT):
            if _state(path) is None:
                path.unlink()
        whole = [_number(path) for path in self._paths(_SNAPSHOT)]
        # Only what a snapshot does not hold need be whole. Without one, all must be there from the first frame.
        for start in [*reversed(whole), self._first]:
            reached, segment, end = self._reach(start)
            if reached >= start:
                break
        self.next_frame = reached
        for path in self._paths(_SEGMENT):
            if segment is None or _number(path) > _number(segment):
                path.unlink()  # behind a gap: those frames will come again
        if segment is not None and end < segment.stat().st_size:
            os.truncate(segment, end)
        for path in self._paths(_SNAPSHOT):
            if _number(path) > reached:
                path.unlink()
        self._begin_segment(reached if segment is None else _number(segment))

    def _reach(self, start: int) -> tuple[int, Path | None, int]:
        """How far the journal is whole from frame ``start`` on: the next frame, the last whole segment, its end.

        Less than ``start`` where it does not even hold that: -1 if there is no segment that could.
        """
        segments = self._paths(_SEGMENT)
        before = [path for path in segments if _number(path) <= start]
        if not before:
            return (start, None, 0) if start == self._first else (-1, None, 0)
        expected, last, end = _number(before[-1]), before[-1], 0
        for path in segments[len(before) - 1 :]:
            if _number(path) != expected:
                break
            last, end = path, 0
            for frame, _, after in _records(path):
                if frame != expected:
                    break
                expected, end = frame + 1, after
            if end < path.stat().st_size:
                break
        return expected, last, end

    def _begin_segment(self, frame: int) -> None:
        path = self._folder / f"journal-{frame:012d}"
        segment = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._segment >= 0:
            os.close(self._segment)
        self._segment = segment

    def _unwritten(self, what: str, error: OSError) -> JournalError:
        text = f"{self._folder}: cannot {what}: {error.strerror}"
        if error.errno not in _NO_ROOM:
            return JournalError(text)
        free = shutil.disk_usage(self._folder).free
        return JournalFullError(
            f"{text}; {free >> 20} MB free; make room and submit the job again, it continues from here"
        )

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


def _checksum(frame: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(frame.to_bytes(8, "little")))


def _check_format(folder: Path, lock: int) -> None:
    """Refuse what another version wrote; sign a new journal."""
    found = os.pread(lock, 4 * len(_FORMAT), 0)
    if found == _FORMAT:
        return
    if not _FORMAT.startswith(found):  # less of it: its writer died while signing
        raise JournalError(
            f"{folder}: the journal there is of another version ({found[:40]!r}); finish the job with the "
            "version that began it, or remove the folder to begin anew"
        )
    os.pwrite(lock, _FORMAT, 0)


def _state(path: Path) -> bytes | None:
    """What a snapshot holds, or None if it is damaged."""
    data = path.read_bytes()
    whole = len(data) >= 4 and zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little")
    return data[4:] if whole else None


def _sync_folder(folder: Path) -> None:
    """Names of new files survive the loss of power only when their folder is synced too."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _records(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """The whole records of a segment: frame, payload, and the offset behind it; ends at the first bad one."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(header := file.read(_RECORD.size)) == _RECORD.size:
            magic, length, frame, checksum = _RECORD.unpack(header)
            if magic != _MAGIC or length > size - file.tell():
                return
            payload = file.read(length)
            if len(payload) < length or _checksum(frame, payload) != checksum:
                return
            yield frame, payload, file.tell()
