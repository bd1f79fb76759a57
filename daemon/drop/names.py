"""Names in a drop folder: what is a video, what is a sidecar, what is not finished, and names that fit."""

from __future__ import annotations

import os
from pathlib import Path

NAME_MAX = 255
CLAIMED, DONE, FAILED = ".claimed", "done", "failed"
SIDECARS = (".toml", ".json")
PARTIAL = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".temp", ".!ut")
ERROR, RESULTS = ".error.txt", ".results.txt"


def is_ignored(name: str) -> bool:
    """Whether a name is never a video to be taken: hidden, ours, or what programs call unfinished files."""
    lower = name.lower()
    return name.startswith((".", "~$")) or name in (DONE, FAILED) or lower.endswith(PARTIAL)


def is_sidecar(name: str) -> bool:
    """Whether a name is that of a file with options for another one."""
    return name.lower().endswith(SIDECARS)


def sidecars_of(name: str) -> list[str]:
    """The names that a video's sidecar may have."""
    return [name + suffix for suffix in SIDECARS]


def fitting(name: str, number: int, room: int) -> str:
    """``clip (2).mp4`` for number 2, shortened so that ``room`` bytes can still follow."""
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > 20:
        stem, suffix = name, ""
    mark = "" if number == 1 else f" ({number})"
    most = NAME_MAX - room - len(os.fsencode(mark + suffix))
    raw = os.fsencode(stem)
    if len(raw) > most:
        # Not in the middle of a character.
        stem = os.fsdecode(raw[:most].decode("utf-8", "ignore").encode() or raw[:most])
    return f"{stem}{mark}{suffix}"


def free_name(folder: Path, name: str) -> str:
    """A name for ``name`` in ``folder`` that nothing has, nor the notices and sidecars that go with it."""
    room = max(len(ERROR), len(RESULTS), *map(len, SIDECARS))
    number = 1
    while True:
        found = fitting(name, number, room)
        beside = [found, found + ERROR, found + RESULTS, *sidecars_of(found)]
        if not any(os.path.lexists(folder / one) for one in beside):
            return found
        number += 1
