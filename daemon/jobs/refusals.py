"""While the store refuses (a full disk, a lock): nothing new is begun, and nothing that has come about is forgotten."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator

from daemon.jobs.running import Running
from daemon.jobs.store import StoreError
from daemon.telemetry import logs

AGAIN = 1.0
"""Seconds after which a store that has refused is asked again; it may need two to refuse."""


class Refusals:
    """What the store has refused. Belongs to the daemon's loop."""

    def __init__(self) -> None:
        self._again = 0.0
        self._log = logs.get("jobs")
        self.problem: str | None = None
        """Why nothing is begun, for a person."""

    @property
    def due(self) -> bool:
        """Whether the store may be asked."""
        return time.monotonic() >= self._again

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """A store that cannot be written at the moment stops new work, not the daemon."""
        try:
            yield
        except StoreError as error:
            self.tell(str(error), "store", error.name)
            self._again = time.monotonic() + AGAIN

    def tell(self, problem: str, event: str, name: str) -> None:
        """Nothing is begun, and this is why. Logged once."""
        if self.problem != problem:
            self._log.error(event, error=name, message=problem)
        self.problem = problem

    @staticmethod
    def settle(running: Running, step: Callable[[], None]) -> None:
        """Do a step of a job's way; one that is refused is done again by `make_good`, until the store takes it.

        Raises:
            StoreError: it is refused.
        """
        try:
            step()
        except StoreError:
            running.owed.append(step)
            raise

    @staticmethod
    def make_good(running: Running, in_work: Collection[str]) -> None:
        """Do the steps that were refused, in order, as long as the job is one of those in work.

        Raises:
            StoreError: one is refused again.
        """
        while running.owed and running.job.id in in_work:
            running.owed[0]()
            running.owed.popleft()
