"""The pipeline's owner: four stages under a supervisor, jobs in, events out, and recovery.

Everything that can go wrong is mended in one way. The owner keeps, for each job, how far it is committed; a
stage that comes back is told about the jobs anew; then the epoch rises and decode emits again whatever is not
committed. Nothing here waits for anything: `Pipeline.step` runs one turn of the supervisor's loop.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.owner.active import Active
from stages.owner.blame import Blame
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, JobOpened, StageEvent
from stages.owner.orders import Orders
from stages.owner.processes import build_specs, check_faults, process_names, slot_bytes, stage_of
from stages.owner.telling import in_words, with_way_out
from stages.process.start import CHANGED, looks
from stages.protocols import find_backend
from stages.settings import STAGES, PipelineSettings
from stages.transport.ring import Ring
from supervisor import events as ev
from supervisor.runtime import make_runtime, remove_runtime
from supervisor.supervisor import Supervisor

PROGRESS_EVERY = 0.1
"""Seconds between two progress events of a job."""
STALL_AFTER = 20.0
"""Seconds without a commit, while every stage is ready and idle, after which everything is replayed."""
REPLAYS_WITHOUT_PROGRESS = 10
"""A job that is replayed this often without one more committed frame, and without a death, fails by name."""
CALM_AFTER = 60.0
"""Seconds since the last death after which a replay can no longer have to do with it."""


class Pipeline:
    """Runs jobs through decode, detect, mesh and track processes.

    Args:
        settings: what to run and within which limits.
        on_event: gets every `JobEvent`, from inside `step`.
        runtime: folder under which sockets live (short: Unix socket paths end at 107 bytes).
        patient: a service waits for a failed stage to be mended, and its jobs with it; otherwise jobs fail
            by name when a stage cannot be started or keeps failing.
        wake: a descriptor of the owner's; `step` returns at once when it can be read.

    Raises:
        ConfigurationError: the backend does not exist, or a fault to be injected is none.
        RingError: there is not enough memory for the frame slots.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        on_event: Callable[[JobEvent], None],
        *,
        runtime: Path | None = None,
        patient: bool = False,
        wake: int | None = None,
    ) -> None:
        self._on_event = on_event
        self._patient = patient
        check_faults(settings)
        backend = find_backend(settings.backend)
        self._follows, self._group = backend.follower is not None, backend.group
        self._idle_replicas = settings.mesh.replicas - 1 if self._follows else 0
        if self._idle_replicas:
            settings = replace(settings, mesh=replace(settings.mesh, replicas=1))
        self._settings = settings
        with contextlib.ExitStack() as made:
            self._ring = Ring.create(settings.slots, slot_bytes(settings))
            made.callback(self._ring.close)
            self._runtime = make_runtime(runtime)
            made.callback(remove_runtime, self._runtime)
            self._supervisor = Supervisor(self._runtime, self._on_supervisor, wake=wake)
            made.pop_all()
        for spec in build_specs(settings, backend, self._ring, self._runtime):
            self._supervisor.add(spec)
        self._numbers = itertools.count(1)
        self._queue: deque[Job] = deque()
        self._active: dict[int, Active] = {}
        self._ready: set[str] = set()
        self._versions: dict[str, str] = {}
        self._died: set[str] = set()
        self._epoch = 1
        self._blamed = Blame(self._active)
        self._orders = Orders(self._send, settings.stream)
        self._last_commit = self._last_work = time.monotonic()
        self._worked = dict.fromkeys(STAGES, (0, 0.0))
        self._closed = False

    # -- what the owner calls ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the stage processes; returns at once, readiness comes as events."""
        self._supervisor.start()
        if self._idle_replicas:
            self._tell(
                "mesh", "one process", f"backend {self._settings.backend} follows people from frame to frame: more "
                "processes would wait for each other; stages.mesh.threads makes use of more cores",
            )  # fmt: skip

    def submit(self, job: Job) -> None:
        """Queue a job. Jobs are worked on in order, urgent ones beside the video that is in work.

        Raises:
            ValueError: a segment begins where what is found depends on frames before it.
        """
        if job.segment is not None and self._follows:
            first, group = job.segment[0], self._group
            if first % group if group else first:
                raise ValueError(f"segment of {job.id}: it begins at frame {first}, not at a multiple of {group}")
        if job.urgent:
            self._queue.appendleft(job)
        else:
            self._queue.append(job)
        self._admit()
        self._give_up()

    def cancel(self, job_id: str) -> None:
        """Forget a job, queued or in work; its work folder stays as it is, and can be submitted again."""
        self._queue = deque(job for job in self._queue if job.id != job_id)
        for active in list(self._active.values()):
            if active.job.id == job_id:
                self._drop(active)

    def step(self, timeout: float) -> None:
        """One turn of the loop: at most ``timeout`` seconds of waiting."""
        self._supervisor.step(timeout)
        self._admit()
        self._check_stall()

    def restart(self, stage: str, reason: str) -> None:
        """Restart a stage's processes with the code that is on disk now; nothing is lost."""
        for name in process_names(self._settings, stage):
            self._supervisor.restart(name, reason)

    def reset(self, stage: str) -> None:
        """Start a stage that has failed or whose circuit is open."""
        for name in process_names(self._settings, stage):
            self._supervisor.reset(name)

    def status(self) -> dict[str, Any]:
        """Everything about processes and jobs that a person or a program may ask for; ``memory`` is the running
        record of `supervisor.history.MemoryHistory.data`, ``worked`` the frames that each stage has done since the
        start (those done again after a crash count again) and the seconds that it was busy with them."""
        return {
            "epoch": self._epoch,
            "processes": self._supervisor.states(),
            "ready": sorted(self._ready),
            "jobs": {a.job.id: a.progress() for a in self._active.values()},
            "queued": [job.id for job in self._queue],
            "memory": self._supervisor.history(),
            "worked": dict(self._worked),
        }

    def close(self) -> None:
        """Stop every process and leave nothing behind. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._supervisor.stop(self._settings.deadlines.grace)
        self._ring.close()
        shutil.rmtree(self._runtime, ignore_errors=True)

    # -- jobs --------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Open the next job when no other video is being decoded; urgent ones at once."""
        while self._queue and "decode" in self._ready:
            busy = any(not a.ended and not a.job.urgent for a in self._active.values())
            if busy and not self._queue[0].urgent:
                return
            active = Active(next(self._numbers), self._queue.popleft(), versions=self._versions)
            self._active[active.number] = active
            self._last_commit = time.monotonic()
            self._orders.open(active)

    def _drop(self, active: Active) -> None:
        self._active.pop(active.number, None)
        self._blamed.drop(active.number)
        for stage in STAGES:
            self._send(stage, "drop", {"job": active.number})

    def _fail(self, active: Active, error: str, message: str, finished: dict[str, Any] | None = None) -> None:
        self._drop(active)
        self._on_event(JobFailed(active.job.id, error, message, active.outcome(finished)))

    def _give_up(self) -> None:
        """Fail all jobs, those submitted later too, while a stage cannot run: unless somebody is there who may `reset`
        it."""
        if self._patient or not (self._active or self._queue):
            return
        for name, process in self._supervisor.states().items():
            if process.phase == "failed" and process.last_exit is not None:
                self._fail_all("configuration-error", f"{name}: {with_way_out(name, process.last_exit)}")
                return

    def _fail_all(self, error: str, message: str) -> None:
        for active in list(self._active.values()):
            self._fail(active, error, message)
        while self._queue:
            waiting = Active(next(self._numbers), self._queue.popleft(), versions=self._versions)
            self._on_event(JobFailed(waiting.job.id, error, message, waiting.outcome()))

    def _send(self, stage: str, kind: str, payload: dict[str, Any]) -> None:
        """To every ready process of a stage. One that is not ready is told everything when it is."""
        for name in process_names(self._settings, stage):
            if name in self._ready:
                self._supervisor.send(name, kind, payload)

    # -- recovery --------------------------------------------------------------------------------

    def _raise_epoch(self, *, lost: bool = False) -> None:
        """Have all that is not committed emitted again. ``lost`` says that no death is the reason."""
        self._epoch += 1
        self._last_commit = now = time.monotonic()
        for stage in STAGES:
            self._send(stage, "epoch", {"epoch": self._epoch})
        for active in list(self._active.values()):
            active.replays += lost
            active.counts = dict.fromkeys(active.counts, active.next_frame)
            calm = now - active.last_death > CALM_AFTER
            if lost and calm and active.replays > REPLAYS_WITHOUT_PROGRESS:
                self._fail(active, "no-progress", f"frame {active.next_frame} got lost again and again")

    def _check_stall(self) -> None:
        """The last line: if nothing moves though everybody is ready and idle, replay."""
        now = time.monotonic()
        if not self._active or now - self._last_commit < STALL_AFTER:
            return
        states = self._supervisor.states()
        if len(self._ready) < len(states) or any(state.busy_seconds > 0 for state in states.values()):
            # A frame may take a stage a minute, and between two stages nobody has it: that is no standstill.
            self._last_work = now
        elif now - self._last_work >= STALL_AFTER:
            self._tell("pipeline", "stalled", f"no commit for {STALL_AFTER:.0f} s: replaying")
            self._raise_epoch(lost=True)

    def _on_ready(self, name: str) -> None:
        self._ready.add(name)
        stage = stage_of(name)
        self._supervisor.send(name, "epoch", {"epoch": self._epoch})
        if stage == "decode":
            # Jobs may have ended while it was dead: nobody will ask for their frames, and their slots are free.
            self._supervisor.send(name, "keep", {"jobs": sorted(self._active)})
        for active in self._active.values():
            if stage == "decode":
                self._orders.open(active)
            elif stage == "track":
                self._orders.track(active)
            else:
                self._orders.suspects(active, stage)
        if name in self._died:
            self._died.discard(name)
            self._raise_epoch()
        self._admit()

    def _on_death(self, name: str, report: ev.ExitReport) -> None:
        self._ready.discard(name)
        self._died.add(name)
        stage = stage_of(name)
        for active in self._active.values():
            if stage == "decode":
                active.opened = False
            elif stage == "track":
                active.tracked = False
            if report.kind is not ev.ExitKind.STOPPED:
                active.died(name, report)
        self._blame(stage, report)
        if any(other in self._ready for other in process_names(self._settings, stage)):
            self._raise_epoch()  # a replica lives: it takes over what the dead one had

    def _blame(self, stage: str, report: ev.ExitReport) -> None:
        follows = self._blamed.of(stage, report)
        for active, frame in follows.skipped:
            self._tell(
                stage, "skipping", f"frame {frame} of {active.job.id}: {report.reason}",
                {"job": active.job.id, "frame": frame},
            )  # fmt: skip
        for active in follows.suspects:
            self._orders.suspects(active, stage)
        for active in follows.hopeless:
            self._fail(active, f"{stage}-crashed", f"the {stage} stage keeps dying on it: {report.reason}")

    # -- what the supervisor says ------------------------------------------------------------------

    def _on_supervisor(self, event: ev.Event) -> None:
        if isinstance(event, ev.Message):
            self._on_message(stage_of(event.name), event.kind, event.payload)
            return
        if (told := in_words(event, {number: a.job.id for number, a in self._active.items()})) is not None:
            self._on_event(told)
        if isinstance(event, ev.Ready):
            self._versions.update(event.info.get("versions", {}))
            self._on_ready(event.name)
        elif isinstance(event, ev.Died):
            self._on_death(event.name, event.exit)
        elif isinstance(event, ev.CircuitOpened):
            self._on_circuit(event)
        elif isinstance(event, ev.Failed):
            self._give_up()

    def _on_circuit(self, event: ev.CircuitOpened) -> None:
        stage = stage_of(event.name)
        isolated, again = self._blamed.circuit_opened(stage)
        if isolated:
            self._supervisor.reset(event.name)
        elif again and not self._patient:
            self._fail_all("stage-keeps-failing", f"{event.name}: {event.exit.reason}")

    def _on_message(self, stage: str, kind: str, payload: dict[str, Any]) -> None:
        if kind == "corrupt":
            self._tell(stage, "corrupt message", f"{payload['reason']}: replaying")
            self._raise_epoch(lost=True)
            return
        if kind == "shrunk":
            self._tell(stage, "batch shrunk", f"to {payload['batch']}: {payload['reason']}")
            return
        active = self._active.get(int(payload["job"]))
        if active is None:
            return
        if kind == "gap":
            self._tell(stage, "gap", f"before frame {payload['frame']} of {active.job.id}: replaying")
            self._raise_epoch(lost=True)
        elif kind == "worked":
            self._count(active, stage, int(payload["count"]), float(payload["seconds"]))
        elif kind == "opened":
            self._on_opened(active, payload["info"])
        elif kind == "resumed":
            self._on_resumed(active, payload)
        elif kind == "committed":
            self._on_committed(active, payload)
        elif kind == "ended":
            active.ended = True
        elif kind == "finished":
            self._on_finished(active, payload)
        elif kind in ("unreadable", "unwritable"):
            self._fail(active, str(payload["error"]), str(payload["message"]))

    def _on_opened(self, active: Active, info: dict[str, Any]) -> None:
        if active.info is not None and looks(info) != looks(active.info):
            # Decode has died and opened something else under that name.
            message = CHANGED.format(now=looks(info), then=looks(active.info))
            self._fail(active, "source-changed", f"{active.job.source}: {message}")
            return
        active.opened = True
        if active.info is None:
            active.info = info
            size = int(info["width"]), int(info["height"])
            self._on_event(JobOpened(active.job.id, *size, float(info["fps"]), info["frames"], info))
        if active.tracked:
            self._orders.go(active)
        else:
            self._orders.track(active)

    def _on_resumed(self, active: Active, payload: dict[str, Any]) -> None:
        again = active.next_frame > 0 or bool(active.restarts)
        active.tracked = True
        self._tell_committed(active, payload)
        self._orders.go(active)
        if again:
            self._raise_epoch()

    def _on_committed(self, active: Active, payload: dict[str, Any]) -> None:
        active.replays = 0
        self._count(active, "track", 1, float(payload["seconds"]))
        self._last_commit = time.monotonic()
        self._tell_committed(active, payload)
        self._blamed.committed(active.number, active.next_frame)
        if self._last_commit - active.progress_sent > PROGRESS_EVERY:
            active.progress_sent = self._last_commit
            self._on_event(active.progress())
        total = active.info["frames"] if active.info else None
        if total is not None:
            self._check_failures(active, int(payload["failed"]), int(total), payload)

    def _tell_committed(self, active: Active, payload: dict[str, Any]) -> None:
        active.next_frame, active.state = int(payload["next"]), payload["state"]
        self._orders.committed(active)

    def _on_finished(self, active: Active, payload: dict[str, Any]) -> None:
        active.next_frame = frames = int(payload["frames"])
        self._on_event(active.progress())
        failures = payload["failures"]
        if frames == 0:
            self._fail(active, "no-frames", f"{active.job.source}: not one frame could be decoded")
        elif len(failures) == frames:
            _, stage, reason = failures[0]
            message = (
                f"{active.job.source}: not one of its {frames} frames has a result; the first: {stage}: {reason}"
            )
            self._fail(active, "no-frames", message, payload)
        elif not self._check_failures(active, len(failures), frames, payload):
            self._drop(active)
            self._on_event(JobDone(active.job.id, active.outcome(payload)))

    def _check_failures(self, active: Active, failed: int, total: int, payload: dict[str, Any]) -> bool:
        """Fail the job if more frames than allowed have failed."""
        allowed = self._settings.max_failed_fraction
        if failed <= allowed * total:
            return False
        message = (
            f"{failed} of {total} frames failed, more than stages.max_failed_fraction = {allowed:g} allows;"
            f" the latest: {payload['latest_failure']}"
        )
        self._fail(active, "too-many-failed-frames", message, payload)
        return True

    def _count(self, active: Active, stage: str, frames: int, seconds: float) -> None:
        active.worked(stage, frames, seconds)
        before = self._worked[stage]
        self._worked[stage] = (before[0] + frames, before[1] + seconds)

    def _tell(self, stage: str, state: str, message: str, about: dict[str, Any] | None = None) -> None:
        self._on_event(StageEvent("", stage, state, message, report=about))
