"""Where a video's results go, and what happens to what is there already.

The results of ``clip.mp4`` go to ``FOLDER/clip/``; while they are being made, ``FOLDER/clip.poseward-work/`` holds
the journal. The rules, for each video:

- a name that is taken by anything (finished results, another run, another video of the same name) gives way
  to ``clip-2``, ``clip-3`` and so on, and it is said why;
- ``fresh`` replaces the finished results of the same content, once the new ones are whole;
- ``resume`` continues the work folder of the same content, and leaves finished results of it as they are;
- without ``resume``, a work folder of the same content that nobody uses is named and begun afresh.

What "the same content" is, is said by a hash and not by a path.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.summary import (
    FRAMES,
    SUMMARY,
    SummaryError,
    place,
    read_summary,
    sync_folder,
    write_json,
    write_summary,
)

WORK_SUFFIX = ".poseward-work"
OLD_SUFFIX = ".poseward-old"
OWNER = "owner.json"
LOCK = "lock"
JOB = "job"
"""The pipeline's own folder inside the work folder."""
FINISHED = "finished"
"""Inside the work folder: the results folder until it is renamed into place."""
LONGEST_NAME = 150


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
    notes: list[str] = field(default_factory=list)
    lock: int = -1

    @property
    def job(self) -> Path:
        """The folder that the pipeline works in."""
        return self.work / JOB

    def finish(self, summary: Mapping[str, Any], keep_work: bool = False) -> Path:
        """Bring ``frames.msgpack`` and the summary into place; returns the results folder.

        Raises:
            OSError: the disk is full or the folder cannot be written. The work folder is then still there.
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
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self.results.rename(old)
            finished.rename(self.results)
        sync_folder(self.results.parent)
        shutil.rmtree(old, ignore_errors=True)
        self.release()
        if not keep_work:
            shutil.rmtree(self.work, ignore_errors=True)
        return self.results

    def abandon(self) -> None:
        """Remove the work folder: there is nothing in it to continue."""
        shutil.rmtree(self.work, ignore_errors=True)
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
        identity: its content, from `daemon.summary.identify`.
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
        if found.done or _take_work(found, relevant, resume=resume):
            return found


def claim(folder: Path, name: str, identity: Mapping[str, Any], relevant: Mapping[str, Any]) -> Place | None:
    """Lock the work folder of a job that has its name already, and go on with what stands in it.

    What was begun with other settings is begun afresh. None where the folder belongs to another run or video.

    Raises:
        OSError: the folder cannot be written.
    """
    found = Place(name, folder / name, folder / f"{name}{WORK_SUFFIX}", identity)
    _restore_old(found)
    try:
        taken = _take_work(found, relevant, resume=True)
    except PlaceError as error:
        found.notes.append(str(error))
        taken = _take_work(found, relevant, resume=False)
    return found if taken else None


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
    if not (found.results / SUMMARY).is_file():
        if found.results.is_dir() and not any(found.results.iterdir()):
            return False
        found.notes.append(f"{found.results} holds something else and is left alone")
        return True
    try:
        same = read_summary(found.results)["input"]["sha256"] == found.identity["sha256"]
    except (SummaryError, KeyError, TypeError):
        same = False
    if not same:
        found.notes.append(f"{found.results} holds the results of another video and is left alone")
        return True
    if fresh:
        return False
    if resume:
        found.done = True
        return False
    found.notes.append(
        f"{found.results} holds earlier results of the same video and is left alone (--fresh replaces them)"
    )
    return True


def _take_work(found: Place, relevant: Mapping[str, Any], *, resume: bool) -> bool:
    """Lock the work folder and make it ready; False where it belongs to another run or video."""
    found.work.mkdir(exist_ok=True)
    descriptor = os.open(found.work / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        found.notes.append(f"another run is working in {found.work}")
        return False
    found.lock = descriptor
    owner = _read_owner(found.work)
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
    if owner is not None:
        found.notes.append(
            f"{found.work} is left from an interrupted run: begun afresh (--resume would have continued it)"
        )
    for part in (JOB, FINISHED):
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
            "run with those, or without --resume to begin afresh"
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
