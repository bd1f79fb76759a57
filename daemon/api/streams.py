"""Records of finished and of growing results, from any frame on, without reading what stands before twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.api.messages import plain_record
from stages.records import FrameRecord, Header
from stages.results import Results, ResultsError, read_results

MOST_OPEN = 64
BATCH_BYTES = 8 << 20
"""Bytes of arrays after which a reply is full."""


@dataclass
class _Cursor:
    """A results file that somebody reads in order: the next frame, and the iteration that stands before it."""

    results: Results
    next: int = 0
    records: Iterator[FrameRecord] | None = None


class Streams:
    """Reads records for clients. A client that reads on goes on where it was; cursors in use last are kept."""

    def __init__(self) -> None:
        # By job and not by path: a finished file is the same one in another place.
        self._cursors: OrderedDict[tuple[bytes, str], _Cursor] = OrderedDict()

    def read(
        self, client: bytes, job: str, path: Path, start: int, count: int, *, vertices: bool
    ) -> tuple[Header, list[dict[str, Any]], int]:
        """At most ``count`` records of a job's file from ``start`` on: the header, they, and the next frame's number.

        Raises:
            ResultsError: the file is not there (yet), or is damaged.
        """
        key = (client, job)
        cursor = self._cursors.pop(key, None)
        if cursor is not None and (start < cursor.next or not _is_current(cursor.results, path)):
            cursor.results.close()
            cursor = None
        if cursor is None:
            cursor = _Cursor(read_results(path, follow=True))
        self._cursors[key] = cursor
        while len(self._cursors) > MOST_OPEN:
            self._cursors.popitem(last=False)[1].results.close()
        try:
            return self._take(cursor, start, count, vertices)
        except ResultsError:
            self._cursors.pop(key).results.close()
            raise

    def forget(self, client: bytes, job: str | None = None) -> None:
        """Let go of a client's files, or of one: open ones keep their place on the disk when they are removed."""
        for key in [key for key in self._cursors if key[0] == client and job in (None, key[1])]:
            self._cursors.pop(key).results.close()

    def close(self) -> None:
        while self._cursors:
            self._cursors.popitem()[1].results.close()

    @staticmethod
    def _take(cursor: _Cursor, start: int, count: int, vertices: bool) -> tuple[Header, list[dict[str, Any]], int]:
        found: list[dict[str, Any]] = []
        size = 0
        at = max(start, cursor.next)
        while len(found) < count and size < BATCH_BYTES:
            if cursor.records is None:
                cursor.records = iter(cursor.results)
            record = next(cursor.records, None)
            if record is None:
                cursor.records = None  # the end, for now: the next iteration goes on from here
                break
            cursor.next = record.frame + 1
            if record.frame < start:
                continue
            made = plain_record(record, vertices=vertices)
            size += _size(made["tracks"])
            found.append(made)
            at = cursor.next
        return cursor.results.header, found, at


def _size(value: Any) -> int:
    """About the bytes that a value takes in a message; what is small does not count."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return int(getattr(value, "nbytes", 0)) or (len(value) if isinstance(value, bytes) else 0)


def _is_current(results: Results, path: Path) -> bool:
    """Whether the open file is still the one of that name: a job begun afresh writes another."""
    try:
        return results.is_of(path)
    except OSError:
        return False
