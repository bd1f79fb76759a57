"""A cluster that looks like one machine's pipeline: the service does not know the difference.

Videos go to the dispatching process, which is supervised like a stage. When their segments have come back, the local
pipeline gets the job with a journal that is full already: it folds it and writes the results, as it would after a
restart. Images, and inputs that cannot be cut, go to the local pipeline at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.cluster.station import describe, to_map
from daemon.settings.schema import ClusterSettings
from stages.owner.jobs import Job, JobEvent, JobFailed, JobOutcome, JobProgress, StageEvent
from stages.owner.pipeline import Pipeline
from stages.owner.processes import code_roots
from stages.owner.telling import with_way_out
from stages.protocols import find_backend
from stages.settings import PipelineSettings
from supervisor import events as ev
from supervisor.runtime import make_runtime, remove_runtime
from supervisor.spec import Deadlines, ProcessSpec
from supervisor.supervisor import Supervisor

DISPATCH = "dispatch"
INSTALL = "install it with: pip install 'poseward[cluster]'"


@dataclass
class Away:
    """A job whose segments are being worked on elsewhere."""

    job: Job
    frames: int = 0


def _group(name: str) -> int:
    """Frames of which a segment must be a multiple; 0: no input can be cut, since each frame needs those before it."""
    backend = find_backend(name)
    return 1 if backend.follower is None else backend.group


class ClusterPipeline:
    """See `stages.owner.pipeline.Pipeline`, of which this has the public face.

    Args:
        settings: of the pipeline, here and on all stations.
        on_event: gets every `JobEvent`, from inside `step`.
        cluster: where the cluster is, and what of it is used.
        runtime: folder under which sockets live.
        patient: as in `Pipeline`.
        wake: a descriptor of the owner's; `step` returns at once when it can be read.

    Raises:
        ConfigurationError: the backend does not exist.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        on_event: Callable[[JobEvent], None],
        *,
        cluster: ClusterSettings,
        runtime: Path | None = None,
        patient: bool = False,
        wake: int | None = None,
    ) -> None:
        self._on_event = on_event
        self._away: dict[str, Away] = {}
        self._ready = False
        self._cluster: dict[str, Any] = {
            "address": cluster.address,
            "state": "starting",
            "jobs": {},
            "stations": [],
        }
        self._local = Pipeline(settings, on_event, runtime=runtime, patient=patient, wake=wake)
        self._runtime = make_runtime(runtime)
        self._supervisor = Supervisor(self._runtime, self._on_supervisor)
        self._supervisor.add(
            ProcessSpec(
                DISPATCH,
                "daemon.cluster.dispatch:main",
                {
                    "address": cluster.address,
                    "segment_frames": cluster.segment_frames,
                    "ahead": cluster.ahead,
                    "stations": cluster.stations,
                    "cpus": cluster.cpus,
                    "gpus": cluster.gpus,
                    "memory_mb": cluster.memory_mb,
                    "group": _group(settings.backend),
                    "max_pixels": settings.max_pixels,
                    "settings": to_map(settings),
                    "wanted": describe(settings),
                },
                code_roots=code_roots(settings.backend),
                deadlines=Deadlines(warming=cluster.connect_seconds),
                restart=settings.restart,
            )
        )

    def start(self) -> None:
        self._local.start()
        self._supervisor.start()

    def submit(self, job: Job) -> None:
        if job.urgent:
            self._local.submit(job)
            return
        self._away[job.id] = Away(job)
        self._send(job)

    def cancel(self, job_id: str) -> None:
        if self._away.pop(job_id, None) is not None:
            self._supervisor.send(DISPATCH, "drop", {"job": job_id})
        self._local.cancel(job_id)

    def step(self, timeout: float) -> None:
        # The local pipeline's wait is the one that the owner can wake; the dispatcher is heard in between.
        self._local.step(timeout)
        self._supervisor.step(0)

    def restart(self, stage: str, reason: str) -> None:
        self._local.restart(stage, reason)

    def reset(self, stage: str) -> None:
        self._supervisor.reset(DISPATCH)
        self._local.reset(stage)

    def status(self) -> dict[str, Any]:
        """The local pipeline's, and under ``cluster``: ``address``, ``state``, ``jobs`` (frames and segments that are
        back) and ``stations`` (host, what each does, why it is refused)."""
        found = self._local.status()
        for away in self._away.values():
            found["jobs"][away.job.id] = self._progress(away)
        return {**found, "cluster": self._cluster}

    def close(self) -> None:
        self._supervisor.stop(5.0)
        remove_runtime(self._runtime)
        shutil.rmtree(self._runtime, ignore_errors=True)
        self._local.close()

    # -- what the dispatcher says ------------------------------------------------------------------------------

    def _on_supervisor(self, event: ev.Event) -> None:
        if isinstance(event, ev.Message):
            self._on_message(event.kind, event.payload)
        elif isinstance(event, ev.Ready):
            self._ready = True
            self._tell("ready", f"cluster {self._cluster['address']}: after {event.startup_seconds:.1f} s")
            for away in self._away.values():
                self._send(away.job)
        elif isinstance(event, ev.Died):
            self._ready = False
            self._cluster["stations"] = []
            again = "" if event.restart_in is None else f"; again in {event.restart_in:.1f} s"
            self._tell("died", f"{event.exit.kind.value}: {event.exit.reason}{again}")
        elif isinstance(event, ev.CircuitOpened):
            self._tell("circuit open", f"{event.exit.reason}; next try in {event.retry_in:.0f} s")
        elif isinstance(event, ev.Failed):
            reason = with_way_out(DISPATCH, event.exit)
            self._tell("failed", f"{reason}; {INSTALL}" if "ray" in reason else reason)
        elif isinstance(event, ev.Output):
            self._tell("output", event.line)

    def _on_message(self, kind: str, payload: dict[str, Any]) -> None:
        if kind == "told":
            self._tell(payload["state"], payload["message"])
        elif kind == "cluster":
            self._cluster = {**self._cluster, **payload}
            for job, found in payload["jobs"].items():
                if (away := self._away.get(job)) is not None and found["frames"] != away.frames:
                    away.frames = int(found["frames"])
                    self._on_event(self._progress(away))
        elif (away := self._away.pop(payload["job"], None)) is None:
            return
        elif kind == "failed":
            self._on_event(JobFailed(away.job.id, payload["error"], payload["message"], JobOutcome()))
        else:
            if kind == "local":
                self._tell("local", f"{away.job.id} is worked on here: {payload['why']}")
            self._local.submit(away.job)

    def _send(self, job: Job) -> None:
        """To the dispatcher, if it is there; else when it is."""
        if self._ready:
            wanted = {"job": job.id, "source": job.source, "folder": job.folder, "priority": 0}
            self._supervisor.send(DISPATCH, "job", wanted)

    def _progress(self, away: Away) -> JobProgress:
        return JobProgress(away.job.id, away.frames, away.frames, away.frames, away.frames)

    def _tell(self, state: str, message: str) -> None:
        if state in ("ready", "died", "circuit open", "failed"):
            self._cluster = {**self._cluster, "state": state, "detail": message}
        self._on_event(StageEvent("", DISPATCH, state, message))
