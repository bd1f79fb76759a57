"""Figures for Prometheus: what is counted, and where it is served.

`Metrics` is fed by the daemon's loop: events as they come, states about once a second. A scrape reads what was fed
last, in a thread of its own, and never touches the pipeline. docs/operations.md lists every metric;
docs/grafana.json and docs/alerts.yml are built on them.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import MetricsHandler

from daemon.jobs import summary
from daemon.jobs.store import State, StoredJob
from daemon.settings.sources import ConfigError
from daemon.telemetry import health, logs
from stages.owner.jobs import JobEvent, StageEvent
from stages.owner.processes import stage_of
from stages.settings import STAGES, PipelineSettings
from supervisor.events import ExitKind

JOB_SECONDS = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000)
JOB_FRAMES = (1, 10, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
IMAGE_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SCRAPE_TIMEOUT = 10.0
"""Seconds that a scraper gets to ask and to take its answer."""


class Metrics:
    """All metrics of one daemon, in a registry of their own. Counters may be fed from any thread, `update` only
    from the daemon's loop.

    Args:
        settings: of the pipeline whose figures these are.
        folders: what to watch the free room of: a word for each folder.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        folders: Mapping[str, Path],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = CollectorRegistry()
        self._settings = settings
        self._clock = clock
        self._worked: dict[str, tuple[int, float]] = dict.fromkeys(STAGES, (0, 0.0))
        info = Info("poseward_daemon", "What runs", registry=self.registry)
        info.info({"version": summary.versions()["poseward"], "backend": settings.backend})
        self._daemon()
        self._stages()
        self._processes()
        self._jobs()
        self._started.set(clock())
        disk = self._gauge("disk_free_bytes", "Room on the disk of a folder", "folder")
        for word, folder in folders.items():
            disk.labels(word).set_function(partial(_free, folder))

    def _daemon(self) -> None:
        self._started = self._gauge("start_time_seconds", "When the daemon started, since 1970")
        self._updated = self._gauge("loop_time_seconds", "When the daemon's loop last moved, since 1970")
        self._ready = self._gauge("ready", "1 when every stage process is ready")
        self._draining = self._gauge("draining", "1 while no new jobs are begun")
        self._blocked = self._gauge("blocked", "1 while nothing is begun because the job store cannot be written")
        self._clients = self._gauge("api_clients", "Connected clients")
        self._requests = self._counter(
            "api_requests",
            "Requests, by operation and how they were answered: ok, or an error's name",
            "op",
            "result",
        )
        self._host_total = self._gauge("host_memory_total_bytes", "Memory of the machine")
        self._host_available = self._gauge("host_memory_available_bytes", "Memory that can still be had")
        self._device_total = self._gauge("device_memory_total_bytes", "Memory of a GPU", "device", "name")
        self._device_free = self._gauge("device_memory_free_bytes", "Free memory of a GPU", "device", "name")
        self._removed = self._counter("retention_removed", "What retention has removed", "kind")
        self._freed = self._counter("retention_freed_bytes", "Room that retention has made")

    def _stages(self) -> None:
        self._frames = self._counter(
            "frames", "Frames that a stage has done; those done again after a crash count again", "stage"
        )
        self._busy = self._counter("stage_busy_seconds", "Seconds that a stage was busy with frames", "stage")
        self._backlog = self._gauge(
            "stage_backlog_frames", "Frames between a stage and the one before it", "stage"
        )
        self._restarts = self._counter("stage_deaths", "Ends of stage processes, by cause", "stage", "cause")
        self._skipped = self._counter(
            "frames_skipped", "Frames given up because they kept killing a stage", "stage"
        )
        self._circuits = self._counter("stage_circuits_opened", "Times that a stage died too often", "stage")
        for stage in STAGES:
            for counter in (self._frames, self._busy, self._skipped, self._circuits):
                counter.labels(stage)
            for kind in ExitKind:  # from the beginning: the first death of a kind is an increase
                self._restarts.labels(stage, cause_of(kind.value))

    def _processes(self) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return self._gauge(f"process_{name}", text, "process", "stage")

        self._process_gauges: dict[str, Gauge] = {
            "ready": gauge("ready", "1 when the process takes work"),
            "failed": gauge("failed", "1 when it is not started again by itself: a configuration error"),
            "circuit": gauge("circuit_open", "1 when it has died too often and rests"),
            "memory": gauge("waiting_for_memory", "1 when it cannot start for lack of GPU memory"),
            "stale": gauge("stale", "1 when the code on disk is not the code it runs"),
            "silent": gauge("no_progress_seconds", "Seconds since it last moved, while it has work"),
            "rss": gauge("resident_memory_bytes", "Resident memory"),
            "peak": gauge("resident_memory_peak_bytes", "Largest resident memory of this life"),
            "device": gauge("device_memory_bytes", "What it holds on its GPU, where the driver tells"),
            "batch": gauge("batch_frames", "Frames that it takes at a time"),
        }
        self._stations = self._gauge("cluster_stations", "Stations of the cluster, by what they do", "state")
        self._process_info = Info(
            "poseward_process", "What a process runs", ["process", "stage"], registry=self.registry
        )

    def _jobs(self) -> None:
        self._counts = self._gauge("jobs", "Jobs in the store by state", "state")
        self._ended = self._counter("jobs_ended", "Jobs ended, by state and error", "state", "error")
        self._reused = self._counter("jobs_reused", "Jobs whose results were there already")
        self._seconds = self._histogram("job_duration_seconds", "From begin to end of a job", JOB_SECONDS, "state")
        self._waited = self._histogram("job_wait_seconds", "From submission to begin of a job", JOB_SECONDS)
        self._size = self._histogram("job_frames", "Frames of a job that is done", JOB_FRAMES)
        self._images = self._counter("images", "Single images, by how they were answered", "result")
        self._image_seconds = self._histogram(
            "image_duration_seconds", "Until an image was answered", IMAGE_SECONDS
        )
        for state in State:
            self._counts.labels(state.value)
        self._ended.labels("done", "")
        self._images.labels("ok")

    # -- what is fed -----------------------------------------------------------------------------------------

    def on_event(self, event: JobEvent) -> None:
        """An event of the pipeline."""
        if not isinstance(event, StageEvent):
            return
        stage = stage_of(event.stage)
        if event.state == "died" and event.report is not None:
            self._restarts.labels(stage, cause_of(str(event.report["kind"]))).inc()
        elif event.state == "skipping":
            self._skipped.labels(stage).inc()
        elif event.state == "circuit open":
            self._circuits.labels(stage).inc()

    def on_job(self, job: StoredJob) -> None:
        """A change in the job store."""
        if not job.state.final:
            return
        self._ended.labels(job.state.value, job.error or "").inc()
        if job.same_as is not None:
            self._reused.inc()
        elif job.started is not None and job.ended is not None:
            self._seconds.labels(job.state.value).observe(max(0.0, job.ended - job.started))
            self._waited.observe(max(0.0, job.started - job.created))
            if job.state is State.DONE and job.frames is not None:
                self._size.observe(job.frames)

    def watch_image(self, future: Future[Any]) -> None:
        """An image was asked for: counts it, and how long it took, when its ``future`` is done."""
        began = time.monotonic()

        def answered(found: Future[Any]) -> None:
            error = None if found.cancelled() else found.exception()
            result = (
                "cancelled" if found.cancelled() else "ok" if error is None else getattr(error, "name", "internal")
            )
            self._images.labels(result).inc()
            self._image_seconds.observe(time.monotonic() - began)

        future.add_done_callback(answered)

    def request(self, op: str, result: str) -> None:
        """A request was answered: ``ok``, or the error's name."""
        self._requests.labels(op, result).inc()

    def removed(self, kind: str, size: int) -> None:
        """Retention has removed something of ``size`` bytes."""
        self._removed.labels(kind).inc()
        self._freed.inc(size)

    def memory(self, found: Mapping[str, Any]) -> None:
        """The ``memory`` event of docs/protocol.md."""
        self._host_total.set(found["host"]["total"])
        self._host_available.set(found["host"]["available"])
        for device in found["device"]:
            labels = (str(device["index"]), device["name"])
            self._device_total.labels(*labels).set(device["total"])
            self._device_free.labels(*labels).set(device["free"])

    def update(
        self,
        status: Mapping[str, Any],
        counts: Mapping[str, int],
        draining: bool,
        blocked: bool,
        clients: int,
    ) -> None:
        """The state of this moment.

        Args:
            status: `stages.owner.pipeline.Pipeline.status`.
            counts: jobs in each state.
            draining: whether jobs are begun no more because somebody asked for it.
            blocked: whether they are not because the store cannot be written.
            clients: how many are connected.
        """
        self._updated.set(self._clock())
        self._ready.set(len(status["ready"]) == len(status["processes"]))
        self._draining.set(draining)
        self._blocked.set(blocked)
        self._clients.set(clients)
        for state, count in counts.items():
            self._counts.labels(state).set(count)
        for stage, (frames, seconds) in status["worked"].items():
            known = self._worked[stage]
            self._frames.labels(stage).inc(frames - known[0])
            self._busy.labels(stage).inc(seconds - known[1])
            self._worked[stage] = (frames, seconds)
        for before, stage in enumerate(STAGES[1:]):
            done = [(job.decoded, job.detected, job.meshed, job.committed) for job in status["jobs"].values()]
            self._backlog.labels(stage).set(sum(max(0, job[before] - job[before + 1]) for job in done))
        stations = (status.get("cluster") or {}).get("stations", ())
        for state in ("working", "idle", "refused", "starting"):
            self._stations.labels(state).set(sum(1 for station in stations if _doing(station) == state))
        for name, state in status["processes"].items():
            self._process(name, health.process_map(state, name in status["ready"], self._settings))

    def _process(self, name: str, process: Mapping[str, Any]) -> None:
        state = process["state"]
        values = {
            "ready": state == "ready",
            "failed": state == "failed",
            "circuit": state == "open circuit",
            "memory": state == "waiting for memory",
            "stale": process["stale"],
            "silent": process["busy_seconds"],
            "rss": process["rss"],
            "peak": process["peak_rss"],
            "device": process["device_used"],
            "batch": process["metrics"].get("batch"),
        }
        labels = (name, process["stage"])
        for key, value in values.items():
            if value is not None:
                self._process_gauges[key].labels(*labels).set(value)
            else:
                with contextlib.suppress(KeyError):  # what is not known any more must not stand still
                    self._process_gauges[key].remove(*labels)
        self._process_info.labels(*labels).info(
            {key: process[key] or "" for key in ("fingerprint", "python", "device")}
        )

    # -- small things -----------------------------------------------------------------------------------------

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"poseward_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"poseward_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"poseward_{name}", text, labels, buckets=buckets, registry=self.registry)


def _doing(station: Mapping[str, Any]) -> str:
    if station["refusal"]:
        return "refused"
    if not station["host"]:
        return "starting"
    return "working" if station["doing"] else "idle"


def cause_of(kind: str) -> str:
    """An `ExitKind`'s value as a label: ``killed by signal`` is ``signal``."""
    return ExitKind(kind).name.lower()


class Endpoint:
    """Serves a registry over HTTP until `close`, each scrape in a thread of its own.

    Args:
        address: HOST:PORT; port 0 takes any that is free.
        registry: what is served, at every path.

    Raises:
        ConfigError: ``metrics.address`` is no address, is in use, or cannot be had.
    """

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        host, port = split(address)
        handler = type("Handler", (MetricsHandler.factory(registry),), {"timeout": SCRAPE_TIMEOUT})
        self._server = _bound(address, host, port, handler)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_address[1]}"
        """With the port that was taken."""
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        log = logs.get("metrics")
        if is_loopback(host):
            log.info("metrics", address=self.address)
        else:
            log.warning(
                "metrics",
                address=self.address,
                message="whoever reaches this address can read these figures: use 127.0.0.1, or a firewall",
            )

    def close(self) -> None:
        """May be called twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def split(address: str, key: str = "metrics.address", like: str = "127.0.0.1:9464") -> tuple[str, int]:
    """Host and port of ``metrics.address``, or of another ``key``.

    Raises:
        ConfigError: it is not HOST:PORT.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):(\d{1,5})", address)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(f"{key} = {address!r}: write HOST:PORT, such as {like}")
    return match[1].strip("[]"), int(match[2])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(address: str, host: str, port: int, handler: Any) -> ThreadingHTTPServer:
    class Bound(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    try:
        return Bound((host, port), handler)
    except OSError as error:
        way = {
            errno.EADDRINUSE: "another program has this port: find it with `ss -ltnp`, or take another one",
            errno.EADDRNOTAVAIL: "this machine has no such address: 127.0.0.1 is always there",
            errno.EACCES: "ports below 1024 are the system's: take a higher one",
        }.get(error.errno or 0, "write HOST:PORT, such as 127.0.0.1:9464")
        raise ConfigError(f"metrics.address = {address!r}: {error.strerror or error}; {way}") from error


def _free(folder: Path) -> float:
    """Free bytes of the nearest folder that is there; NaN where nobody can tell."""
    for place in (folder, *folder.parents):
        try:
            return float(shutil.disk_usage(place).free)
        except FileNotFoundError:
            continue
        except OSError:
            break
    return math.nan
