"""Names in a drop folder: what is a video, what is a sidecar, what is not finished, and names that fit."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

NAME_MAX = 255
CLAIMED, DONE, FAILED = ".claimed", "done", "failed"
SIDECARS = (".toml", ".json")
PARTIAL = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".temp", ".!ut")
ERROR, RESULTS = ".error.txt", ".results.txt"
ORIGINAL = ".name"
"""In a claimed folder: the name of a file that goes by a `readable` one there."""
LONGEST_SUFFIX = 20
"""Bytes; what follows the last dot of a longer one is part of the name, not a kind of file."""

_JOB = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


def is_job(name: str) -> bool:
    """Whether a folder below ``.claimed`` is named as `daemon.jobs.store.new_id` names jobs."""
    return _JOB.fullmatch(name) is not None


def is_ignored(name: str) -> bool:
    """Whether a name is never a video to be taken: hidden, ours, or what programs call unfinished files."""
    lower = name.lower()
    return name.startswith((".", "~$")) or name in (DONE, FAILED) or lower.endswith(PARTIAL)


def is_sidecar(name: str) -> bool:
    """Whether a name is that of a file with options for another one."""
    return name.lower().endswith(SIDECARS)


def whose_sidecar(name: str) -> str:
    """The name of the file that a sidecar belongs to."""
    return name[: -len(SIDECARS[0])]


def readable(name: str) -> str:
    """``name`` with ``_`` for each piece that is not UTF-8: never longer, and of the same kind.

    Video libraries, message formats and results folders want UTF-8; file systems do not.
    """
    return os.fsencode(name).decode("utf-8", "replace").replace("\ufffd", "_") if not is_readable(name) else name


def is_readable(name: str) -> bool:
    """Whether a name is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def fitting(name: str, number: int, room: int, most: int = NAME_MAX) -> str:
    """``clip (2).mp4`` for number 2, shortened so that with ``room`` more bytes it has at most ``most``."""
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > LONGEST_SUFFIX:
        stem, suffix = name, ""
    mark = "" if number == 1 else f" ({number})"
    raw = os.fsencode(stem)
    end = most - room - len(os.fsencode(mark + suffix))
    if len(raw) > end:
        for _ in range(3):  # not in the middle of a character: UTF-8's have at most three bytes more
            if raw[end] & 0xC0 != 0x80:
                break
            end -= 1
        raw = raw[:end]
    return f"{os.fsdecode(raw)}{mark}{suffix}"


def free_name(folder: Path, name: str, beside: Collection[str], most: int = NAME_MAX) -> str:
    """A name for ``name`` in ``folder`` that nothing has, with none of the endings in ``beside`` either."""
    number = 1
    while True:
        found = fitting(name, number, max(map(len, beside)), most)
        if not any(os.path.lexists(folder / (found + more)) for more in ("", *beside)):
            return found
        number += 1
