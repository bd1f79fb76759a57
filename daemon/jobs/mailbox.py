"""Work that other threads have for the daemon's loop, and the descriptor that wakes it."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


class Mailbox:
    """Any thread may `call` and `ring`; only the loop does what was asked for (`empty`).

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when somebody has rung; the loop's wait includes it."""

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Have the loop do something; returns at once."""
        future: Future[Result] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001  (told to whoever asked)
                future.set_exception(error)

        self._calls.put(do)
        self.ring()
        return future

    def ring(self) -> None:
        """Wake the loop. Also from a signal's handler, and after `close`."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.eventfd_write(self.descriptor, 1)

    def empty(self) -> None:
        """Only in the loop: do all that was asked for."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()

    def close(self) -> None:
        os.close(self.descriptor)
