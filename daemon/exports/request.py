"""What an export is asked for, and how its files appear: whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from daemon.motion.options import MotionOptions


@dataclass(frozen=True)
class Request:
    """One export: the input ``source`` and its ``results`` (a ``frames.msgpack``), the ``folder`` for the files,
    ``progress`` that is told how many frames are done and may raise to stop, ``options`` of the backend, ``motion``,
    and one ``frame`` or None."""

    source: Path
    results: Path
    folder: Path
    progress: Callable[[int], None]
    options: Mapping[str, Any]
    motion: MotionOptions
    frame: int | None = None


@contextmanager
def appearing(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Files to write that get their names, in order, only when all are whole; after an error none is left."""
    beside = [path.with_name(f".{path.name}.part") for path in paths]
    files: list[IO[bytes]] = []
    try:
        for path in beside:
            files.append(path.open("wb"))
        yield files
        for file in files:
            file.close()
        for part, path in zip(beside, paths, strict=True):
            part.replace(path)
    finally:
        for file in files:
            file.close()
        for part in beside:
            part.unlink(missing_ok=True)
