"""Takes jobs from the store through the pipeline to their results. All methods belong to the daemon's loop.

Two threads help: one reads files to know their content (`identify`), one brings results into place and makes
exports. They only compute; what follows from it is decided in `Scheduler.turn`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from daemon.jobs import summary
from daemon.jobs.finishing import Ahead, Exporter, Finished, finish, finish_exports
from daemon.jobs.preparing import Prepared, Refused, prepare
from daemon.jobs.refusals import Refusals
from daemon.jobs.results_folder import ResultsFolder
from daemon.jobs.running import Running
from daemon.jobs.store import JobStore, State, StoredJob, StoreError
from daemon.settings.loading import Loaded
from daemon.telemetry import logs
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, JobOpened, JobOutcome, JobProgress

AHEAD = 2
"""Jobs given to the pipeline at a time: while one is finished, the next one is being decoded."""


class PipelineLike(Protocol):
    """What is used of `stages.owner.pipeline.Pipeline`."""

    def submit(self, job: Job) -> None: ...
    def cancel(self, job_id: str) -> None: ...


class Cancelled(Exception):  # noqa: N818  (not an error: somebody asked for it)
    """Ends a helper thread's work on a job that nobody wants any more."""


class Scheduler:
    """The jobs of one daemon.

    Args:
        store: where jobs stand.
        loaded: the configuration in force.
        publish: takes events of the API: topic and map.
        exporter: makes one export of finished results.
        wake: called by helper threads when they have something for `turn`.
        home: tells whether the results folder is there; nothing is begun while it is not.
        ahead: jobs given to the pipeline at a time.
        beside: begins overlays while their results grow; without it they are made like all exports.

    Raises:
        StoreError: the store cannot be read.
    """

    def __init__(
        self,
        store: JobStore,
        loaded: Loaded,
        publish: Callable[[str, dict[str, Any]], None],
        exporter: Exporter,
        wake: Callable[[], None],
        home: ResultsFolder | None = None,
        ahead: int = AHEAD,
        beside: Ahead | None = None,
    ) -> None:
        self.draining = False
        self._store = store
        self._loaded = loaded
        self._publish = publish
        self._exporter = exporter
        self._wake = wake
        self._home = home
        self._ahead = ahead
        self._beside = beside
        self._pipeline: PipelineLike | None = None
        self._running: dict[str, Running] = {}
        self._reader = ThreadPoolExecutor(1, "pw-read")
        self._writer = ThreadPoolExecutor(1, "pw-finish")
        self._refusals = Refusals()
        self._taken_up = False
        self._log = logs.get("jobs")

    @property
    def problem(self) -> str | None:
        """Why nothing is begun, for a person."""
        return self._refusals.problem

    def start(self, pipeline: PipelineLike) -> None:
        """Begin, and take up what the last daemon has left."""
        self._pipeline = pipeline
        if self._home is not None:
            self._home.mark()
        with self._refusals.guarded():
            self._take_up()

    def _take_up(self) -> None:
        """Jobs that were running when the last daemon died are queued again, or ended if they had been finished
        already. Where the store refuses, `turn` does the rest of it."""
        for job in self._store.jobs([State.RUNNING], limit=1_000_000):
            if job.id in self._running:
                continue
            placed = self._placed(job)
            if placed is None:
                self._store.move(job.id, [State.RUNNING], State.QUEUED, started=None)
                self._log.info("queued again after a restart", job=job.id, attempts=job.attempts)
            else:
                running = self._running[job.id] = Running(job, phase="exporting")
                self._finish_exports(running, placed)
        self._taken_up = True

    def turn(self) -> None:
        """Whatever is due: what the store has refused before, ends of helper threads' work, and new jobs."""
        if not self._refusals.due:
            return
        with self._refusals.guarded():
            if not self._taken_up:
                self._take_up()
            for running in list(self._running.values()):
                self._refusals.make_good(running, self._running)
                if running.future is not None and running.future.done():
                    future, running.future = running.future, None
                    self._refusals.settle(running, partial(self._advance, running, future))
            self._begin()

    def progress(self, job: str) -> dict[str, Any] | None:
        """How far a running job is; None for any other. May be called from any thread."""
        running = self._running.get(job)
        return running.progress() if running else None

    def growing(self, job: str) -> Path | None:
        """The folder in which the results of a running job grow, or stand while its exports are made. May be
        called from any thread."""
        running = self._running.get(job)
        if running is None or running.place is None:
            return None
        place = running.place
        return place.job if (place.job / summary.FRAMES).exists() else place.results

    def running(self) -> list[str]:
        """Ids of the jobs in work."""
        return list(self._running)

    def cancel(self, job: str) -> StoredJob | None:
        """Cancel a job in whatever state; None where there is no such job.

        Raises:
            StoreError: the store cannot be written.
        """
        moved = self._store.move(job, [State.QUEUED, State.RUNNING], State.CANCELLED)
        if moved is None:
            return self._store.get(job)
        if (running := self._running.get(job)) is not None:
            self._leave(running)
            self._tell(moved)
        return moved

    def retry(self, job: str) -> StoredJob | None:
        """Queue a failed or cancelled job again; None where it is in another state."""
        if job in self._running:
            return None  # its cancelling has not ended yet
        return self._store.move(job, [State.FAILED, State.CANCELLED], State.QUEUED, started=None)

    def stop(self) -> None:
        """Leave every job as it is, to be continued by the next daemon; the pipeline is closed by its owner
        before this is called."""
        for running in self._running.values():
            running.cancelled = True
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True, cancel_futures=True)
        for running in list(self._running.values()):
            self._release(running)
            with contextlib.suppress(StoreError):
                self._store.move(running.job.id, [State.RUNNING], State.QUEUED, started=None)
        self._running.clear()

    # -- what the pipeline says ------------------------------------------------------------------------------

    def on_event(self, event: JobEvent) -> None:
        """An event of the pipeline about one of these jobs."""
        running = self._running.get(event.job)
        if running is None or running.cancelled:
            return
        with self._refusals.guarded():
            if isinstance(event, JobOpened):
                self._refusals.settle(running, partial(self._on_opened, running, event))
            elif isinstance(event, JobProgress):
                self._refusals.settle(running, partial(self._on_progress, running, event))
            elif isinstance(event, JobDone):
                self._on_done(running, event.outcome)
            elif isinstance(event, JobFailed):
                step = partial(self._fail, running, event.error, event.message, event.outcome)
                self._refusals.settle(running, step)

    def _on_opened(self, running: Running, event: JobOpened) -> None:
        running.total, running.fps = event.frames, event.fps
        if event.frames is not None:
            if not self._within_duration(running, event.frames):
                return
            self._store.note(running.job.id, frames=event.frames)
        place = running.place
        if self._beside is not None and place is not None and "overlay" in self._exports(running.job):
            self._beside.begin(place.results, Path(running.job.source), place.job / summary.FRAMES, place.overlay)

    def _within_duration(self, running: Running, frames: int) -> bool:
        """Fail a job that is longer than allowed; where nobody knows its length, as soon as it has become so."""
        limit = self._loaded.settings.api.max_duration
        if not limit or running.fps <= 0 or frames / running.fps <= limit:
            return True
        assert self._pipeline is not None
        self._pipeline.cancel(running.job.id)
        seconds = f"{frames / running.fps:.0f} s long" if running.total is not None else "longer"
        self._fail(
            running, "too-long", f"{seconds}, more than api.max_duration = {limit:g} s allows", JobOutcome()
        )
        return False

    def _on_progress(self, running: Running, event: JobProgress) -> None:
        if running.total is None and not self._within_duration(running, event.decoded):
            return
        if running.mark(event):
            self._tell(running.job)

    def _on_done(self, running: Running, outcome: JobOutcome) -> None:
        place = running.place
        assert place is not None
        content = summary.summarise(
            Path(running.job.source),
            running.identity,
            outcome,
            backend=self._loaded.settings.stages.backend,
            settings=self._loaded.changed(),
            resumed=place.resumed,
        )
        content["input"]["name"] = running.job.name
        content = {**content, "job": running.job.id}
        running.phase = "exporting"
        running.total = running.total if running.total is not None else outcome.frames
        exports = self._exports(running.job)
        self._submit(
            running,
            self._writer,
            lambda: finish(
                place, content, Path(running.job.source), exports, self._exporter, self._check(running)
            ),
        )

    # -- the way of a job --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        # One that is being finished no longer needs the pipeline.
        busy = sum(1 for running in self._running.values() if running.phase != "exporting")
        room = self._pipeline is not None and busy < self._ahead and not self.draining
        waiting = self._store.waiting(self._ahead - busy) if room else []
        if waiting and self._home is not None and (away := self._home.away()) is not None:
            self._refusals.tell(away, "results", "results-away")
            return
        self._refusals.problem = None
        for job in waiting:
            taken = self._store.move(job.id, [State.QUEUED], State.RUNNING, attempts=job.attempts + 1)
            if taken is not None:
                running = self._running[job.id] = Running(taken)
                check = self._check(running)
                work = partial(prepare, taken, self._store, self._loaded, check, partial(self._claim, running))
                self._submit(running, self._reader, work)

    def _advance(self, running: Running, future: Future[Any]) -> None:
        try:
            made = future.result()
        except Cancelled:
            self._leave(running)
        except Refused as error:
            self._fail(running, error.name, str(error), JobOutcome())
        except StoreError:
            self._requeue(running)
            raise
        except OSError as error:
            place = running.place
            kept = (
                f"; the work is kept in {place.work}: `poseward retry {running.job.id}` goes on" if place else ""
            )
            self._fail(running, "folder-or-file-unusable", f"{error}{kept}", JobOutcome())
        except Exception as error:  # noqa: BLE001  (one job's trouble must not be the daemon's)
            self._log.exception("internal", job=running.job.id)
            self._fail(running, "internal", f"{type(error).__name__}: {error}: please report this", JobOutcome())
        else:
            if isinstance(made, Prepared):
                self._on_prepared(running, made)
            elif isinstance(made, Finished):
                self._on_finished(running, made)

    def _on_prepared(self, running: Running, made: Prepared) -> None:
        running.identity = made.identity
        running.place = made.place
        if running.cancelled:
            self._leave(running)
            return
        columns = {"sha256": made.identity["sha256"], "bytes": made.identity["bytes"]}
        if made.awaits is not None:
            self._log.info("waits", job=running.job.id, message=f"job {made.awaits} computes the same content")
            self._store.note(running.job.id, **columns)  # `JobStore.waiting` leaves it out while that one runs
            self._requeue(running)
            return
        if made.earlier is not None:
            self._store.note(running.job.id, same_as=made.earlier.id, **columns)
            running.phase = "exporting"
            assert made.earlier.results is not None
            self._finish_exports(running, Path(made.earlier.results))
            return
        assert made.place is not None and self._pipeline is not None
        self._store.note(running.job.id, **columns)
        if (placed := self._placed(running.job)) is not None:  # killed between the rename and the store's note
            made.place.release()
            running.place, running.phase = None, "exporting"
            self._finish_exports(running, placed)
            return
        for note in made.place.notes:
            self._log.info("folder", job=running.job.id, message=note)
        running.phase = "working"
        self._pipeline.submit(
            Job(running.job.id, running.job.source, str(made.place.job), stream=running.job.options.get("stream"))
        )
        self._log.info("begun", job=running.job.id, source=running.job.source, resumed=made.place.resumed)
        self._tell(running.job)

    def _finish_exports(self, running: Running, results: Path) -> None:
        job = running.job
        exports = self._exports(job)
        check = self._check(running)
        self._submit(
            running,
            self._writer,
            lambda: finish_exports(results, Path(job.source), exports, self._exporter, check),
        )

    def _on_finished(self, running: Running, made: Finished) -> None:
        job = running.job
        if running.cancelled:
            self._leave(running)
            return
        problems = "; ".join(f"export {name} failed: {why}" for name, why in made.problems.items())
        frames = made.summary.get("frames")
        done = self._store.move(
            job.id,
            [State.RUNNING],
            State.DONE,
            results=str(made.results),
            summary=summary.in_brief(made.summary),
            frames=frames,
            message=problems,
        )
        self._running.pop(job.id, None)
        if self._home is not None:
            self._home.mark()
        self._log.info("done", job=job.id, frames=frames, results=str(made.results), problems=problems or None)
        if done is not None:
            self._tell(done)

    def _fail(self, running: Running, error: str, message: str, outcome: JobOutcome) -> None:
        failed = self._store.move(running.job.id, [State.RUNNING], State.FAILED, error=error, message=message)
        self._running.pop(running.job.id, None)
        resumed = running.place is not None and running.place.resumed
        self._release(running, abandon=not (outcome.frames > 0 or resumed or running.phase == "exporting"))
        self._log.error("failed", job=running.job.id, error=error, message=message)
        if failed is not None:
            self._tell(failed)

    def _leave(self, running: Running) -> None:
        """Let go of a job that was cancelled; its folder is free once no thread works in it."""
        running.cancelled = True
        if running.future is not None:
            return  # `turn` comes here again
        if self._pipeline is not None:
            self._pipeline.cancel(running.job.id)
        self._release(running)
        self._running.pop(running.job.id, None)

    def _requeue(self, running: Running) -> None:
        """Back into the queue: the store refused, and nothing is decided about the job until it can be written down;
        or the same content is computed already."""
        self._store.move(
            running.job.id, [State.RUNNING], State.QUEUED, started=None, attempts=running.job.attempts - 1
        )
        self._release(running)
        self._running.pop(running.job.id, None)

    # -- small things ------------------------------------------------------------------------------------

    def _exports(self, job: StoredJob) -> tuple[str, ...]:
        return tuple(job.options.get("exports", self._loaded.settings.results.exports))

    def _release(self, running: Running, abandon: bool = False) -> None:
        """Give up a job's folders: with ``abandon`` there is nothing in them to go on with."""
        if running.place is None:
            return
        if self._beside is not None:
            self._beside.drop(running.place.results)
        (running.place.abandon if abandon else running.place.release)()

    def _placed(self, job: StoredJob) -> Path | None:
        """The results folder, where the results of this very job stand in it already."""
        if job.folder is None:
            return None
        folder = Path(self._loaded.settings.results.folder).expanduser().absolute() / job.folder
        try:
            return folder if summary.read_summary(folder).get("job") == job.id else None
        except summary.SummaryError:
            return None

    def _claim(self, running: Running, content: tuple[str, Any]) -> str | None:
        """The job that computes the same content; without any, ``running`` does. Only in the reader's one thread."""
        for other in list(self._running.values()):
            if other is not running and other.content == content and not other.cancelled:
                return other.job.id
        running.content = content
        return None

    def _submit(self, running: Running, pool: ThreadPoolExecutor, work: Callable[[], Any]) -> None:
        running.future = pool.submit(work)
        running.future.add_done_callback(lambda _: self._wake())

    def _check(self, running: Running) -> Callable[[], None]:
        def check() -> None:
            if running.cancelled:
                raise Cancelled

        return check

    def _tell(self, job: StoredJob) -> None:
        self._publish(f"job.{job.id}", {"job": self.job_map(job)})

    def job_map(self, job: StoredJob) -> dict[str, Any]:
        """A job as clients see it. May be called from any thread."""
        found = job.as_map()
        if (running := self._running.get(job.id)) is not None and not job.state.final:
            found["progress"] = running.progress()
        return found
