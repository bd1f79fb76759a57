"""Counts what is asked for and how it is answered, and remembers which results somebody is reading."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from daemon.api import messages as ms
from daemon.api.messages import ApiError
from daemon.api.server import Handler, Later, Reply

Count = Callable[[str, str], None]
"""Takes an operation's name, and ``ok`` or an error's name."""


class Readers:
    """When results were last asked for. From any thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def reads(self, job: str) -> None:
        """Somebody reads a job's results now."""
        with self._lock:
            self._last[job] = self._clock()

    def since(self, seconds: float) -> set[str]:
        """Jobs whose results somebody has read within so many seconds; older ones are forgotten."""
        with self._lock:
            now = self._clock()
            self._last = {job: at for job, at in self._last.items() if now - at <= seconds}
            return set(self._last)


class Counting:
    """A `daemon.api.server.Handler` around another one.

    Args:
        handler: does what is asked.
        readers: told of jobs whose results are read.
        count: told of every answer; None where nobody wants to know.
    """

    def __init__(self, handler: Handler, readers: Readers, count: Count | None) -> None:
        self._handler = handler
        self._readers = readers
        self._count = count or (lambda _op, _result: None)

    def handle(self, client: bytes, operation: ms.Operation, blob: bytes, own: bool = False) -> Reply | Later:
        if isinstance(operation, ms.Results | ms.File | ms.Frames):
            self._readers.reads(operation.job)
        try:
            made = self._handler.handle(client, operation, blob, own)
        except ApiError as error:
            self._count(operation.op, error.name)
            raise
        except Exception:
            self._count(operation.op, "internal")
            raise
        if isinstance(made, Later):
            return self._later(operation.op, made)
        self._count(operation.op, "ok")
        return made

    def _later(self, op: str, later: Later) -> Later:
        def attempt(last: bool) -> Reply | None:
            try:
                made = later.attempt(last)
            except ApiError as error:
                self._count(op, error.name)
                raise
            except Exception:
                self._count(op, "internal")
                raise
            if made is not None:
                self._count(op, "ok")
            elif last:
                self._count(op, "deadline-exceeded")
            return made

        return replace(later, attempt=attempt)

    def subscribed(self, topic: str, wanted: bool) -> None:
        self._handler.subscribed(topic, wanted)

    def changed(self, job: str) -> Iterable[tuple[str, dict[str, Any]]]:
        return self._handler.changed(job)

    def gone(self, client: bytes) -> None:
        self._handler.gone(client)

    def close(self) -> None:
        self._handler.close()
