"""Puts claimed files into ``done/`` and ``failed/``: planned in a file first, so that any kill is made good."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from daemon.drop.names import ERROR, NAME_MAX, ORIGINAL, RESULTS, free_name

PLACE = ".place"
"""In a claimed folder: where its file goes."""
NOTICE = ".notice"


@dataclass(frozen=True)
class Plan:
    """Where the files of a claimed folder go, and what is written beside them.

    ``name`` is the one wanted; ``moves`` are pairs of the old and the new name, the file itself last: while it is
    still there, not all is done.
    """

    name: str
    where: str
    moves: list[tuple[str, str]]
    kind: str
    notice: str


def is_planned(folder: Path) -> bool:
    """Whether a claimed folder's file is on its way."""
    return os.path.lexists(folder / PLACE)


def put_away(
    root: Path, file: Path, sidecars: Sequence[Path], name: str, where: str, kind: str, notice: str
) -> None:
    """Move a claimed file and its sidecars to ``root/where``, with ``notice`` in a file NAME``kind`` beside it.

    There it is called ``name``, with a number where that is taken: nothing is overwritten. After a kill `finish`
    goes on.

    Raises:
        OSError: it cannot be written or moved; `finish` may be called again.
    """
    # A sidecar's name is that of its file with an ending of its own.
    ends = [(side.name, side.suffix) for side in sidecars] + [(file.name, "")]
    _plan(root, file.parent, name, ends, where, kind, notice)
    finish(root, file.parent)


def finish(root: Path, folder: Path) -> None:
    """Do what was planned, or the rest of it. A plan that cannot be read is removed, for another to be made.

    Raises:
        OSError: it cannot be written or moved; this may be called again.
    """
    plan = _read(folder / PLACE)
    if plan is not None:
        while not _is_free(root, folder, plan):  # another file came to that name since
            base = plan.moves[-1][1]
            ends = [(old, new[len(base) :]) for old, new in plan.moves]
            plan = _plan(root, folder, plan.name, ends, plan.where, plan.kind, plan.notice)
        _carry_out(root / plan.where, folder, plan)
    ours = (f"{PLACE}.part", NOTICE, ORIGINAL, PLACE) if plan is not None else (PLACE,)
    for left in ours:
        with contextlib.suppress(FileNotFoundError):
            (folder / left).unlink()
    if plan is not None:
        with contextlib.suppress(OSError):
            folder.rmdir()  # not where somebody has put something else there


def _plan(
    root: Path, folder: Path, name: str, ends: list[tuple[str, str]], where: str, kind: str, notice: str
) -> Plan:
    """``ends`` are pairs of a file's name now and the ending that it has behind the new name."""
    target = root / where
    target.mkdir(exist_ok=True)
    new = free_name(target, name, {ERROR, RESULTS, *(end for _, end in ends)}, _longest(target))
    plan = Plan(name, where, [(old, new + end) for old, end in ends], kind, notice)
    _write(folder / f"{PLACE}.part", folder / PLACE, json.dumps(asdict(plan)).encode())
    return plan


def _carry_out(target: Path, folder: Path, plan: Plan) -> None:
    old, new = plan.moves[-1]
    target.mkdir(exist_ok=True)
    if os.path.lexists(folder / old):
        notice = target / (new + plan.kind)
        if not os.path.lexists(notice):
            _write(folder / NOTICE, notice, _encoded(plan.notice))
    for old, new in plan.moves:
        if os.path.lexists(folder / old):
            os.rename(folder / old, target / new)


def _is_free(root: Path, folder: Path, plan: Plan) -> bool:
    """Whether nothing but what this plan has put there itself has the names in it."""
    target = root / plan.where
    if any(os.path.lexists(folder / old) and os.path.lexists(target / new) for old, new in plan.moves):
        return False
    old, new = plan.moves[-1]
    if not os.path.lexists(folder / old):
        return True
    notice = target / (new + plan.kind)
    try:
        return not os.path.lexists(notice) or notice.read_bytes() == _encoded(plan.notice)
    except OSError:
        return False


def _read(path: Path) -> Plan | None:
    """None where a power cut has left half of it."""
    try:
        plan = Plan(**json.loads(path.read_bytes()))
        return plan if plan.moves and all(len(move) == 2 for move in plan.moves) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(part: Path, path: Path, data: bytes) -> None:
    """Whole or not at all, whoever is killed.

    Not synced, which would cost 10 ms a file: a power cut may empty what is written here, but it does not undo
    moves out of order, so the file is in either place, and an empty plan is made again.
    """
    part.write_bytes(data)
    os.rename(part, path)


def _encoded(notice: str) -> bytes:
    return notice.encode("utf-8", "backslashreplace")


def _longest(folder: Path) -> int:
    """Bytes that a name may have: fewer than usual on some encrypted file systems."""
    try:
        return min(NAME_MAX, os.pathconf(folder, "PC_NAME_MAX"))
    except (OSError, ValueError):
        return NAME_MAX
