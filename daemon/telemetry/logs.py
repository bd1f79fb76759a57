"""Structured logs: readable lines on a terminal, one JSON map a line everywhere else.

`configure` is all that a command calls. A service also keeps its lines in a `RotatingFile`, which is what
`poseward logs` reads; nothing that happens to that file (a full disk, a folder that is gone) stops the service.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json as json_module
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, cast

import structlog

from daemon.settings.schema import Settings

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FILE = "poseward.jsonl"
"""Name of the log in the folder ``logs`` of the daemon's state."""
CRASH = "crash.txt"
"""Beside it: what the interpreter itself wrote when it crashed."""
PARTS = 8
"""Files over which a log is spread: the one being written and those before it, ``.1`` the latest."""


class RotatingFile:
    """A text file of whole lines that gives way to a new one when it has its share of ``total`` bytes.

    Several processes may append to it; each line is one write. What cannot be written is counted, and the count is
    written as a line of its own once there is room again.

    Args:
        path: the file; its folder is made if need be. The files before it are ``path.1``, ``path.2``, …
        total: bytes for all files together; 0 never rotates.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, total: int = 0) -> None:
        self.path = path
        self._share = total // PARTS
        self._lock = threading.Lock()
        self._lost = 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = self._open()

    def write(self, text: str) -> None:
        """Append ``text``, which is one line or several."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._fd < 0:
                return
            try:
                if self._lost:
                    note = {"event": "log lines lost", "level": "error", "count": self._lost}
                    data = json_module.dumps(note).encode() + b"\n" + data
                self._append(data)
                self._lost = 0
            except OSError:
                self._lost += 1

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._fd).st_size
        if self._share and size and size + len(data) > self._share:
            self._rotate()
            size = os.fstat(self._fd).st_size
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)  # half a line would take the next one with it
            raise

    def _rotate(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # released with the descriptor
        with contextlib.suppress(OSError):
            # Unless another process was faster.
            if os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                for number in range(PARTS - 1, 0, -1):
                    with contextlib.suppress(FileNotFoundError):
                        self._numbered(number - 1).rename(self._numbered(number))
        with contextlib.suppress(OSError):
            # Where nothing can be renamed, old lines are lost: the bound was promised.
            if os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                os.ftruncate(self._fd, 0)
        fresh = self._open()
        os.close(self._fd)
        self._fd = fresh

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path


def path_of(settings: Settings) -> Path:
    """The file that `poseward serve` keeps its log in."""
    from daemon.settings.addresses import state_folder

    own = settings.daemon.log_file
    return Path(own).expanduser().absolute() if own else state_folder(settings) / "logs" / FILE


def files(path: Path) -> list[Path]:
    """The files of a log that are there, oldest first."""
    numbered = [path.with_name(f"{path.name}.{number}") for number in range(PARTS, 0, -1)]
    return [file for file in [*numbered, path] if file.is_file()]


def configure(
    level: str = "info",
    json: bool | None = None,
    file: str | Path | None = None,
    *,
    keep: RotatingFile | None = None,
) -> RotatingFile | None:
    """Send all structlog loggers to ``file``, or to stderr.

    Args:
        level: the least important level that is written, one of `LEVELS`.
        json: JSON lines; None means: unless the output is a terminal.
        file: appended to, line by line, so that several processes may write to it; None is stderr.
        keep: gets every line too, as JSON.

    Returns:
        The opened file, for the caller to close; None for stderr.

    Raises:
        OSError: the file cannot be opened.
        KeyError: there is no such level.
    """
    opened = RotatingFile(Path(file)) if file else None
    terminal = opened is None and sys.stderr.isatty()
    in_json = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    renderer: Any = in_json
    if json is False or (json is None and terminal):
        renderer = structlog.dev.ConsoleRenderer(colors=terminal)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            *([_Keep(keep, in_json)] if keep is not None else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(cast("Any", opened or _Stderr())),
        cache_logger_on_first_use=False,
    )
    return opened


def silence() -> None:
    """Drop every message: for a command whose output is for a person."""
    structlog.configure(
        processors=[],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger that says where its lines come from."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(component=name))


def watch_crashes(folder: Path) -> str:
    """Have the interpreter write the stacks of all threads into ``folder`` if this process crashes natively (and
    to stderr where that cannot be); returns what the process before this one left there so."""
    try:
        fd = os.open(folder / CRASH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError:
        faulthandler.enable()
        return ""
    left = os.pread(fd, 1 << 16, 0).decode(errors="replace")
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
    faulthandler.enable(fd)  # stays open for the rest of this process's life
    return left


class _Keep:
    """Writes what passes into a file, as JSON."""

    def __init__(self, file: RotatingFile, renderer: structlog.processors.JSONRenderer) -> None:
        self._file = file
        self._renderer = renderer

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        line = self._renderer(logger, name, dict(event))
        self._file.write(f"{line if isinstance(line, str) else line.decode()}\n")
        return event


class _Stderr:
    """The process's stderr of the moment. That nobody reads it any more is no reason to end."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text.encode("utf-8", "backslashreplace").decode())

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
