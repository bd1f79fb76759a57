"""What lies in a drop folder and is ready to be taken."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from daemon.drop.names import is_ignored, is_sidecar, whose_sidecar
from daemon.drop.settling import Settling


@dataclass(frozen=True)
class Ready:
    """A file that is complete, with its sidecars, which are complete as well."""

    name: str
    sidecars: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """What one look has found."""

    ready: list[Ready] = field(default_factory=list)
    """The files that were changed longest ago first."""
    coming: int = 0
    """Files that are not complete yet."""
    odd: dict[str, str] = field(default_factory=dict)
    """Names that are no files, with why they are left alone."""
    alone: list[str] = field(default_factory=list)
    """Sidecars that wait for their files."""


def look(folder: Path, settling: Settling, now: float) -> Look:
    """One look into the folder: every name once, nothing opened.

    Raises:
        OSError: the folder cannot be read.
    """
    files: dict[str, os.stat_result] = {}
    found = Look()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_ignored(entry.name):
                continue
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # it has vanished, or can never be taken: the next look tells
            if stat.S_ISREG(about.st_mode) or stat.S_ISLNK(about.st_mode):
                files[entry.name] = about
            else:
                found.odd[entry.name] = "folders are not looked into" if entry.is_dir() else "it is no file"
    settling.keep(files)
    sidecars: dict[str, list[str]] = {}
    for name in filter(is_sidecar, files):
        if whose_sidecar(name) in files and not is_sidecar(whose_sidecar(name)):
            sidecars.setdefault(whose_sidecar(name), []).append(name)
        else:
            found.alone.append(name)
    coming = 0
    for name in files:
        if not is_sidecar(name):
            beside = sorted(sidecars.get(name, ()))
            still = [_is_still(one, files[one], settling, now) for one in (name, *beside)]
            if all(still):
                found.ready.append(Ready(name, tuple(beside)))
            else:
                coming += 1
    found.ready.sort(key=lambda one: (files[one.name].st_mtime_ns, one.name))
    return Look(found.ready, coming, found.odd, found.alone)


def _is_still(name: str, about: os.stat_result, settling: Settling, now: float) -> bool:
    """Links do not grow: they are taken at once, to be refused."""
    return stat.S_ISLNK(about.st_mode) or settling.is_still(name, about, now)
