"""Takes files from the drop folder, makes them jobs, and puts them where they belong when those have ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.config_sources import ConfigError
from daemon.drop.names import CLAIMED, DONE, ERROR, FAILED, RESULTS, free_name, is_ignored, is_sidecar, sidecars_of
from daemon.drop.sidecar import Options, SidecarError, read_sidecar
from daemon.drop.watching import Watcher, is_blind
from daemon.settings import DropSettings
from daemon.store import JobStore, State, StoredJob, StoreError, Submission, new_id

MOST_CLAIMS = 200
"""Files taken in one look, so that the others' ends are not held up by thousands that come at once."""
BLIND_EVERY = 2.0
SAFETY_EVERY = 30.0
"""Seconds between two looks where the kernel tells of changes: it may lose some."""
LINK = "a link is never followed, lest it lead out of the folder: drop the file itself"
PLACE = ".place"
"""In a claimed folder, once its job has ended: where its file goes. Makes the moves repeatable."""


class DropError(ConfigError):
    """The drop folder cannot be used; names it, the setting and the way out."""


@dataclass(frozen=True)
class _Seen:
    size: int
    modified: int
    since: float


class DropFolder:
    """One drop folder, looked after by a thread of its own.

    Args:
        settings: the folder and when a file counts as complete.
        store: where the jobs go.
        results: the results folder; neither may lie in the other.
        clock: monotonic seconds.
        notify: is told what a person should know, each thing once: kind and text.

    Raises:
        DropError: the folder cannot be made or written, or another daemon serves it.
    """

    def __init__(
        self,
        settings: DropSettings,
        store: JobStore,
        *,
        results: Path,
        clock: Callable[[], float] = time.monotonic,
        notify: Callable[[str, str], None] = lambda _kind, _text: None,
    ) -> None:
        self._folder = Path(settings.folder).expanduser().absolute()
        self._settings = settings
        self._store = store
        self._clock = clock
        self._notify = notify
        self._seen: dict[str, _Seen] = {}
        self._moving: dict[str, _Seen] = {}
        """Claimed files that are not jobs yet, by job id: whoever sent them may go on writing."""
        self._said: dict[str, str] = {}
        self._jobs: set[str] = set()
        """Claimed files that the store knows, and whose job has not ended as far as is known."""
        self._ended: deque[str] = deque()
        self._checked = -SAFETY_EVERY
        self._lock = -1
        self._missing = False
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._blind = settings.poll > 0 or is_blind(self._folder)
        if _contains(results, self._folder) or _contains(self._folder, results):
            raise DropError(
                f"drop.folder = {self._folder} and results.folder = {results} lie in each other: choose two apart"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._prepare()
        except OSError as error:
            raise DropError(
                f"drop.folder = {self._folder}: {error.strerror}; choose one that you can write"
            ) from error
        store.listen(self._on_change)

    def start(self) -> None:
        """Begin to look after the folder."""
        self._thread = threading.Thread(target=self._run, name="drop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """May be called twice."""
        self._stop.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def status(self) -> dict[str, Any]:
        """For `health`. May be called from any thread."""
        return {
            "folder": str(self._folder),
            "watching": "polling" if self._blind else "kernel",
            "incomplete": len(self._seen),
            "claimed": len(self._jobs),
            "problem": next(iter(list(self._said.values())), None),
        }

    def scan(self) -> None:
        """One look: claim what is complete, make jobs of what is claimed, put away what has ended."""
        try:
            if self._missing:
                self._prepare()
                self._missing = False
                self._fine("folder")
            if self._clock() - self._checked >= SAFETY_EVERY:
                self._checked = self._clock()
                self._check_claimed()
            self._take()
        except (FileNotFoundError, NotADirectoryError):
            self._missing = True
            self._say("folder", f"{self._folder} is gone: waiting for it to come back")
        except OSError as error:
            self._say("folder", f"{self._folder}: {error.strerror}")
        while self._ended:
            job = self._ended.popleft()
            with contextlib.suppress(FileNotFoundError):
                self._look_at(job)

    # -- files that come ---------------------------------------------------------------------------------

    def _take(self) -> None:
        now = self._clock()
        names: dict[str, os.DirEntry[str]] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not is_ignored(entry.name):
                    names[entry.name] = entry
        for name in [name for name in self._seen if name not in names]:
            del self._seen[name]
        for about in [about for about in self._said if about.startswith("odd:") and about[4:] not in names]:
            del self._said[about]
        claims = 0
        for name, entry in names.items():
            if self._is_complete(name, entry, now) and not is_sidecar(name) and claims < MOST_CLAIMS:
                beside = [side for side in sidecars_of(name) if side in names]
                if all(self._is_complete(side, names[side], now) for side in beside):
                    claims += 1
                    self._claim(name, beside)
        if claims == MOST_CLAIMS:
            self._changed.set()

    def _is_complete(self, name: str, entry: os.DirEntry[str], now: float) -> bool:
        """Whether a file's size and time of change have stood still long enough; puts links away."""
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:
            return False  # it has vanished
        if stat.S_ISLNK(found.st_mode):
            self._refuse(self._folder / name, [], "link-refused", LINK)
            return False
        if not stat.S_ISREG(found.st_mode):
            kind = "folders are not looked into" if stat.S_ISDIR(found.st_mode) else "it is no file"
            self._say(f"odd:{name}", f"{name!r} is left alone: {kind}")
            return False
        seen = self._seen.get(name)
        if seen is None or (seen.size, seen.modified) != (found.st_size, found.st_mtime_ns):
            self._seen[name] = _Seen(found.st_size, found.st_mtime_ns, now)
            return False
        return now - seen.since >= self._settings.settle

    def _claim(self, name: str, beside: list[str]) -> None:
        """Take a file by renaming it into a folder named after its job to be."""
        job = new_id(time.time())
        claimed = self._folder / CLAIMED / job
        claimed.mkdir()
        try:
            for side in beside:  # first, so that a file is never claimed without them
                os.rename(self._folder / side, claimed / side)
                self._seen.pop(side, None)
            os.rename(self._folder / name, claimed / name)
        except FileNotFoundError:
            self._seen.pop(name, None)
            for side in beside:
                with contextlib.suppress(OSError):
                    os.rename(claimed / side, self._folder / side)
            claimed.rmdir()
            return
        seen = self._seen.pop(name)
        found = (claimed / name).lstat()
        if (found.st_size, found.st_mtime_ns) != (seen.size, seen.modified):
            self._seen_claimed(job, found)  # whoever sends it goes on writing
        else:
            self._add(job, claimed / name, [claimed / side for side in beside])

    def _seen_claimed(self, job: str, found: os.stat_result) -> bool:
        """Whether a claimed file stands still; it is looked at again otherwise."""
        seen, now = self._moving.get(job), self._clock()
        if seen is None or (seen.size, seen.modified) != (found.st_size, found.st_mtime_ns):
            self._moving[job] = seen = _Seen(found.st_size, found.st_mtime_ns, now)
        if now - seen.since < self._settings.settle:
            self._checked = -SAFETY_EVERY
            return False
        del self._moving[job]
        return True

    def _add(self, job: str, file: Path, beside: list[Path]) -> None:
        """Make a claimed file a job; what cannot be one is put away at once."""
        options = Options()
        try:
            found = file.lstat()
            if stat.S_ISLNK(found.st_mode):
                self._refuse(file, beside, "link-refused", LINK)
                return
            if found.st_size == 0:
                self._refuse(file, beside, "empty-file", "the file is empty: was it copied whole?")
                return
            if beside:
                options = read_sidecar(beside[0])
        except SidecarError as error:
            self._refuse(file, beside, "bad-sidecar", str(error))
            return
        except OSError as error:
            self._refuse(file, beside, "unreadable-file", f"{error.strerror}: check who may read it")
            return
        wanted = Submission(str(file), file.name, "drop", options.priority, None, options.as_map(), job)
        try:
            self._store.add(wanted)
        except StoreError as error:
            self._say("store", f"files wait in {self._folder / CLAIMED}: {error}")
            self._checked = -SAFETY_EVERY
            return
        self._fine("store")
        self._jobs.add(job)

    # -- files that have been claimed ----------------------------------------------------------------------

    def _check_claimed(self) -> None:
        """Whatever another life of this daemon has left half done."""
        for claimed in os.scandir(self._folder / CLAIMED):
            if claimed.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    self._look_at(claimed.name)

    def _look_at(self, job: str) -> None:
        claimed = self._folder / CLAIMED / job
        names = sorted(os.listdir(claimed))
        if PLACE in names:
            self._finish(claimed)
            return
        mains = [name for name in names if not any(name in sidecars_of(other) for other in names)]
        mains = [name for name in mains if not is_sidecar(name)] or mains
        if not mains:
            with contextlib.suppress(OSError):
                claimed.rmdir()
            return
        file = claimed / mains[0]
        beside = [claimed / name for name in names if name != mains[0]]
        if is_sidecar(mains[0]):  # killed between the sidecar's rename and its file's: it waits for that again
            target = self._folder / mains[0]
            if not os.path.lexists(target):
                os.rename(file, target)
            with contextlib.suppress(OSError):
                claimed.rmdir()
            return
        try:
            known = self._store.get(job)
        except StoreError as error:
            self._say("store", f"files wait in {self._folder / CLAIMED}: {error}")
            return
        if known is None:
            if self._seen_claimed(job, file.lstat()):
                self._add(job, file, beside)
        elif known.state.final:
            self._put_away(known, file, beside)
        else:
            self._jobs.add(job)

    def _put_away(self, job: StoredJob, file: Path, beside: list[Path]) -> None:
        if job.state is State.DONE:
            same = f"The same content was done before, as job {job.same_as}; these are its results.\n"
            notice = f"job: {job.id}\nresults: {job.results}\n{same if job.same_as else ''}"
            if job.message:
                notice += f"note: {job.message}\n"
            self._move(file, beside, DONE, RESULTS, notice)
        else:
            self._move(file, beside, FAILED, ERROR, _error_text(job.error or job.state.value, job.message, job.id))
        self._jobs.discard(job.id)

    def _refuse(self, file: Path, beside: list[Path], error: str, message: str) -> None:
        """Put a file away that never becomes a job. One that is not claimed yet is claimed first."""
        if file.parent == self._folder:
            claimed = self._folder / CLAIMED / new_id(time.time())
            claimed.mkdir()
            try:
                os.rename(file, claimed / file.name)
            except FileNotFoundError:
                claimed.rmdir()
                return
            file = claimed / file.name
        self._move(file, beside, FAILED, ERROR, _error_text(error, message, None))
        self._notify("refused", f"{file.name!r}: {error}: {message}")

    def _move(self, file: Path, beside: list[Path], where: str, kind: str, notice: str) -> None:
        """Write down where everything goes, then do it: a kill in between is made good by `_finish`."""
        name = free_name(self._folder / where, file.name)
        moves = {file.name: name, **{side.name: name + side.suffix for side in beside}}
        plan = {"where": where, "moves": moves, "notice": notice, "notice_name": name + kind}
        part = file.parent / f"{PLACE}.part"
        part.write_text(json.dumps(plan))
        os.rename(part, file.parent / PLACE)
        self._finish(file.parent)

    def _finish(self, claimed: Path) -> None:
        plan = json.loads((claimed / PLACE).read_text())
        target = self._folder / plan["where"]
        (target / plan["notice_name"]).write_text(plan["notice"], errors="surrogateescape")
        for name, new in plan["moves"].items():
            if os.path.lexists(claimed / name):
                os.rename(claimed / name, target / new)
        (claimed / PLACE).unlink()
        with contextlib.suppress(FileNotFoundError):
            (claimed / f"{PLACE}.part").unlink()
        claimed.rmdir()
        self._jobs.discard(claimed.name)

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        watcher = None if self._blind else Watcher(self._folder, self._changed)
        every = (self._settings.poll or BLIND_EVERY) if self._blind else SAFETY_EVERY
        try:
            while not self._stop.is_set():
                self._changed.clear()
                try:
                    self.scan()
                except Exception as error:  # noqa: BLE001  (the folder must go on being looked after)
                    self._say("defect", f"{type(error).__name__}: {error}: please report this")
                busy = self._seen or self._moving or self._missing or self._checked < 0
                self._changed.wait(min(every, max(0.1, self._settings.settle / 2)) if busy else every)
        finally:
            if watcher is not None:
                watcher.stop()

    def _on_change(self, job: StoredJob) -> None:
        if job.state.final and job.origin == "drop":
            self._ended.append(job.id)
            self._changed.set()

    def _prepare(self) -> None:
        """Make what belongs to the folder, and lock it."""
        if not self._folder.is_dir():
            raise NotADirectoryError(0, "not a folder", str(self._folder))
        for name in (CLAIMED, DONE, FAILED):
            (self._folder / name).mkdir(exist_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = os.open(self._folder / CLAIMED / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = -1
            raise DropError(
                f"drop.folder = {self._folder}: another daemon takes files from it: stop that one, or choose another"
            ) from error

    def _say(self, about: str, text: str) -> None:
        """Tell a person, once as long as it is so."""
        if self._said.get(about) != text:
            self._said[about] = text
            self._notify(about.partition(":")[0], text)

    def _fine(self, about: str) -> None:
        self._said.pop(about, None)


def _error_text(error: str, message: str, job: str | None) -> str:
    lines = [f"error: {error}", message]
    if job is not None:
        lines.append(f"job: {job} (`poseward logs {job}` tells its story)")
    lines.append("To have it done again, move the file back into the folder above.")
    return "\n".join(line for line in lines if line) + "\n"


def _contains(outer: Path, inner: Path) -> bool:
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(outer))
