"""The job store: every job the daemon has been given, in SQLite; each change of state is one transaction.

``queued → running → done | failed | cancelled``. A running job goes back to ``queued`` when the daemon has died
under it; a failed or cancelled one only when somebody asks for it. Nothing but `JobStore` writes the database.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from daemon.jobs.database import Database, StoreError

__all__ = ["FILE", "VERSION", "JobStore", "State", "StoreError", "StoredJob", "Submission", "new_id"]

VERSION = 1
FILE = "jobs.db"


class State(str, Enum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Submission:
    """What somebody wants done.

    ``source`` is the absolute path of the input; ``name`` what a person calls it. ``origin`` says where it came
    from: api, upload, drop or command. A second submission with the same ``client_key`` is the same job.
    ``options`` may hold ``exports`` (list of names), ``recompute`` (bool) and ``stream`` (int). ``job`` demands an id:
    for who must know it before the job is stored.
    """

    source: str
    name: str
    origin: str
    priority: int = 0
    client_key: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    job: str | None = None


@dataclass(frozen=True)
class StoredJob:
    """A job as it stands in the store. Times are seconds since 1970; ``results`` is an absolute path."""

    id: str
    number: int
    state: State
    priority: int
    source: str
    name: str
    origin: str
    client_key: str | None
    options: dict[str, Any]
    attempts: int
    sha256: str | None
    bytes: int | None
    folder: str | None
    """Name of its folder in the results folder, once it has one."""
    results: str | None
    same_as: str | None
    """The earlier job of the same content whose results these are."""
    frames: int | None
    summary: dict[str, Any] | None
    error: str | None
    message: str
    created: float
    started: float | None
    ended: float | None
    fetched: float | None
    """When a client first fetched results."""

    def as_map(self) -> dict[str, Any]:
        """For JSON and msgpack."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        found["state"] = self.state.value
        return found


_COLUMNS = tuple(item.name for item in fields(StoredJob))
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    priority INTEGER NOT NULL,
    source TEXT NOT NULL,
    name TEXT NOT NULL,
    origin TEXT NOT NULL,
    client_key TEXT UNIQUE,
    options TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT,
    bytes INTEGER,
    folder TEXT UNIQUE,
    results TEXT,
    same_as TEXT,
    frames INTEGER,
    summary TEXT,
    error TEXT,
    message TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    fetched REAL
);
CREATE INDEX jobs_by_state ON jobs (state, priority DESC, number);
CREATE INDEX jobs_by_content ON jobs (sha256, state);
"""
_CHANGEABLE = frozenset(_COLUMNS) - {"id", "number", "state", "created"}


class JobStore:
    """All jobs. May be used from several threads; every method is one transaction.

    Args:
        folder: an existing folder; the database is ``jobs.db`` in it.
        clock: seconds since 1970.

    Raises:
        StoreError: the database is damaged, of another version, or cannot be opened. It is left as it is.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / FILE
        self._clock = clock
        self._listeners: list[Callable[[StoredJob], None]] = []
        self._database = Database(self.path, _SCHEMA, VERSION)

    def listen(self, listener: Callable[[StoredJob], None]) -> None:
        """``listener`` is told of every change, after it is on disk, in the thread that made it."""
        self._listeners.append(listener)

    def add(self, wanted: Submission, *, most_waiting: int | None = None) -> tuple[StoredJob, bool]:
        """Store a job; returns it, and whether it is new (False: the same ``client_key`` or ``job`` is known).

        Raises:
            StoreError: ``queue-full`` where ``most_waiting`` jobs wait already, ``disk-full``, and others.
        """
        with self._database.transaction():
            known = self._find("client_key", wanted.client_key) or self._find("id", wanted.job)
            if known is not None:
                return known, False
            if most_waiting is not None and self._count(State.QUEUED) >= most_waiting:
                raise StoreError(
                    "queue-full", f"{most_waiting} jobs wait already (api.max_queue): submit again later"
                )
            now = self._clock()
            job = wanted.job or new_id(now)
            self._database.execute(
                "INSERT INTO jobs (id, state, priority, source, name, origin, client_key, options, created)"
                " VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?)",
                (
                    job, wanted.priority, _storable(wanted.source), _storable(wanted.name), wanted.origin,
                    wanted.client_key, json.dumps(dict(wanted.options)), now,
                ),
            )  # fmt: skip
            stored = self._find("id", job)
            assert stored is not None
        self._tell(stored)
        return stored, True

    def get(self, job: str) -> StoredJob | None:
        """The job with this id."""
        with self._database.reading():
            return self._find("id", job)

    def by_key(self, client_key: str) -> StoredJob | None:
        """The job that a client submitted under its own key."""
        with self._database.reading():
            return self._find("client_key", client_key)

    def jobs(
        self, states: Sequence[State] = (), *, limit: int = 100, before: int | None = None, text: str = ""
    ) -> list[StoredJob]:
        """Jobs, newest first: at most ``limit``, with a ``number`` below ``before``, whose name holds ``text``."""
        where: list[str] = ["1"]
        values: list[Any] = []
        if states:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += [state.value for state in states]
        if before is not None:
            where.append("number < ?")
            values.append(before)
        if text:
            where.append("instr(name, ?) > 0")
            values.append(text)
        query = f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?"
        with self._database.reading():
            return [_job(row) for row in self._database.execute(query, (*values, limit))]

    def waiting(self, limit: int) -> list[StoredJob]:
        """The jobs to be begun next: by priority, then in the order they came. Not those that are known to hold the
        same content as a job that is running: they get its results when it is done."""
        query = f"{_SELECT} WHERE state = 'queued' AND NOT ({_AWAITS}) ORDER BY priority DESC, number LIMIT ?"
        with self._database.reading():
            return [_job(row) for row in self._database.execute(query, (limit,))]

    def counts(self) -> dict[str, int]:
        """How many jobs stand in each state."""
        with self._database.reading():
            found = dict(self._database.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state.value: int(found.get(state.value, 0)) for state in State}

    def newest(self) -> float:
        """The last time that a job was submitted or ended, in seconds since 1970; 0 where there is none."""
        with self._database.reading():
            query = "SELECT max(max(created, coalesce(ended, 0))) FROM jobs"
            return float(self._database.execute(query).fetchone()[0] or 0.0)

    def same_content(self, sha256: str) -> list[StoredJob]:
        """Jobs done with the same content, the latest first; not those that only point to another's results."""
        query = f"{_SELECT} WHERE sha256 = ? AND state = 'done' AND same_as IS NULL ORDER BY number DESC"
        with self._database.reading():
            return [_job(row) for row in self._database.execute(query, (sha256,))]

    def sharing(self, results: str, job: str) -> list[StoredJob]:
        """Jobs whose results stand in this folder, or that point to this job."""
        with self._database.reading():
            rows = self._database.execute(f"{_SELECT} WHERE results = ? OR same_as = ?", (_storable(results), job))
            return [_job(row) for row in rows]

    def has_folder(self, folder: str) -> bool:
        """Whether a job has this results folder's name."""
        with self._database.reading():
            return self._find("folder", folder) is not None

    def move(self, job: str, since: Sequence[State], state: State, **changes: Any) -> StoredJob | None:
        """Change a job's state, if it stands in one of ``since``; None where it does not.

        ``started`` and ``ended`` are set with the state; any other column may be changed along with it.
        """
        now = self._clock()
        if state is State.RUNNING:
            changes.setdefault("started", now)
        if state is State.QUEUED:
            changes = {"error": None, "message": "", "ended": None, **changes}
        if state.final:
            changes.setdefault("ended", now)
        marks = ", ".join("?" * len(since))
        names = self._check(changes)
        query = (
            f"UPDATE jobs SET state = ?{''.join(f', {n} = ?' for n in names)} WHERE id = ? AND state IN ({marks})"
        )
        values = [state.value, *(_column(changes[n]) for n in names), job, *(s.value for s in since)]
        with self._database.transaction():
            if self._database.execute(query, values).rowcount == 0:
                return None
            moved = self._find("id", job)
            assert moved is not None
        self._tell(moved)
        return moved

    def note(self, job: str, **changes: Any) -> None:
        """Change columns other than the state, without telling the listeners."""
        names = self._check(changes)
        query = f"UPDATE jobs SET {', '.join(f'{n} = ?' for n in names)} WHERE id = ?"
        with self._database.transaction():
            self._database.execute(query, [*(_column(changes[n]) for n in names), job])

    def fetched(self, job: str) -> None:
        """A client has fetched results of this job."""
        self.note(job, fetched=self._clock())

    def forget(self, job: str) -> bool:
        """Remove an ended job from the store; False where it has not ended."""
        with self._database.transaction():
            query = "DELETE FROM jobs WHERE id = ? AND state IN ('done', 'failed', 'cancelled')"
            return self._database.execute(query, (job,)).rowcount > 0

    def close(self) -> None:
        """May be called twice."""
        self._database.close()

    # -- the database ----------------------------------------------------------------------------------

    def _find(self, column: str, value: str | None) -> StoredJob | None:
        if value is None:
            return None
        row = self._database.execute(f"{_SELECT} WHERE {column} = ?", (value,)).fetchone()
        return _job(row) if row else None

    def _count(self, state: State) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM jobs WHERE state = ?", (state.value,)).fetchone()
        return int(count)

    def _check(self, changes: Mapping[str, Any]) -> list[str]:
        if unknown := set(changes) - _CHANGEABLE:
            raise ValueError(f"no such columns: {sorted(unknown)}")
        return list(changes)

    def _tell(self, job: StoredJob) -> None:
        for listener in self._listeners:
            listener(job)


_AWAITS = """folder IS NULL AND sha256 IS NOT NULL AND json_extract(options, '$.recompute') IS NULL AND EXISTS (
    SELECT 1 FROM jobs AS other WHERE other.state = 'running' AND other.sha256 = jobs.sha256
    AND json_extract(other.options, '$.stream') IS json_extract(jobs.options, '$.stream'))"""
"""Of a queued job: it waits for another to end."""
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"


def new_id(now: float) -> str:
    """A job's id: sorts by time, says when, and is not guessed by accident."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}"


def _job(row: tuple[Any, ...]) -> StoredJob:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["state"] = State(values["state"])
    values["options"] = json.loads(values["options"])
    values["summary"] = json.loads(values["summary"]) if values["summary"] else None
    for name in ("source", "name", "results", "message"):
        values[name] = values[name] and _text(values[name])
    return StoredJob(**values)


def _column(value: Any) -> Any:
    if isinstance(value, str):
        return _storable(value)
    return json.dumps(value) if isinstance(value, dict | list) else value


def _storable(text: str) -> str:
    """File names, and messages about them, need not be UTF-8; SQLite's texts must. What is not stands escaped behind
    a NUL."""
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()
        if not text.startswith("\0"):
            return text
    return "\0" + os.fsencode(text).hex()


def _text(stored: str) -> str:
    return os.fsdecode(bytes.fromhex(stored[1:])) if stored.startswith("\0") else stored
