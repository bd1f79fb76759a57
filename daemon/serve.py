"""``poseward serve``: one process with warm models, its jobs in the store, its loop in one thread.

The loop owns the pipeline. The API's and the drop folder's threads hand it what only it may do (`Service.call`),
and it is woken by a descriptor that the pipeline's own wait includes.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from daemon.api.messages import MAX_BODY, VERSION
from daemon.api.uploads import CHUNK
from daemon.assembly import PipelineFactory, assemble
from daemon.jobs import summary
from daemon.jobs.finishing import Ahead, Exporter
from daemon.jobs.images import ImageFailed
from daemon.jobs.reloading import Reloading
from daemon.jobs.store import State, StoredJob, StoreError
from daemon.settings.loading import Loaded
from daemon.settings.schema import Settings
from daemon.telemetry import health, log_lines, logs
from daemon.telemetry.spilling import SpillWatch
from stages.owner.jobs import JobEvent, StageEvent
from stages.owner.pipeline import Pipeline

STEP = 0.25
"""Longest turn of the loop in seconds."""
MEMORY_EVERY = 5.0
METRICS_EVERY = 1.0
STATUS_EVERY = 2.0
API_SILENT = 30.0
"""Seconds without a turn of the API's thread after which the watchdog is no longer fed."""

Result = TypeVar("Result")


class Watcher(Protocol):
    """Whoever watches over the daemon: systemd, see `daemon.service.notify`."""

    watchdog_interval: float | None

    def ready(self) -> None: ...
    def status(self, text: str) -> None: ...
    def watchdog(self) -> None: ...
    def stopping(self) -> None: ...


class Service:
    """Everything that belongs to one running daemon. Use `run` once.

    Args:
        loaded: the configuration in force.
        exporter: makes exports of finished results.
        exports: the names it knows.
        notifier: tells systemd.
        factory: makes the pipeline.
        beside: begins overlays while their results grow.

    Raises:
        ConfigError: a folder or an address cannot be used, or another daemon has them.
        StoreError: the job store cannot be used.
    """

    def __init__(
        self,
        loaded: Loaded,
        exporter: Exporter,
        exports: Iterable[str],
        notifier: Watcher,
        *,
        factory: PipelineFactory = Pipeline,
        beside: Ahead | None = None,
    ) -> None:
        self.loaded = loaded
        self.started = time.time()
        self._began = time.monotonic()
        self._settings: Settings = loaded.settings
        self._exports = tuple(exports)
        self._notifier = notifier
        self._log = logs.get("daemon")
        self._stop = 0
        self._reloading = Reloading()
        self._incidents: deque[str] = deque(maxlen=20)
        self._spills = SpillWatch(loaded.settings.stages)
        self._due: dict[str, float] = {}
        self._store_trouble = ""
        self._known_counts = {state.value: 0 for state in State}
        self._cleanup = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._parts = assemble(self, loaded, exporter, stack, factory, beside)
            self._cleanup = stack.pop_all()

    @property
    def address(self) -> str:
        """Where requests are answered."""
        return self._parts.where.requests

    def stop(self, number: int) -> None:
        """Ask the loop to end, as after a signal. From any thread, or a signal's handler."""
        self._stop = number
        self._parts.mailbox.ring()

    def run(self) -> None:
        """Serve until `stop` is called; jobs in work are left so that the next daemon continues them."""
        with self._cleanup:
            self._parts.pipeline.start()
            self._parts.scheduler.start(self._parts.pipeline)
            self._parts.server.start()
            if self._parts.gateway is not None:
                self._parts.gateway.start()
            self._parts.retention.start()
            if self._parts.drop is not None:
                self._parts.drop.start()
            self._notifier.ready()
            self.publish("daemon", {"state": "ready"})
            where, state = self._parts.where, self._parts.state
            self._log.info("ready", api=where.requests, events=where.events, state=str(state))
            while not self._stop:
                self._turn()
            self._notifier.stopping()
            if self._parts.gateway is not None:
                self._parts.gateway.stop()
            self.publish("daemon", {"state": "stopping"})
            self._log.info("stopping", jobs=self._parts.scheduler.running())
            if self._parts.drop is not None:
                self._parts.drop.stop()
            self._parts.retention.stop()
            self._parts.pipeline.close()
            self._parts.scheduler.stop()

    # -- for the API's thread, see daemon.api.operations.Port ------------------------------------------------

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Have the loop do something; returns at once."""
        return self._parts.mailbox.call(work)

    def hello(self) -> dict[str, Any]:
        api = self._settings.api
        return {
            "poseward": summary.versions()["poseward"],
            "protocol": VERSION,
            "daemon": self._parts.server.instance,
            "started": self.started,
            "backend": self._settings.stages.backend,
            "events": self._parts.where.events,
            "limits": {
                "max_message": api.max_message_mb << 20,
                "max_body": MAX_BODY,
                "max_upload": api.max_upload_mb << 20,
                "chunk": min(CHUNK, api.max_message_mb << 20),
                "max_waiting": api.max_waiting,
            },
        }

    def health(self) -> dict[str, Any]:
        """Only in the loop."""
        problems = list(self._spills.problems)
        counts = self._counts()
        jobs = self._running_jobs()
        if self._store_trouble:
            problems.append(f"job store: {self._store_trouble}")
        if self._parts.clock.doubt is not None:
            problems.append(self._parts.clock.doubt)
        if self._parts.scheduler.problem:
            problems.append(f"no job is begun: {self._parts.scheduler.problem}")
        drop = self._parts.drop.status() if self._parts.drop is not None else None
        if drop is not None and drop["problem"]:
            problems.append(f"drop folder: {drop['problem']}")
        return {
            **self.hello(),
            "uptime": time.monotonic() - self._began,
            "draining": self._parts.scheduler.draining,
            "clients": self._parts.server.connections,
            "queue": counts,
            "jobs": [self.job_map(job) for job in jobs],
            "drop": drop,
            "incidents": list(self._incidents),
            "api": {"requests": self._parts.where.requests, "events": self._parts.where.events},
            "http": self._parts.gateway.address if self._parts.gateway is not None else None,
            **health.of_pipeline(self._parts.pipeline.status(), self._settings.stages, problems),
        }

    def job_map(self, job: StoredJob) -> dict[str, Any]:
        return self._parts.scheduler.job_map(job)

    def progress(self, job: str) -> dict[str, Any] | None:
        return self._parts.scheduler.progress(job)

    def growing(self, job: str) -> Path | None:
        return self._parts.scheduler.growing(job)

    def draining(self) -> bool:
        return self._parts.scheduler.draining

    def results_away(self) -> str | None:
        return self._parts.home.away()

    def cancel(self, job: str) -> StoredJob | None:
        """Only in the loop."""
        return self._parts.scheduler.cancel(job)

    def retry(self, job: str) -> StoredJob | None:
        """Only in the loop."""
        return self._parts.scheduler.retry(job)

    def image(self, data: bytes, timeout: float) -> Future[Path]:
        """The folder of an image's results; raises `ImageFailed` where no more are taken."""
        if not self._parts.images.room():
            limit = self._settings.api.max_images
            raise ImageFailed("busy", f"{limit} images are in work (api.max_images): ask again")
        try:
            folder = self._parts.images.write(data)
        except OSError as error:
            raise ImageFailed("disk-full", f"{self._parts.state}: {error.strerror}") from error
        future: Future[Path] = Future()
        self._parts.metrics.watch_image(future)
        self.call(lambda: self._parts.images.begin(self._parts.pipeline, folder, timeout, future))
        return future

    def reset(self, stage: str) -> None:
        """Only in the loop."""
        self._log.info("reset", stage=stage)
        self._parts.pipeline.reset(stage)

    def reload(self, stages: Iterable[str]) -> None:
        """Only in the loop: restart stages one after the other."""
        self._reloading.ask(stages)

    def drain(self, on: bool) -> None:
        """Only in the loop."""
        self._parts.scheduler.draining = on
        self._log.info("draining" if on else "draining ended")
        self.publish("daemon", {"state": "draining" if on else "ready"})

    def known_exports(self) -> Iterable[str]:
        return self._exports

    # -- the loop -----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._parts.pipeline.step(STEP)
        self._parts.mailbox.empty()
        self._parts.images.turn(self._parts.pipeline)
        self._parts.scheduler.turn()
        self._reloading.turn(self._parts.pipeline)
        every = self._notifier.watchdog_interval
        api_moves = time.monotonic() - self._parts.server.moved < API_SILENT
        if every and api_moves and self._is_due("watchdog", every):
            self._notifier.watchdog()
        if self._is_due("status", STATUS_EVERY):
            self._notifier.status(self._status_line())
        if self._is_due("memory", MEMORY_EVERY):
            status = self._parts.pipeline.status()
            memory = health.memory_event(status)
            self._parts.metrics.memory(memory)
            self._spills.look(status, memory["device"])
            self.publish("memory", memory)
        shown = self._settings.metrics.address or self._settings.http.address
        if shown and self._is_due("metrics", METRICS_EVERY):
            problem = self._parts.scheduler.problem is not None
            self._parts.metrics.update(
                self._parts.pipeline.status(),
                self._counts(),
                self._parts.scheduler.draining,
                problem,
                self._parts.server.connections,
            )

    def on_event(self, event: JobEvent) -> None:
        self._parts.metrics.on_event(event)
        if isinstance(event, StageEvent):
            known = {"stage": event.stage, "state": event.state, "message": event.message}
            line = log_lines.stage_line(event)
            if log_lines.is_problem(event):
                self._incidents.append(f"{time.strftime('%H:%M:%S')} {event.stage} {event.state}: {event.message}")
                self._log.warning("stage", **line)
            else:
                self._log.info("output" if event.state == "output" else "stage", **line)
            self.publish(f"stage.{event.stage}", {**known, "fraction": event.fraction})
        elif not self._parts.images.on_event(event):
            self._parts.scheduler.on_event(event)

    def on_change(self, job: StoredJob) -> None:
        """A change in the store, from whatever thread."""
        if (said := log_lines.job_line(job)) is not None:
            self._log.info(said[0], **said[1])
        self.publish(f"job.{job.id}", {"job": self.job_map(job)})
        self._parts.mailbox.ring()

    def _counts(self) -> dict[str, int]:
        """Jobs by state; as they last were while the store cannot be read, which is told once and does not end the
        daemon: jobs in work go on, and what becomes of them is written once the store takes it."""
        try:
            self._known_counts = self._parts.store.counts()
        except StoreError as error:
            if self._store_trouble != str(error):
                self._log.error("store", error=error.name, message=str(error))
                self.publish("daemon", {"state": "store-trouble", "error": error.name, "message": str(error)})
            self._store_trouble = str(error)
        else:
            self._store_trouble = ""
        return self._known_counts

    def _running_jobs(self) -> list[StoredJob]:
        with contextlib.suppress(StoreError):
            found = [self._parts.store.get(name) for name in self._parts.scheduler.running()]
            return [job for job in found if job is not None]
        return []

    def _status_line(self) -> str:
        counts = self._counts()
        parts = []
        for job in self._running_jobs():
            progress = self.progress(job.id) or {}
            total = progress.get("total")
            done = f"{100 * progress['committed'] / total:.0f} %" if total else progress.get("phase", "")
            parts.append(f"{job.name} {done}")
        return f"{'; '.join(parts) or 'idle'}; {counts['queued']} waiting, {counts['done']} done"

    def on_drop(self, kind: str, text: str) -> None:
        self._log.warning("drop folder", kind=kind, message=text)

    def publish(self, topic: str, values: dict[str, Any]) -> None:
        self._parts.server.publish(topic, values)

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every
        return True
