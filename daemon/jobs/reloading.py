"""Restarts stages one after the other, so that work goes on with the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from daemon.telemetry import logs
from stages.owner.processes import stage_of


class Restarts(Protocol):
    """What is used of `stages.owner.pipeline.Pipeline`."""

    def status(self) -> Mapping[str, Any]: ...
    def restart(self, stage: str, reason: str) -> None: ...


class Reloading:
    """Which stages are still to be restarted. Belongs to the daemon's loop."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._leaving: set[int | None] = set()
        self._log = logs.get("daemon")

    def ask(self, stages: Iterable[str]) -> None:
        """Restart these, after those that were asked for before."""
        self._waiting.extend(stage for stage in stages if stage not in self._waiting)

    def turn(self, pipeline: Restarts) -> None:
        """Restart the next one, once all are ready again."""
        if not self._waiting:
            return
        status = pipeline.status()
        pids = {name: state.pid for name, state in status["processes"].items()}
        # One that was asked to leave counts as ready until it has.
        if len(status["ready"]) == len(pids) and not self._leaving.intersection(pids.values()):
            stage = self._waiting.popleft()
            self._leaving = {pid for name, pid in pids.items() if stage_of(name) == stage}
            self._log.info("reload", stage=stage)
            pipeline.restart(stage, "reload")
