"""``poseward serve``: one process with warm models, its jobs in the store, its loop in one thread.

The loop owns the pipeline. The API's and the drop folder's threads hand it what only it may do (`Service.call`),
and it is woken by a descriptor that the pipeline's own wait includes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from daemon.api.counting import Counting, Readers
from daemon.api.messages import MAX_BODY, VERSION
from daemon.api.operations import Operations
from daemon.api.server import Server
from daemon.api.uploads import CHUNK, Uploads
from daemon.jobs import summary
from daemon.jobs.finishing import Exporter
from daemon.jobs.images import ImageFailed, Images
from daemon.jobs.reloading import Reloading
from daemon.jobs.results_folder import ResultsFolder
from daemon.jobs.scheduler import Scheduler
from daemon.jobs.store import JobStore, StoredJob
from daemon.retention.clock import FILE as CLOCK
from daemon.retention.clock import CredibleClock
from daemon.retention.retention import Daemon, Retention
from daemon.settings.addresses import addresses, take_state
from daemon.settings.loading import Loaded
from daemon.settings.schema import Settings
from daemon.telemetry import health, logs
from daemon.telemetry import log_lines as telling
from daemon.telemetry.metrics import Endpoint, Metrics
from daemon.telemetry.spilling import SpillWatch
from stages.owner.jobs import JobEvent, StageEvent
from stages.owner.pipeline import Pipeline
from stages.settings import PipelineSettings

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


class Folder(Protocol):
    """The drop folder, see `daemon.drop`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def status(self) -> dict[str, Any]: ...


class PipelineFactory(Protocol):
    """Makes the pipeline; see `stages.owner.pipeline.Pipeline`."""

    def __call__(
        self,
        settings: PipelineSettings,
        on_event: Callable[[JobEvent], None],
        *,
        runtime: Path | None,
        patient: bool,
        wake: int | None,
    ) -> Pipeline: ...


class Service:
    """Everything that belongs to one running daemon. Use `run` once.

    Args:
        loaded: the configuration in force.
        exporter: makes exports of finished results.
        exports: the names it knows.
        notifier: tells systemd.
        factory: makes the pipeline.

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
    ) -> None:
        self.loaded = loaded
        self.started = time.time()
        self._began = time.monotonic()
        self._settings: Settings = loaded.settings
        self._exports = tuple(exports)
        self._notifier = notifier
        self._log = logs.get("daemon")
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stop = 0
        self._reloading = Reloading()
        self._incidents: deque[str] = deque(maxlen=20)
        self._spills = SpillWatch(loaded.settings.stages)
        self._due: dict[str, float] = {}
        self._cleanup = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._state = take_state(self._settings, stack)
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, self._wake)
            where = addresses(self._settings.api, self._state)
            self.store = JobStore(self._state)
            stack.callback(self.store.close)
            self._images = Images(self._state / "images", self._settings.api.max_images)
            stack.callback(self._images.close)
            self._clock = CredibleClock(self._state / CLOCK, self.store.newest())
            limit = self._settings.api.max_upload_mb << 20
            self._uploads = Uploads(self._state / "uploads", limit, clock=self._clock)
            results = Path(self._settings.results.folder).expanduser().absolute()
            self._home = ResultsFolder(results, self._state)
            self._scheduler = Scheduler(self.store, loaded, self._publish, exporter, self._ring, self._home)
            self._metrics = Metrics(self._settings.stages, {"state": self._state, "results": results})
            self.store.listen(self._metrics.on_job)
            if self._settings.metrics.address:
                stack.callback(Endpoint(self._settings.metrics.address, self._metrics.registry).close)
            self._readers = Readers()
            handler = Counting(Operations(self, self._uploads), self._readers, self._metrics.request)
            self._server = Server(where, self._settings.api, handler)
            stack.callback(self._server.stop)
            self._where = where
            self.store.listen(self._on_change)
            runtime = Path(self._settings.daemon.runtime) if self._settings.daemon.runtime else None
            self._pipeline = factory(
                self._settings.stages, self._on_event, runtime=runtime, patient=True, wake=self._wake
            )
            stack.callback(self._pipeline.close)
            around = Daemon(
                self.call, self._scheduler.running, self.progress, self._readers.since, self._metrics.removed
            )
            log = logs.path_of(self._settings)
            self._retention = Retention(
                self.store, self._settings.retention, results, around, uploads=self._uploads, log=log,
                clock=self._clock, away=self._home.away,
            )  # fmt: skip
            stack.callback(self._retention.stop)
            self._drop = self._drop_folder()
            if self._drop is not None:
                stack.callback(self._drop.stop)
            self._cleanup = stack.pop_all()

    @property
    def address(self) -> str:
        """Where requests are answered."""
        return self._where.requests

    def stop(self, number: int) -> None:
        """Ask the loop to end, as after a signal. From any thread, or a signal's handler."""
        self._stop = number
        self._ring()

    def run(self) -> None:
        """Serve until `stop` is called; jobs in work are left so that the next daemon continues them."""
        with self._cleanup:
            self._pipeline.start()
            self._scheduler.start(self._pipeline)
            self._server.start()
            self._retention.start()
            if self._drop is not None:
                self._drop.start()
            self._notifier.ready()
            self._publish("daemon", {"state": "ready"})
            self._log.info("ready", api=self._where.requests, events=self._where.events, state=str(self._state))
            while not self._stop:
                self._turn()
            self._notifier.stopping()
            self._publish("daemon", {"state": "stopping"})
            self._log.info("stopping", jobs=self._scheduler.running())
            if self._drop is not None:
                self._drop.stop()
            self._retention.stop()
            self._pipeline.close()
            self._scheduler.stop()

    # -- for the API's thread, see daemon.api.operations.Port ------------------------------------------------

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
        self._ring()
        return future

    def hello(self) -> dict[str, Any]:
        api = self._settings.api
        return {
            "poseward": summary.versions()["poseward"],
            "protocol": VERSION,
            "daemon": self._server.instance,
            "started": self.started,
            "backend": self._settings.stages.backend,
            "events": self._where.events,
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
        if self._clock.doubt is not None:
            problems.append(self._clock.doubt)
        if self._scheduler.problem:
            problems.append(f"no job is begun: {self._scheduler.problem}")
        drop = self._drop.status() if self._drop is not None else None
        if drop is not None and drop["problem"]:
            problems.append(f"drop folder: {drop['problem']}")
        return {
            **self.hello(),
            "uptime": time.monotonic() - self._began,
            "draining": self._scheduler.draining,
            "clients": self._server.connections,
            "queue": self.store.counts(),
            "jobs": [self.job_map(job) for job in self._running_jobs()],
            "drop": drop,
            "incidents": list(self._incidents),
            "api": {"requests": self._where.requests, "events": self._where.events},
            **health.of_pipeline(self._pipeline.status(), self._settings.stages, problems),
        }

    def job_map(self, job: StoredJob) -> dict[str, Any]:
        return self._scheduler.job_map(job)

    def progress(self, job: str) -> dict[str, Any] | None:
        return self._scheduler.progress(job)

    def growing(self, job: str) -> Path | None:
        return self._scheduler.growing(job)

    def draining(self) -> bool:
        return self._scheduler.draining

    def results_away(self) -> str | None:
        return self._home.away()

    def cancel(self, job: str) -> StoredJob | None:
        """Only in the loop."""
        return self._scheduler.cancel(job)

    def retry(self, job: str) -> StoredJob | None:
        """Only in the loop."""
        return self._scheduler.retry(job)

    def image(self, data: bytes, timeout: float) -> Future[Path]:
        """The folder of an image's results; raises `ImageFailed` where no more are taken."""
        if not self._images.room():
            limit = self._settings.api.max_images
            raise ImageFailed("busy", f"{limit} images are in work (api.max_images): ask again")
        try:
            folder = self._images.write(data)
        except OSError as error:
            raise ImageFailed("disk-full", f"{self._state}: {error.strerror}") from error
        future: Future[Path] = Future()
        self._metrics.watch_image(future)
        self.call(lambda: self._images.begin(self._pipeline, folder, timeout, future))
        return future

    def reset(self, stage: str) -> None:
        """Only in the loop."""
        self._log.info("reset", stage=stage)
        self._pipeline.reset(stage)

    def reload(self, stages: Iterable[str]) -> None:
        """Only in the loop: restart stages one after the other."""
        self._reloading.ask(stages)

    def drain(self, on: bool) -> None:
        """Only in the loop."""
        self._scheduler.draining = on
        self._log.info("draining" if on else "draining ended")
        self._publish("daemon", {"state": "draining" if on else "ready"})

    def known_exports(self) -> Iterable[str]:
        return self._exports

    # -- the loop -----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._pipeline.step(STEP)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()
        self._images.turn(self._pipeline)
        self._scheduler.turn()
        self._reloading.turn(self._pipeline)
        every = self._notifier.watchdog_interval
        api_moves = time.monotonic() - self._server.moved < API_SILENT
        if every and api_moves and self._is_due("watchdog", every):
            self._notifier.watchdog()
        if self._is_due("status", STATUS_EVERY):
            self._notifier.status(self._status_line())
        if self._is_due("memory", MEMORY_EVERY):
            status = self._pipeline.status()
            memory = health.memory_event(status)
            self._metrics.memory(memory)
            self._spills.look(status, memory["device"])
            self._publish("memory", memory)
        if self._settings.metrics.address and self._is_due("metrics", METRICS_EVERY):
            problem = self._scheduler.problem is not None
            self._metrics.update(
                self._pipeline.status(),
                self.store.counts(),
                self._scheduler.draining,
                problem,
                self._server.connections,
            )

    def _on_event(self, event: JobEvent) -> None:
        self._metrics.on_event(event)
        if isinstance(event, StageEvent):
            known = {"stage": event.stage, "state": event.state, "message": event.message}
            line = telling.stage_line(event)
            if telling.is_problem(event):
                self._incidents.append(f"{time.strftime('%H:%M:%S')} {event.stage} {event.state}: {event.message}")
                self._log.warning("stage", **line)
            else:
                self._log.info("output" if event.state == "output" else "stage", **line)
            self._publish(f"stage.{event.stage}", {**known, "fraction": event.fraction})
        elif not self._images.on_event(event):
            self._scheduler.on_event(event)

    def _on_change(self, job: StoredJob) -> None:
        """A change in the store, from whatever thread."""
        if (said := telling.job_line(job)) is not None:
            self._log.info(said[0], **said[1])
        self._publish(f"job.{job.id}", {"job": self.job_map(job)})
        self._ring()

    def _running_jobs(self) -> list[StoredJob]:
        return [job for name in self._scheduler.running() if (job := self.store.get(name)) is not None]

    def _status_line(self) -> str:
        counts = self.store.counts()
        parts = []
        for job in self._running_jobs():
            progress = self.progress(job.id) or {}
            total = progress.get("total")
            done = f"{100 * progress['committed'] / total:.0f} %" if total else progress.get("phase", "")
            parts.append(f"{job.name} {done}")
        return f"{'; '.join(parts) or 'idle'}; {counts['queued']} waiting, {counts['done']} done"

    def _drop_folder(self) -> Folder | None:
        if not self._settings.drop.folder:
            return None
        from daemon.drop import DropFolder

        results = Path(self._settings.results.folder).expanduser().absolute()
        return DropFolder(self._settings.drop, self.store, results=results, notify=self._on_drop)

    def _on_drop(self, kind: str, text: str) -> None:
        self._log.warning("drop folder", kind=kind, message=text)

    def _publish(self, topic: str, values: dict[str, Any]) -> None:
        self._server.publish(topic, values)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.eventfd_write(self._wake, 1)

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every
        return True
