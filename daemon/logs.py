"""Structured logs: readable lines on a terminal, one JSON map a line everywhere else."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, TextIO, cast

import structlog

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(level: str = "info", json: bool | None = None, file: str | Path | None = None) -> TextIO | None:
    """Send all structlog loggers to ``file``, or to stderr.

    Args:
        level: the least important level that is written, one of `LEVELS`.
        json: JSON lines; None means: unless the output is a terminal.
        file: appended to, line by line, so that several processes may write to it; None is stderr.

    Returns:
        The opened file, for the caller to close; None for stderr.

    Raises:
        OSError: the file cannot be opened.
        KeyError: there is no such level.
    """
    opened = open(file, "a", encoding="utf-8", buffering=1) if file else None  # noqa: SIM115  (lives on)
    output: TextIO = opened or sys.stderr
    terminal = opened is None and output.isatty()
    renderer: Any
    if json is True or (json is None and not terminal):
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=terminal)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(output),
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
