"""Takes files from the drop folder, makes them jobs, and puts them where they belong when those have ended."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.drop import away
from daemon.drop.claims import Claim, Refused, claim, make_readable, move_back, options_of, read_claim
from daemon.drop.grounds import DropError, Grounds
from daemon.drop.incoming import Ready, look
from daemon.drop.names import DONE, ERROR, FAILED, RESULTS, is_job, whose_sidecar
from daemon.drop.notes import Notes
from daemon.drop.notices import error_notice, results_notice
from daemon.drop.settling import Settling
from daemon.drop.watching import Watcher, is_blind
from daemon.jobs.store import JobStore, State, StoredJob, StoreError, Submission, new_id
from daemon.settings.schema import DropSettings

MOST = 200
"""Files taken, and claimed folders looked at, in one look, so that thousands at once hold up nobody for long."""
BLIND_EVERY = 2.0
SAFETY_EVERY = 30.0
"""Seconds between two looks where the kernel tells of changes, as it may lose some, and between two looks at
everything that is claimed."""
STORE_EVERY = 5.0
"""Seconds after which a store that has refused a file is asked again."""
REMEMBERED = 10_000
"""Names of files taken last, for sidecars that come too late."""
_WHOLE_FOLDER = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)
"""Errors that no other file would be spared."""


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
        self._notes = Notes(notify)
        self._incoming = Settling(settings.settle)
        self._coming = 0
        self._claimed = 0
        self._taken: OrderedDict[str, str] = OrderedDict()
        self._claims: dict[str, Settling] = {}
        """Of claimed files, by job: whoever sent one may go on writing."""
        self._todo: OrderedDict[str, None] = OrderedDict()
        """Claimed folders to look at now."""
        self._moving: dict[str, None] = {}
        """Claimed folders whose file does not stand still yet."""
        self._jobs: OrderedDict[str, None] = OrderedDict()
        """Claimed files that are jobs which had not ended when they were last looked up."""
        self._ended: deque[str] = deque()
        self._checked: float | None = None
        self._refused_at: float | None = None
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watcher: Watcher | None = None
        self._grounds = Grounds(self._folder, results, self._notes.once)
        try:
            self._grounds.open(make=True)
        except OSError as error:
            self._grounds.close()
            raise DropError(
                f"drop.folder = {self._folder}: {error.strerror}; choose a folder that you can write"
            ) from error
        self._blind = settings.poll > 0 or is_blind(self._folder)
        store.listen(self._on_change)

    def start(self) -> None:
        """Begin to look after the folder."""
        self._thread = threading.Thread(target=self._run, name="drop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the file in hand, and let go of the folder. May be called twice."""
        self._stop.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._grounds.close()

    def status(self) -> dict[str, Any]:
        """For `health`. May be called from any thread."""
        told = not self._blind and (self._watcher is None or self._watcher.told)
        return {
            "folder": str(self._folder),
            "watching": "kernel" if told else "polling",
            "incomplete": self._coming,
            "claimed": self._claimed,
            "problem": self._notes.problem(),
        }

    def scan(self) -> None:
        """One look: claim what is complete, make jobs of what is claimed, put away what has ended."""
        try:
            if not self._grounds.stands():
                self._grounds.open()
                self._checked = None
            if self._checked is None or self._clock() - self._checked >= SAFETY_EVERY:
                self._checked = self._clock()
                claimed = [name for name in sorted(os.listdir(self._grounds.claimed)) if is_job(name)]
                self._todo.update((name, None) for name in claimed if name not in self._moving)
                self._notes.keep("stuck", set(claimed))
            self._take()
        except (FileNotFoundError, NotADirectoryError):
            self._notes.say("folder", "", f"{self._folder} is gone: waiting for it to come back")
            return
        except DropError as error:
            self._notes.say("folder", "", str(error))
            return
        except OSError as error:
            self._notes.say("folder", "", f"{self._folder}: {error.strerror}: it is tried again")
        else:
            self._notes.over("folder", "")
        if not self._store_waits():
            self._look_up_jobs()
            self._look_at_claims()
        self._claimed = len(self._jobs.keys() | self._todo.keys() | self._moving.keys())

    # -- files that come ---------------------------------------------------------------------------------

    def _take(self) -> None:
        found = look(self._folder, self._incoming, self._clock())
        self._coming = found.coming + len(found.ready)
        self._notes.keep("odd", found.odd)
        for name, why in found.odd.items():
            self._notes.say("odd", name, f"{name!r} is left alone: {why}")
        self._notes.keep("late-sidecar", found.alone)
        for name in found.alone:
            if (job := self._taken.get(whose_sidecar(name))) is not None:
                self._notes.say(
                    "late-sidecar", name,
                    f"{name!r} has come too late: its file was taken as job {job}; it waits for the next one of"
                    " that name",
                )  # fmt: skip
        if self._refused_at is not None:
            return  # the files are as safe where they are
        taken = 0
        blocked: list[str] = []
        for ready in found.ready[:MOST]:
            if self._stop.is_set():
                break
            try:
                taken += self._claim(ready)
            except OSError as error:
                if error.errno in _WHOLE_FOLDER:
                    raise
                blocked.append(ready.name)
                self._notes.say(
                    "blocked", ready.name,
                    f"{ready.name!r} cannot be taken: {error.strerror}: another program has it open, or it is"
                    " somebody else's; it is tried again",
                )  # fmt: skip
        self._notes.keep("blocked", {*blocked, *self._incoming.names()})
        self._coming -= taken
        if taken:
            self._grounds.sync()  # what the store knows of must not lie elsewhere after a power cut
        if len(found.ready) > MOST:
            self._changed.set()

    def _claim(self, ready: Ready) -> bool:
        """Take a file by renaming it into a folder named after its job to be; False where it has vanished."""
        job = new_id(time.time())
        seen = {name: self._incoming.take(name) for name in (*ready.sidecars, ready.name)}
        try:
            claim(self._folder, ready, self._grounds.claimed / job)
        except FileNotFoundError:
            return False
        settling = self._claims[job] = Settling(self._settings.settle)
        for name, known in seen.items():
            settling.give(name, known)
        self._todo[job] = None
        return True

    # -- files that have been claimed ----------------------------------------------------------------------

    def _look_up_jobs(self) -> None:
        """Find the jobs that have ended, even if nobody has told."""
        while self._ended:
            self._todo[self._ended.popleft()] = None
        with contextlib.suppress(StoreError):  # said when something is wanted of it
            for job in list(itertools.islice(self._jobs, MOST // 2)):
                self._jobs.move_to_end(job)
                known = self._store.get(job)
                if known is None or known.state.final:
                    self._todo[job] = None

    def _look_at_claims(self) -> None:
        for job in [*self._moving, *itertools.islice(self._todo, MOST)]:
            if self._stop.is_set():
                return
            try:
                self._look_at(job)
                self._notes.over("stuck", job)
            except StoreError as error:
                self._refused_at = self._clock()
                if job in self._todo:
                    self._todo.move_to_end(job)
                self._notes.say("store", "", f"files wait in {self._grounds.claimed}: {error}")
                return
            except FileNotFoundError:
                self._forget(job)
            except OSError as error:
                self._forget(job)
                self._notes.say("stuck", job, f"files wait in {self._grounds.claimed}: {error.strerror}")
            except Exception as error:  # noqa: BLE001  (one file must not hold up the others)
                self._forget(job)
                self._notes.say(
                    "stuck", job,
                    f"{self._grounds.claimed / job}: {type(error).__name__}: {error}: please report this",
                )  # fmt: skip
        if self._todo:
            self._changed.set()
        else:
            self._refused_at = None
            self._notes.over("store", "")

    def _look_at(self, job: str) -> None:
        """Whatever is next for one claimed folder. Leaves it in one of `_todo`, `_moving`, `_jobs`, or in none."""
        folder = self._grounds.claimed / job
        if away.is_planned(folder):
            away.finish(self._folder, folder)
            if not folder.exists():
                self._forget(job)
                return
        known = self._store.get(job)
        found = read_claim(folder, known.name if known is not None else None)
        if found.file is None:
            self._tidy(found, known)
            self._forget(job)
        elif known is None:
            self._add(job, found, found.file)
        elif known.state.final:
            self._taken_as(found.original, job)
            self._put_away(known, found, found.file)
            self._forget(job)
        else:
            self._is_job(job, found.original)

    def _add(self, job: str, found: Claim, file: Path) -> None:
        """Make a claimed file a job, once it stands still; what cannot be one is put away at once."""
        self._taken_as(found.original, job)
        settling = self._claims.setdefault(job, Settling(self._settings.settle))
        now = self._clock()
        still = [_is_still(settling, path, now) for path in (file, *found.sidecars)]  # all are looked at
        if not all(still):
            self._todo.pop(job, None)
            self._moving[job] = None
            return
        try:
            options = options_of(file, found.sidecars)
        except Refused as error:
            notice = error_notice(error.name, str(error), None)
            away.put_away(self._folder, file, found.sidecars, found.original, FAILED, ERROR, notice)
            self._forget(job)
            self._notes.once("refused", f"{found.original!r}: {error.name}: {error}")
            return
        file = make_readable(found, file)
        wanted = Submission(str(file), file.name, "drop", options.priority, None, options.as_map(), job)
        self._store.add(wanted)
        self._notes.over("store", "")
        self._is_job(job, found.original)

    def _put_away(self, job: StoredJob, found: Claim, file: Path) -> None:
        if job.state is State.DONE:
            where, kind, notice = DONE, RESULTS, results_notice(job)
        else:
            where, kind = FAILED, ERROR
            notice = error_notice(job.error or job.state.value, job.message, job.id)
        away.put_away(self._folder, file, found.sidecars, found.original, where, kind, notice)

    def _tidy(self, found: Claim, known: StoredJob | None) -> None:
        """A claimed folder without a file: it was killed half-way through the claim, or somebody took the file."""
        for side in found.sidecars:
            if known is not None or not move_back(self._folder, side):
                notice = error_notice("left-sidecar", "its file is gone, or a newer sidecar has come", None)
                away.put_away(self._folder, side, (), side.name, FAILED, ERROR, notice)
        with contextlib.suppress(OSError):
            found.folder.rmdir()

    def _is_job(self, job: str, name: str) -> None:
        self._forget(job)
        self._jobs[job] = None
        self._taken_as(name, job)

    def _taken_as(self, name: str, job: str) -> None:
        self._taken[name] = job
        self._taken.move_to_end(name)
        if len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)

    def _forget(self, job: str) -> None:
        self._todo.pop(job, None)
        self._moving.pop(job, None)
        self._jobs.pop(job, None)
        self._claims.pop(job, None)

    def _store_waits(self) -> bool:
        """Whether the store has refused something just now, so that it is left in peace for a while."""
        return self._refused_at is not None and self._clock() - self._refused_at < STORE_EVERY

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._watcher = None if self._blind else Watcher(self._folder, self._changed)
        try:
            while not self._stop.is_set():
                self._changed.clear()
                try:
                    self.scan()
                    self._notes.over("defect", "")
                except Exception as error:  # noqa: BLE001  (the folder must go on being looked after)
                    self._notes.say("defect", "", f"{type(error).__name__}: {error}: please report this")
                self._changed.wait(self._pause())
        finally:
            if self._watcher is not None:
                self._watcher.stop()

    def _pause(self) -> float:
        """Seconds until the next look, if nobody tells of a change."""
        every = (self._settings.poll or BLIND_EVERY) if self._blind else SAFETY_EVERY
        if self._coming or self._moving:
            every = min(every, max(0.1, self._settings.settle / 2))
        if self._store_waits():
            every = min(every, STORE_EVERY)
        return min(every, BLIND_EVERY) if self._notes.problem() is not None else every

    def _on_change(self, job: StoredJob) -> None:
        if job.state.final and job.origin == "drop":
            self._ended.append(job.id)
            self._changed.set()


def _is_still(settling: Settling, path: Path, now: float) -> bool:
    found = path.lstat()
    return not stat.S_ISREG(found.st_mode) or settling.is_still(path.name, found, now)
