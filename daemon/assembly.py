"""The parts of a daemon, put together: whoever wants to know what there is, and who knows whom, reads `assemble`.

What the parts do with each other is the loop's affair, see `daemon.serve`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from daemon.api.counting import Counting, Readers
from daemon.api.operations import Operations, Port
from daemon.api.server import Server
from daemon.api.uploads import Uploads
from daemon.jobs.finishing import Ahead, Exporter
from daemon.jobs.images import Images
from daemon.jobs.mailbox import Mailbox
from daemon.jobs.results_folder import ResultsFolder
from daemon.jobs.scheduler import AHEAD, Scheduler
from daemon.jobs.store import JobStore, StoredJob
from daemon.retention.clock import FILE as CLOCK
from daemon.retention.clock import CredibleClock
from daemon.retention.retention import Daemon, Retention
from daemon.settings.addresses import Addresses, addresses, take_state
from daemon.settings.loading import Loaded
from daemon.settings.schema import Settings
from daemon.telemetry import logs
from daemon.telemetry.metrics import Endpoint, Metrics
from stages.owner.jobs import Job, JobEvent
from stages.settings import PipelineSettings


class Folder(Protocol):
    """The drop folder, see `daemon.drop`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def status(self) -> dict[str, Any]: ...


class PipelineLike(Protocol):
    """What a daemon uses of a pipeline, be it of one machine or of many."""

    def start(self) -> None: ...
    def submit(self, job: Job) -> None: ...
    def cancel(self, job_id: str) -> None: ...
    def step(self, timeout: float) -> None: ...
    def restart(self, stage: str, reason: str) -> None: ...
    def reset(self, stage: str) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Part(Protocol):
    """What is started and stopped, and is not asked for anything."""

    address: str

    def start(self) -> None: ...
    def stop(self) -> None: ...


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
    ) -> PipelineLike: ...


class Loop(Port, Protocol):
    """What the parts tell the loop, besides what the API asks of it."""

    def publish(self, topic: str, values: dict[str, Any]) -> None: ...
    def on_event(self, event: JobEvent) -> None: ...
    def on_change(self, job: StoredJob) -> None: ...
    def on_drop(self, kind: str, text: str) -> None: ...


@dataclass(frozen=True)
class Parts:
    """Everything that belongs to one running daemon."""

    state: Path
    mailbox: Mailbox
    where: Addresses
    store: JobStore
    images: Images
    clock: CredibleClock
    uploads: Uploads
    home: ResultsFolder
    scheduler: Scheduler
    metrics: Metrics
    readers: Readers
    server: Server
    pipeline: PipelineLike
    retention: Retention
    drop: Folder | None
    gateway: Part | None


def assemble(
    loop: Loop, loaded: Loaded, exporter: Exporter, stack: ExitStack, factory: PipelineFactory,
    beside: Ahead | None = None,
) -> Parts:  # fmt: skip
    """Make the parts, each after those it needs; ``stack`` takes how each is closed. Nothing is started.

    Raises:
        ConfigError: a folder or an address cannot be used, or another daemon has them.
        StoreError: the job store cannot be used.
    """
    settings = loaded.settings
    state = take_state(settings, stack)
    mailbox = Mailbox()
    stack.callback(mailbox.close)
    where = addresses(settings.api, state)
    results = Path(settings.results.folder).expanduser().absolute()

    store = JobStore(state)
    stack.callback(store.close)
    images = Images(state / "images", settings.api.max_images)
    stack.callback(images.close)
    clock = CredibleClock(state / CLOCK, store.newest())
    uploads = Uploads(state / "uploads", settings.api.max_upload_mb << 20, clock=clock)
    home = ResultsFolder(results, state)
    ahead = settings.cluster.jobs if settings.cluster.address else AHEAD
    scheduler = Scheduler(store, loaded, loop.publish, exporter, mailbox.ring, home, ahead, beside)

    metrics = Metrics(settings.stages, {"state": state, "results": results})
    store.listen(metrics.on_job)
    if settings.metrics.address:
        stack.callback(Endpoint(settings.metrics.address, metrics.registry).close)

    readers = Readers()
    server = Server(where, settings.api, Counting(Operations(loop, store, uploads), readers, metrics.request))
    stack.callback(server.stop)
    store.listen(loop.on_change)

    runtime = Path(settings.daemon.runtime) if settings.daemon.runtime else None
    pipeline = factory(settings.stages, loop.on_event, runtime=runtime, patient=True, wake=mailbox.descriptor)
    stack.callback(pipeline.close)

    around = Daemon(mailbox.call, scheduler.running, scheduler.progress, readers.since, metrics.removed)
    retention = Retention(
        store, settings.retention, results, around, uploads=uploads, log=logs.path_of(settings), clock=clock,
        away=home.away,
    )  # fmt: skip
    stack.callback(retention.stop)
    drop = _drop_folder(settings, store, results, loop.on_drop)
    if drop is not None:
        stack.callback(drop.stop)
    gateway = _gateway(settings, server, metrics, state)
    if gateway is not None:
        stack.callback(gateway.stop)
    return Parts(
        state, mailbox, where, store, images, clock, uploads, home, scheduler, metrics, readers, server, pipeline,
        retention, drop, gateway,
    )  # fmt: skip


def _drop_folder(
    settings: Settings, store: JobStore, results: Path, tell: Callable[[str, str], None]
) -> Folder | None:
    if not settings.drop.folder:
        return None
    from daemon.drop import DropFolder

    return DropFolder(settings.drop, store, results=results, notify=tell)


def _gateway(settings: Settings, server: Server, metrics: Metrics, state: Path) -> Part | None:
    if not settings.http.address:
        return None
    from daemon.http.gateway import Gateway

    return Gateway(settings.http, settings.api, server, metrics.registry, state, settings.stages.options)
