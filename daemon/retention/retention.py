"""What the daemon removes by itself: results, unfinished work, entries of jobs, log files, abandoned uploads.

A thread asks `daemon.retention.pruning.decide` about everything, and once more about each folder in the daemon's loop,
where nothing can begin to use it meanwhile. There it is renamed, so that a reader sees all of it or nothing; the thread
then removes what has been renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from daemon.jobs import summary
from daemon.jobs.places import LOCK, OWNER, WORK_SUFFIX
from daemon.jobs.store import JobStore, State, StoredJob, StoreError
from daemon.retention.pruning import DAY, IDLE, Removal, Standing, decide, ends, kept_because
from daemon.settings.schema import RetentionSettings
from daemon.telemetry import logs

EVERY = 600.0
"""Seconds between two rounds."""
PAGE = 200
REMOVED = ".poseward-removed."
"""Begins the name of a folder that is being removed."""
_PATIENCE = 0.5

Result = TypeVar("Result")


class Loop(Protocol):
    """Has the daemon's loop do something; returns at once."""

    def __call__(self, work: Callable[[], Result]) -> Future[Result]: ...


@dataclass(frozen=True)
class Daemon:
    """What retention needs of the daemon it runs in: its loop; ids of the jobs in work, and how far one is (both
    asked only in the loop); ids of the jobs whose results somebody has read within so many seconds; and who is told
    of removals."""

    call: Loop
    running: Callable[[], Collection[str]]
    progress: Callable[[str], Mapping[str, Any] | None]
    reading: Callable[[float], Collection[str]]
    removed: Callable[[str, int], None]


class UploadsLike(Protocol):
    """What is used of `daemon.api.uploads.Uploads`."""

    def sweep(self, in_use: Callable[[str], bool]) -> None: ...


class Retention:
    """Looks every ten minutes for what may go, and removes it.

    Args:
        store: the job store.
        settings: what to remove.
        folder: where results and work folders stand.
        daemon: the daemon it runs in.
        uploads: abandoned ones are swept along.
        log: the daemon's log file.
        clock: seconds since 1970; one that is not believed must not be given, see `daemon.retention.clock`.
        away: why the results folder cannot be used now; None where it can. Meanwhile everything in it stays.
    """

    def __init__(
        self,
        store: JobStore,
        settings: RetentionSettings,
        folder: Path,
        daemon: Daemon,
        *,
        uploads: UploadsLike | None = None,
        log: Path | None = None,
        clock: Callable[[], float] = time.time,
        away: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._folder = folder
        self._daemon = daemon
        self._uploads = uploads
        self._log_file = log
        self._clock = clock
        self._away = away
        self._log = logs.get("retention")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Begin, with a round at once."""
        self._thread.start()

    def stop(self) -> None:
        """End; what has been renamed and not yet removed is removed by the next daemon."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def plan(self) -> list[Removal]:
        """What would be removed now. Changes nothing.

        Raises:
            StoreError: the store cannot be read.
        """
        now = self._clock()
        jobs = list(self._all_jobs())
        found = decide(
            jobs,
            self._results_of(jobs, now),
            self._works_of(jobs),
            self._settings,
            now,
            self._daemon.reading(IDLE),
        )
        if not self._folder.is_dir() or self._away() is not None:  # then nobody knows what stands in it
            found = [one for one in found if one.path is not None and one.path.parent != self._folder]
        return [*found, *self._old_logs(now)]

    def round(self) -> list[Removal]:
        """Remove what may go; returns what has gone."""
        self._sweep_removed()
        gone = []
        for removal in self.plan():
            if self._stopping.is_set():
                break
            if self._remove(removal):
                gone.append(removal)
                self._log.info(
                    "removed", kind=removal.kind, job=removal.job, path=str(removal.path or ""), bytes=removal.size,
                    message=removal.reason,
                )  # fmt: skip
                self._daemon.removed(removal.kind, removal.size)
        if self._uploads is not None:
            self._uploads.sweep(self._needs_upload)
        return gone

    # -- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round()
            except StoreError as error:
                self._log.error("retention", error=error.name, message=str(error))
            except Exception:  # noqa: BLE001  (one bad round must not end all)
                if not self._stopping.is_set():
                    self._log.exception("defect")
            self._stopping.wait(EVERY)

    def _remove(self, removal: Removal) -> bool:
        if removal.kind == "log":
            assert removal.path is not None
            with contextlib.suppress(OSError):
                removal.path.unlink()
                return True
            return False
        while (taken := self._in_loop(lambda: self._take(removal))) is None:
            if self._stopping.wait(_PATIENCE):
                return False
        if isinstance(taken, Path):
            shutil.rmtree(taken, ignore_errors=True)
        return bool(taken)

    def _in_loop(self, work: Callable[[], Result]) -> Result | None:
        future = self._daemon.call(work)
        while True:
            try:
                return future.result(_PATIENCE)
            except FutureTimeout:
                if self._stopping.is_set() and future.cancel():
                    return None

    # -- in the loop ------------------------------------------------------------------------------------------

    def _take(self, removal: Removal) -> Path | bool | None:
        """Look again, and take it: the renamed folder, True for an entry, False if it must stay after all, None
        if that cannot be said at the moment."""
        job = self._store.get(removal.job or "")
        if job is None:
            return False
        if removal.kind == "job":
            return self._store.forget(job.id)
        assert removal.path is not None
        if removal.kind == "work":
            if job.state not in (State.FAILED, State.CANCELLED) or job.id in self._daemon.running():
                return False
            return self._take_work(job, removal.path)
        if any(
            (self._daemon.progress(running) or {}).get("phase") == "preparing"
            for running in self._daemon.running()
        ):
            return None  # a job is just being compared with earlier ones: it may be about to choose this
        group = self._store.sharing(str(removal.path), job.id)
        if kept_because(group, self._settings, self._clock(), self._daemon.reading(IDLE)) is not None:
            return False
        if _owner(removal.path) != job.id or self._clock() - measure(removal.path)[1] < IDLE:
            return False
        return self._rename(removal.path, job.id)

    def _take_work(self, job: StoredJob, path: Path) -> Path | bool:
        """A work folder is held by a lock: `poseward run` may be going on with it."""
        try:
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._rename(path, job.id)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._rename(path, job.id)
        except OSError:
            return False
        finally:
            os.close(lock)

    def _rename(self, path: Path, job: str) -> Path | bool:
        hidden = path.with_name(f"{REMOVED}{job}.{path.name}")
        try:
            path.rename(hidden)
        except OSError as error:
            self._log.warning("retention", job=job, path=str(path), message=f"cannot be removed: {error.strerror}")
            return False
        return hidden

    # -- what there is ----------------------------------------------------------------------------------------

    def _all_jobs(self) -> Iterator[StoredJob]:
        """In pages, so that the store is free for others in between."""
        before = None
        while page := self._store.jobs(limit=PAGE, before=before):
            yield from page
            before = page[-1].number

    def _results_of(self, jobs: Iterable[StoredJob], now: float) -> dict[str, Standing]:
        """The results folders of these jobs that are on disk. Looks into them only where that can matter."""
        settings = self._settings
        found: dict[str, Standing] = {}
        for job in jobs:
            if job.results is None or job.results in found:
                continue
            path = Path(job.results)
            if not path.parent.is_dir():
                found[job.results] = Standing(path, 0, now)  # a disk that is not there now: nobody knows
                continue
            if path.is_symlink():
                found[job.results] = Standing(path, 0, now)  # somebody's own doing: what it leads to is in use
                continue
            if not path.is_dir():
                continue
            old = (
                settings.results_days > 0
                and job.ended is not None
                and now - job.ended > settings.results_days * DAY
            )
            size, touched = measure(path) if settings.results_gb or old else (0, now)
            found[job.results] = Standing(path, size, touched, _owner(path))
        return found

    def _works_of(self, jobs: Iterable[StoredJob]) -> dict[str, Standing]:
        """The work folders that failed and cancelled jobs have left."""
        found = {}
        for job in jobs:
            if job.folder is None or job.state not in (State.FAILED, State.CANCELLED):
                continue
            path = self._folder / f"{job.folder}{WORK_SUFFIX}"
            is_its = job.sha256 is not None and _content(path) == job.sha256
            if is_its and not path.is_symlink() and path.is_dir():
                found[job.id] = Standing(path, *measure(path))
        return found

    def _old_logs(self, now: float) -> list[Removal]:
        if self._log_file is None or not self._settings.logs_days:
            return []
        found = []
        for file in logs.files(self._log_file):
            with contextlib.suppress(OSError):
                known = file.stat()
                days = (now - known.st_mtime) / DAY
                if file != self._log_file and days > self._settings.logs_days:
                    why = f"{days:.1f} days old, more than retention.logs_days = {self._settings.logs_days:g}"
                    found.append(Removal("log", why, None, file, known.st_size))
        return found

    def _needs_upload(self, source: str) -> bool:
        """Whether a job may still read an upload: one that waits or runs, or can be queued again."""
        now, days = self._clock(), self._settings.work_days
        jobs = self._store.jobs([state for state in State if state is not State.DONE], limit=1_000_000)
        ended = ends(jobs, now)
        for job in jobs:
            given_up = job.state.final and days and now - ended.get(job.id, now) > days * DAY
            if job.source == source and not given_up:
                return True
        return False

    def _sweep_removed(self) -> None:
        """What an earlier daemon has renamed and not got to remove."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.name.startswith(REMOVED) and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)


def measure(folder: Path) -> tuple[int, float]:
    """Bytes of the files in a folder and below, and when any of it last changed (seconds since 1970). Links are not
    followed. What cannot be looked at has just changed."""
    try:
        size, touched = 0, folder.lstat().st_mtime
    except OSError:
        return 0, math.inf
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                known = os.lstat(os.path.join(base, name))
                size += known.st_size if name in files else 0
                touched = max(touched, known.st_mtime)
    return size, touched


def _owner(results: Path) -> str | None:
    """The job whose results stand in a folder; None where that is not certain."""
    if results.is_symlink():
        return None
    try:
        found = summary.read_summary(results).get("job")
    except summary.SummaryError:
        return None
    return found if isinstance(found, str) else None


def _content(work: Path) -> str | None:
    """The digest of the input that a work folder was begun for."""
    try:
        found: Any = json.loads((work / OWNER).read_text(encoding="utf-8"))
        return str(found["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
