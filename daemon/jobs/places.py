"""Where a video's results go, and what happens to what is there already.

The results of ``clip.mp4`` go to ``FOLDER/clip/``; while they are being made, ``FOLDER/clip.poseward-work/`` holds
the journal. The rules, for each video:

- a name that is taken by anything (finished results, another run, another video of the same name) gives way
  to ``clip-2``, ``clip-3`` and so on, and it is said why;
- ``fresh`` replaces the finished results of the same content, once the new ones are whole;
- ``resume`` continues the work folder of the same content, and leaves finished results of it as they are;
- without either, what an interrupted run has left of the same content is kept, and the name counts as taken.

What "the same content" is, is said by a hash and not by a path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from daemon.jobs.summary import (
    FRAMES,
    SUMMARY,
    SummaryError,
    place,
    read_summary,
    sync_folder,
    write_json,
    write_summary,
)
from stages.settings import PipelineSettings

WORK_SUFFIX = ".poseward-work"
OLD_SUFFIX = ".poseward-old"
OWNER = "owner.json"
LOCK = "lock"
JOB = "job"
"""The pipeline's own folder inside the work folder."""
OVERLAY = "overlay"
"""The drawing's folder inside the work folder."""
FINISHED = "finished"
"""Inside the work folder: the results folder until it is renamed into place."""
LONGEST_NAME = 150


def result_settings(settings: PipelineSettings) -> dict[str, Any]:
    """The settings that the results depend on: a run can be continued only under the same."""
    return {
        "stages.backend": settings.backend,
        "stages.options": dict(settings.options),
        "stages.vertices": settings.vertices,
        **({"stages.stream": settings.stream} if settings.stream >= 0 else {}),
    }


class PlaceError(Exception):
    """A video's folders cannot be used; says why and the way out."""


@dataclass
class Place:
    """The folders of one video, held by a lock that the kernel drops when this process dies."""

    name: str
    results: Path
    work: Path
    identity: Mapping[str, Any]
    resumed: bool = False
    done: bool = False
    """The results are there already; nothing is to be done, and nothing is locked."""
    replaces: bool = False
    """Finished results of the same content may give way to the new ones."""
    notes: list[str] = field(default_factory=list)
    lock: int = -1

    @property
    def job(self) -> Path:
        """The folder that the pipeline works in."""
        return self.work / JOB

    @property
    def overlay(self) -> Path:
        """The folder in which the overlay is drawn beside the pipeline."""
        return self.work / OVERLAY

    def finish(self, summary: Mapping[str, Any], keep_work: bool = False, hold: bool = False) -> Path:
        """Bring ``frames.msgpack`` and the summary into place; returns the results folder.

        With ``hold`` the folder of the overlay stays, locked, until `leave` or `release`.

        Raises:
            OSError: the disk is full, the folder cannot be written, or something has come to stand where the results
                belong. The work folder is then still there.
        """
        finished = self.work / FINISHED
        finished.mkdir(exist_ok=True)
        if keep_work:
            shutil.copyfile(self.job / FRAMES, finished / FRAMES)
        else:
            place(self.job / FRAMES, finished / FRAMES)
        write_summary(finished, summary)
        old = self.results.with_name(f".{self.name}{OLD_SUFFIX}")
        try:
            finished.rename(self.results)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not self.replaces or self.results.is_symlink() or not _is_of(self.results, self.identity):
                message = "something else has come to stand there meanwhile: move it away, and resume"
                raise FileExistsError(errno.EEXIST, message, str(self.results)) from None
            shutil.rmtree(old, ignore_errors=True)  # left by a kill when something was replaced before
            self.results.rename(old)
            finished.rename(self.results)
        sync_folder(self.results.parent)
        shutil.rmtree(old, ignore_errors=True)
        if not keep_work:
            shutil.rmtree(self.job, ignore_errors=True)
        if not hold:
            self.leave(keep_work)
        return self.results

    def leave(self, keep_work: bool = False) -> None:
        """Everything is done: remove the work folder, or what only the overlay needed."""
        if keep_work:
            shutil.rmtree(self.overlay, ignore_errors=True)
            self.release()
        else:
            self.abandon()

    def abandon(self) -> None:
        """Remove the work folder: there is nothing in it to continue."""
        _remove(self.work)
        self.release()

    def release(self) -> None:
        """Give up the lock and leave everything as it is, to be resumed."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def choose(
    folder: Path,
    source: Path,
    identity: Mapping[str, Any],
    relevant: Mapping[str, Any],
    *,
    taken: Collection[str] = (),
    resume: bool = False,
    fresh: bool = False,
) -> Place:
    """Choose and lock the folders of one video by the rules above.

    Args:
        folder: where results go; made if need be.
        source: the input.
        identity: its content, from `daemon.jobs.summary.identify`.
        relevant: the settings that results depend on; a run with others cannot be continued.
        taken: names that other videos of this run have.
        resume: continue what was interrupted.
        fresh: replace finished results of the same content.

    Raises:
        PlaceError: the work folder to be resumed was begun with other settings.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    base = folder_name(source)
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        number += 1
        if name in taken:
            continue
        found = Place(name, folder / name, folder / f"{name}{WORK_SUFFIX}", identity, notes=notes)
        _restore_old(found)
        if _is_occupied(found, resume=resume, fresh=fresh):
            continue
        occupied = partial(_is_occupied, found, resume=resume, fresh=fresh)
        if found.done or _take_work(found, relevant, resume=resume, keep=not fresh, occupied=occupied):
            return found


def claim(folder: Path, name: str, identity: Mapping[str, Any], relevant: Mapping[str, Any]) -> Place | None:
    """Lock the work folder of a job that has its name already, and go on with what stands in it.

    What was begun with other settings is begun afresh. None where the folder belongs to another run or video.

    Raises:
        OSError: the folder cannot be written.
    """
    found = Place(name, folder / name, folder / f"{name}{WORK_SUFFIX}", identity, replaces=True)
    _restore_old(found)
    try:
        taken = _take_work(found, relevant, resume=True)
    except PlaceError as error:
        found.notes.append(str(error))
        taken = _take_work(found, relevant, resume=False)
    return found if taken else None


def work_of(results: Path) -> Path:
    """The work folder that belongs to a results folder."""
    return results.with_name(f"{results.name}{WORK_SUFFIX}")


def reopen(results: Path) -> Place | None:
    """The work folder of finished results whose exports are still to be made, locked; made anew if it is gone. None
    where another run works in it.

    Raises:
        OSError: it cannot be made or locked.
    """
    found = Place(results.name, results, work_of(results), {})
    return found if _lock(found) else None


def folder_name(source: Path) -> str:
    """The folder's name for an input: its stem, without what makes file names awkward."""
    stem = source.name if source.is_dir() else source.stem
    clean = (
        re.sub(r"[\x00-\x1f\x7f/\\]", "_", os.fsencode(stem).decode("utf-8", "replace")).strip(". ").lstrip("-")
    )
    while len(clean.encode()) > LONGEST_NAME:
        clean = clean[:-1]
    if clean.lower().endswith(WORK_SUFFIX):  # it would be taken for what another video is worked on in
        clean = f"{clean}-1"
    return clean or "video"


def _is_occupied(found: Place, *, resume: bool, fresh: bool) -> bool:
    """Whether the results folder stands in the way; sets ``done`` where it holds what is wanted."""
    if not found.results.exists() and not found.results.is_symlink():
        return False
    link = found.results.is_symlink()  # nothing can be renamed onto it
    if not (found.results / SUMMARY).is_file():
        if not link and found.results.is_dir() and not any(found.results.iterdir()):
            return False
        found.notes.append(f"{found.results} holds something else and is left alone")
        return True
    if not _is_of(found.results, found.identity):
        found.notes.append(f"{found.results} holds the results of another video and is left alone")
        return True
    if fresh and not link:
        found.replaces = True
        return False
    if resume:
        found.done = True
        return False
    found.notes.append(
        f"{found.results} holds earlier results of the same video and is left alone (--fresh replaces them)"
    )
    return True


def _is_of(results: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds finished results of this content."""
    try:
        return bool(read_summary(results)["input"]["sha256"] == identity["sha256"])
    except (SummaryError, KeyError, TypeError):
        return False


def _lock(found: Place) -> bool:
    """Lock the work folder; False where another run has it."""
    while True:
        found.work.mkdir(exist_ok=True)
        try:
            descriptor = os.open(found.work / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # who had it has just removed the folder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(found.work / LOCK)):
                found.lock = descriptor
                return True
        except BlockingIOError:
            os.close(descriptor)
            found.notes.append(f"another run is working in {found.work}")
            return False
        except FileNotFoundError:
            pass
        os.close(descriptor)  # it has been removed meanwhile, and guards nothing any more


def _remove(work: Path) -> None:
    """Remove a work folder, its lock last: until then nobody else can begin in it."""
    with contextlib.suppress(OSError):
        for entry in list(work.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                entry.unlink(missing_ok=True)
        (work / LOCK).unlink(missing_ok=True)
        work.rmdir()


def _take_work(
    found: Place,
    relevant: Mapping[str, Any],
    *,
    resume: bool,
    keep: bool = False,
    occupied: Callable[[], bool] = lambda: False,
) -> bool:
    """Lock the work folder and make it ready; False where it belongs to another run or video, where another run
    has put its results into place just before the lock was had, or where there is work in it to ``keep``."""
    if not _lock(found):
        return False
    owner = _read_owner(found.work)
    if occupied() or found.done:
        if owner is None:
            _remove(found.work)
        found.release()
        return found.done
    if owner is not None and owner.get("sha256") != found.identity["sha256"]:
        found.notes.append(f"{found.work} is left from another video; resume that one, or remove the folder")
        found.release()
        return False
    if owner is not None and resume:
        _check_settings(found, owner, relevant)
        moved = found.work / FINISHED / FRAMES
        if moved.is_file() and not (found.job / FRAMES).exists():
            place(moved, found.job / FRAMES)  # killed between the two renames of `finish`
        shutil.rmtree(found.work / FINISHED, ignore_errors=True)
        found.resumed = True
        return True
    if owner is not None and keep and found.job.is_dir() and any(found.job.iterdir()):
        found.notes.append(
            f"{found.work} is left from an interrupted run and is kept: stop and use --resume to continue it, or"
            " --fresh to begin it afresh; this run goes to another name"
        )
        found.release()
        return False
    if owner is not None:
        found.notes.append(f"{found.work} is left from an interrupted run: begun afresh")
    for part in (JOB, FINISHED, OVERLAY):
        shutil.rmtree(found.work / part, ignore_errors=True)
    found.job.mkdir()
    write_json(found.work / OWNER, {**found.identity, "settings": dict(relevant)})
    return True


def _check_settings(found: Place, owner: Mapping[str, Any], relevant: Mapping[str, Any]) -> None:
    before = owner.get("settings", {})
    changed = [
        f"{key} was {before.get(key)!r} and is {relevant.get(key)!r}"
        for key in sorted({*before, *relevant})
        if before.get(key) != relevant.get(key)
    ]
    if changed:
        found.release()
        raise PlaceError(
            f"{found.work} was begun with other settings ({'; '.join(changed)}): "
            "run with those, or with --fresh to begin afresh"
        )


def _read_owner(work: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads((work / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def _restore_old(found: Place) -> None:
    """Mend what a kill in the middle of replacing left."""
    old = found.results.with_name(f".{found.name}{OLD_SUFFIX}")
    if old.is_dir() and not found.results.exists():
        old.rename(found.results)
