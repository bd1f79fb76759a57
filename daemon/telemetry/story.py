"""Reads logs: the story of one job across all processes, or whatever else is asked for.

A line belongs to a job's story if it names the job, or if it is about a stage while the job was in work. Lines that
are cut, or that are none of ours, are passed over.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from daemon.telemetry import logs

Line = dict[str, Any]
BEGINS = frozenset({"taken"})
ENDS = frozenset({"done", "failed", "cancelled", "queued again", "queued again after a restart"})
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_KNOWN = frozenset({"event", "level", "timestamp", "component", "process", "stage", "state", "message", "line"})
_LONG = ("traceback", "stack_dump", "stderr", "exception")
_FOLLOW_EVERY = 0.3


class StoryError(Exception):
    """What was asked for cannot be found; says the way out."""


@dataclass(frozen=True)
class Wanted:
    """Which lines. ``since`` is seconds since 1970."""

    job: str | None = None
    stage: str | None = None
    level: str | None = None
    since: float | None = None


def parse(text: bytes) -> Line | None:
    """One line of a log; None where it is cut or none of ours."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def read(path: Path) -> Iterator[Line]:
    """All lines of a log, oldest first, those of rotated files too. A file that vanishes meanwhile is passed over."""
    for file in logs.files(path):
        yield from _read_one(file)


def follow(
    path: Path, *, again: Callable[[], bool] = lambda: True, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Line]:
    """All lines, then those that come, through rotations, as long as ``again`` says so."""
    for file in logs.files(path):
        if file != path:
            yield from _read_one(file)
    stream = None
    held = b""
    try:
        while True:
            if stream is None and path.is_file():
                stream, held = path.open("rb"), b""
            if stream is not None:
                while text := stream.readline():
                    held += text
                    if held.endswith(b"\n"):
                        line, held = parse(held), b""
                        if line is not None:
                            yield line
                if _moved(path, stream.fileno()):
                    if rest := stream.readline():  # written between our last look and the rotation
                        held += rest
                        continue
                    stream.close()
                    stream = None
                    continue
            if not again():
                return
            sleep(_FOLLOW_EVERY)
    finally:
        if stream is not None:
            stream.close()


def find_job(lines: Iterable[Line], text: str) -> str:
    """The id of the job that ``text`` means: an id, the beginning of exactly one (or of its last part, as `poseward
    status` shows it), or the name or path of a file (the latest job of that name).

    Raises:
        StoryError: there is none, or an id's beginning fits several.
    """
    named: dict[str, set[str]] = {}
    for line in lines:
        if isinstance(job := line.get("job"), str):
            names = named.setdefault(job, set())
            names.update(str(line[key]) for key in ("name", "source") if key in line)
    if text in named:
        return text
    begin = [job for job in named if job.startswith(text) or job.rpartition("-")[2].startswith(text)]
    if len(begin) == 1:
        return begin[0]
    called = [job for job, names in named.items() if text in names or str(Path(text).absolute()) in names]
    if called:
        return called[-1]
    if begin:
        raise StoryError(f"{text!r} begins {len(begin)} jobs' ids: {', '.join(begin[-5:])}: write more of one")
    latest = ", ".join(list(named)[-3:]) or "none at all"
    raise StoryError(f"no job {text!r} in the log; the latest there: {latest}")


class Story:
    """Chooses the lines that are wanted. Give it all lines in order: it follows what is in work."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._least = logs.LEVELS[wanted.level] if wanted.level else 0
        self._in_work = False

    def __contains__(self, line: Line) -> bool:
        wanted = self._wanted
        if wanted.job is not None and not self._is_about(line, wanted.job):
            return False
        if wanted.stage is not None and wanted.stage not in (line.get("stage"), line.get("process")):
            return False
        if logs.LEVELS.get(str(line.get("level")), 100) < self._least:
            return False
        return wanted.since is None or _seconds(line) >= wanted.since

    def _is_about(self, line: Line, job: str) -> bool:
        event = line["event"]
        if line.get("job") == job:
            if "stage" not in line:
                self._in_work = (self._in_work or event in BEGINS) and event not in ENDS
            return True
        was_in_work = self._in_work
        if event == "starting":
            self._in_work = False  # a new daemon: what the last one had in work it takes again, and says so
        skips_another = line.get("state") == "skipping" and "job" in line
        return (
            was_in_work and event in ("stage", "output", "starting", "stopping", "crashed") and not skips_another
        )


def show(line: Mapping[str, Any], job: str | None = None) -> str:
    """A line for a person: time, what happened, the rest; traces and last words below it, indented. ``job`` is the
    one that all is about: it need not be named again in every line."""
    stamp = str(line.get("timestamp", ""))
    moment = _seconds(line)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else stamp[:19].replace("T", " ")
    level = str(line.get("level", ""))
    mark = "  " if level in ("info", "debug") else "! "
    event = str(line["event"])
    if event == "stage":
        what = f"{line.get('process') or line.get('stage')} {line.get('state', '')}"
    elif event == "output":
        what = f"{line.get('process') or line.get('stage')} wrote"
    else:
        what = event
    said = str(line.get("line", line.get("message", "")))
    rest = " ".join(
        f"{key}={value}"
        for key, value in line.items()
        if key not in _KNOWN and key not in _LONG and value is not None and (key, value) != ("job", job)
    )
    first = f"{when} {mark}{what}{': ' if said else ''}{said}{f'  ({rest})' if rest else ''}"
    below = []
    for key in _LONG:
        text = line.get(key)
        if text:
            rows = text if isinstance(text, list) else str(text).rstrip().split("\n")
            below += [f"      {key.replace('_', ' ')}:", *(f"        {row}" for row in rows)]
    return "\n".join([_printable(first), *map(_printable, below)])


def since(text: str, now: float) -> float:
    """The moment that ``1h``, ``30m``, ``2d`` or a time such as ``2026-03-01`` or ``2026-03-01 14:30`` means, in
    seconds since 1970.

    Raises:
        StoryError: it is none of these.
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip()):
        return now - float(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise StoryError(f"{text!r} is no time: write 90s, 30m, 1h, 2d, or 2026-03-01 14:30") from None


def _read_one(file: Path) -> Iterator[Line]:
    try:
        with file.open("rb") as stream:
            for text in stream:
                if (line := parse(text)) is not None:
                    yield line
    except FileNotFoundError:
        return


def _seconds(line: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(line["timestamp"]).replace("Z", "+00:00")).timestamp()
    except (KeyError, ValueError):
        return 0.0


def _printable(text: str) -> str:
    """Names of files may hold anything; a terminal must not obey it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def _moved(path: Path, fd: int) -> bool:
    try:
        return not os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return True
