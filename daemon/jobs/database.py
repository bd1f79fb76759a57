"""One SQLite file that outlives kills and power cuts, and whose every trouble has a name and a way out."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LOCKED = 2.0
"""Seconds for which another program may hold the database; all who ask the daemon for something wait as long."""

LEAST = 1 << 20
"""Bytes; with less a disk is full, as far as SQLite is concerned."""


class StoreError(Exception):
    """The job store cannot be read or written; ``name`` is a stable name, the text says the way out."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Database:
    """The file, open. May be used from several threads, by one at a time.

    Args:
        path: of the file; its folder exists.
        schema: SQL that makes what is in it.
        version: of the schema; a file of another one is left as it is.

    Raises:
        StoreError: it is damaged, of another version, or cannot be opened.
    """

    def __init__(self, path: Path, schema: str, version: int) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._named():
            self._connection = sqlite3.connect(path, timeout=LOCKED, isolation_level=None, check_same_thread=False)
            try:
                self._open(schema, version)
            except BaseException:
                self._connection.close()
                raise
        with contextlib.suppress(OSError):
            os.chmod(path, 0o600)  # names of files are nobody else's business
        self._file = os.stat(path)

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Only within `reading` or `transaction`."""
        return self._connection.execute(query, values)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Nobody else uses it meanwhile.

        Raises:
            StoreError: whatever SQLite says.
        """
        with self._lock, self._named():
            yield

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is written within, on disk at its end; or nothing.

        Raises:
            StoreError: whatever SQLite says, or the file is not there any more.
        """
        with self.reading():
            self._check_stands()
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """May be called twice."""
        with self._lock:
            self._connection.close()

    def _open(self, schema: str, known: int) -> None:
        run = self.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # what was acknowledged outlives a power cut
        (version,) = run("PRAGMA user_version").fetchone()
        if version == 0 and run("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            self._connection.executescript(f"BEGIN IMMEDIATE;{schema}PRAGMA user_version = {known}; COMMIT;")
        elif version != known:
            raise StoreError(
                "store-version",
                f"{self.path} is of version {version}, this program's is {known}: run the program that wrote it,"
                " or move the file away (results folders stay as they are)",
            )
        (verdict,) = run("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)

    def _check_stands(self) -> None:
        """SQLite goes on writing to a file that was removed, and all that is acknowledged goes with the process."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), self._file):
                return
        raise StoreError(
            "store-unwritable",
            f"{self.path} was removed or replaced while this program has it open: restart the daemon",
        )

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of SQLite by name."""
        try:
            yield
        except sqlite3.Error as error:
            if "disk I/O" in str(error) and _is_full(self.path.parent):  # so it says of what it shares memory in
                raise StoreError("disk-full", f"{self.path}: {error}: make room on that disk") from error
            raise _store_error(error, f"{self.path}: {error}") from error


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < LEAST
    except OSError:
        return False


def _store_error(error: sqlite3.Error, text: str) -> StoreError:
    """The error by name, with the way out behind ``text``."""
    if "full" in str(error):
        return StoreError("disk-full", f"{text}: make room on that disk")
    if "readonly" in str(error) or "unable to open" in str(error):
        return StoreError("store-unwritable", f"{text}: check the folder's owner (daemon.state)")
    if "disk I/O" in str(error):
        return StoreError("store-unwritable", f"{text}: look at that disk (dmesg)")
    if "locked" in str(error):
        return StoreError("store-locked", f"{text}: another program has it open")
    if isinstance(error, sqlite3.IntegrityError):
        return StoreError("store-conflict", text)
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.ProgrammingError):
        return StoreError(
            "store-damaged",
            f"{text}. Nothing has been changed. Move it away together with its -wal file to begin a new one: results"
            " stay where they are, and the drop folder's files are taken again",
        )
    return StoreError("store-closed", text)
