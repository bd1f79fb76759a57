"""``poseward run``: videos through a pipeline of its own, results into folders, without a daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from daemon.jobs import places, summary
from daemon.jobs.finishing import Ahead, Exporter
from daemon.jobs.inputs import hindrance
from daemon.settings.loading import Loaded
from daemon.telemetry import logs
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, JobOpened, JobOutcome, JobProgress, StageEvent
from stages.settings import PipelineSettings

STEP = 0.1
"""Longest turn of the loop in seconds; Ctrl-C is heard this soon."""


class PipelineLike(Protocol):
    """What is used of `stages.owner.pipeline.Pipeline`."""

    def start(self) -> None: ...
    def submit(self, job: Job) -> None: ...
    def step(self, timeout: float) -> None: ...
    def close(self) -> None: ...


class Factory(Protocol):
    """Makes a pipeline that tells ``on_event`` everything, from inside ``step``."""

    def __call__(
        self, settings: PipelineSettings, on_event: Callable[[JobEvent], None], runtime: Path | None
    ) -> PipelineLike: ...


class View(Protocol):
    """Who is told what happens. Called from one thread at a time per method, exports from a second one."""

    def note(self, text: str) -> None: ...
    def opened(self, name: str, event: JobOpened) -> None: ...
    def progress(self, name: str, event: JobProgress) -> None: ...
    def stage(self, event: StageEvent) -> None: ...
    def exporting(self, name: str, export: str, done: int, total: int) -> None: ...
    def closed(self, result: VideoResult) -> None: ...


@dataclass(frozen=True)
class Options:
    """What the command line decides for one run; see `daemon.jobs.places` for ``resume`` and ``fresh``."""

    folder: Path
    exports: tuple[str, ...] = ()
    resume: bool = False
    fresh: bool = False
    keep_work: bool = False


@dataclass
class VideoResult:
    """How one video ended. ``error`` is a stable name such as ``unreadable-video``, or None."""

    video: Path
    name: str
    folder: Path | None = None
    error: str | None = None
    message: str = ""
    outcome: JobOutcome = field(default_factory=JobOutcome)
    summary: dict[str, Any] = field(default_factory=dict)
    earlier: bool = False
    """The results were there already."""
    resumable: bool = False
    """The work folder is still there, with finished work in it."""
    export_errors: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.error is None and not self.export_errors


class Interrupted(Exception):  # noqa: N818  (not an error: somebody asked for it)
    """Somebody asked to stop; ``signal`` says how."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


def default_pipeline(
    settings: PipelineSettings, on_event: Callable[[JobEvent], None], runtime: Path | None
) -> PipelineLike:
    """The real pipeline, imported only now."""
    from stages.owner.pipeline import Pipeline

    return Pipeline(settings, on_event, runtime=runtime)


class Runner:
    """One run over some videos. Use `run` once.

    Args:
        loaded: the configuration in force.
        options: what the command line says.
        view: is told what happens.
        factory: makes the pipeline.
        exporter: makes exports; None for a run without any.
        beside: begins overlays while their results grow; without it they are made like all exports.
    """

    def __init__(
        self,
        loaded: Loaded,
        options: Options,
        view: View,
        *,
        factory: Factory = default_pipeline,
        exporter: Exporter | None = None,
        beside: Ahead | None = None,
    ) -> None:
        self._loaded = loaded
        self._options = options
        self._view = view
        self._factory = factory
        self._exporter = exporter
        self._beside = beside if "overlay" in options.exports else None
        self._log = logs.get("run")
        self._stop = 0
        self._taken: set[str] = set()
        self._places: dict[str, places.Place] = {}
        self._sources: dict[str, Path] = {}
        self._results: list[VideoResult] = []
        self._order: list[Path] = []
        self._exports: list[Future[None]] = []
        self._export_pool = ThreadPoolExecutor(1, "export")
        self._open = 0
        self._totals: dict[str, int | None] = {}

    @property
    def results(self) -> list[VideoResult]:
        """What has ended so far, in the order in which the videos were given."""
        return sorted(self._results, key=lambda result: self._order.index(result.video))

    def stop(self, number: int) -> None:
        """Ask the run to stop, as after a signal; `run` then raises `Interrupted`."""
        self._stop = number

    def run(self, videos: Sequence[Path]) -> list[VideoResult]:
        """Work on all videos; returns how each ended.

        Raises:
            Interrupted: `stop` was called; everything is stopped, and what was begun can be resumed.
            ConfigurationError, RingError, RuntimePathError: the pipeline cannot be made.
        """
        waiting = self._distinct(videos)
        pool = ThreadPoolExecutor(1, "plan")
        try:
            # Reading a large file to know its content takes time, which the stages use to load.
            plans = [(video, pool.submit(self._plan, video)) for video in waiting]
            self._open = len(plans)
            if plans:
                self._work(plans)
            self._wait_for_exports()
        finally:
            self._stop = self._stop or signal.SIGTERM  # lets the two threads end
            pool.shutdown(wait=True, cancel_futures=True)
            self._export_pool.shutdown(wait=True, cancel_futures=True)
            for place in self._places.values():
                place.release()
        return self.results

    # -- the loop --------------------------------------------------------------------------------------

    def _work(self, plans: list[tuple[Path, Future[places.Place]]]) -> None:
        runtime = self._loaded.settings.daemon.runtime
        pipeline = self._factory(self._loaded.settings.stages, self._on_event, Path(runtime) if runtime else None)
        try:
            pipeline.start()
            while self._open:
                self._check_stop()
                while plans and plans[0][1].done():
                    video, future = plans.pop(0)
                    self._submit(pipeline, video, future)
                if self._open:
                    pipeline.step(STEP)
        finally:
            try:
                pipeline.close()
            except OSError:
                if not self._stop:  # after a second Ctrl-C there may be nobody left to be told to stop
                    raise

    def _submit(self, pipeline: PipelineLike, video: Path, future: Future[places.Place]) -> None:
        from stages.source.base import SourceError

        try:
            place = future.result()
        except Interrupted:
            raise
        except (places.PlaceError, SourceError) as error:
            name = error.name if isinstance(error, SourceError) else "cannot-resume"
            self._close(VideoResult(video, video.name, error=name, message=str(error)))
            return
        except OSError as error:
            self._close(VideoResult(video, video.name, error="folder-or-file-unusable", message=str(error)))
            return
        except Exception as error:  # noqa: BLE001  (one video's trouble must not be the others')
            self._log.error("defect", source=str(video), error=repr(error))
            self._close(VideoResult(video, video.name, error="internal", message=f"{error!r}: please report this"))
            return
        for note in place.notes:
            self._view.note(note)
        if place.done:
            self._take_earlier(place, video)
            return
        if place.resumed:
            self._view.note(f"{video.name}: continuing the interrupted run in {place.work}")
        self._places[place.name] = place
        self._sources[place.name] = video
        self._log.info("job", job=place.name, source=str(video), resumed=place.resumed)
        pipeline.submit(Job(place.name, str(video.absolute()), str(place.job)))

    def _on_event(self, event: JobEvent) -> None:
        if isinstance(event, StageEvent):
            self._log.info("stage", stage=event.stage, state=event.state, message=event.message)
            self._view.stage(event)
        elif event.job not in self._places:
            return
        elif isinstance(event, JobOpened):
            self._view.opened(event.job, event)
            self._totals[event.job] = event.frames
            self._begin_overlay(event.job)
            for note in event.info.get("notes", ()):
                self._view.note(f"{event.job}: {note}")
        elif isinstance(event, JobProgress):
            self._view.progress(event.job, event)
        elif isinstance(event, JobDone):
            self._finish(event.job, event.outcome)
        elif isinstance(event, JobFailed):
            self._fail(event)

    def _finish(self, name: str, outcome: JobOutcome) -> None:
        place, video = self._places.pop(name), self._sources[name]
        content = summary.summarise(
            video,
            place.identity,
            outcome,
            backend=self._loaded.settings.stages.backend,
            settings=self._loaded.changed(),
            resumed=place.resumed,
        )
        result = VideoResult(video, name, place.results, outcome=outcome, summary=content)
        try:
            place.finish(content, self._options.keep_work, hold=bool(self._options.exports))
        except OSError as error:
            place.release()
            result.folder, result.error, result.resumable = None, "cannot-write-results", True
            result.message = f"{error}; the work is kept in {place.work}"
        self._log.info("done", job=name, frames=outcome.frames, error=result.error)
        self._close(result)
        if result.error is not None:
            self._drop_overlay(place)
        elif self._options.exports:
            self._later(result, place, self._options.exports)

    def _fail(self, event: JobFailed) -> None:
        place, video = self._places.pop(event.job), self._sources[event.job]
        result = VideoResult(video, event.job, error=event.error, message=event.message, outcome=event.outcome)
        self._drop_overlay(place)
        if event.outcome.frames > 0 or place.resumed:
            place.release()
            result.resumable = True
        elif self._options.keep_work:
            place.release()
        else:
            place.abandon()
        self._log.error("failed", job=event.job, error=event.error, message=event.message)
        self._close(result)

    def _close(self, result: VideoResult) -> None:
        self._results.append(result)
        self._open -= 1
        self._view.closed(result)

    def _check_stop(self) -> None:
        if self._stop:
            raise Interrupted(self._stop)

    # -- before and after ------------------------------------------------------------------------------

    def _distinct(self, videos: Sequence[Path]) -> list[Path]:
        """The videos that exist, each once."""
        seen: set[Path] = set()
        found = []
        for video in videos:
            real = Path(os.path.realpath(video))
            if real in seen:
                self._view.note(f"{video} is given twice: done once")
                continue
            seen.add(real)
            self._order.append(video)
            if refused := hindrance(video):
                self._open += 1
                self._close(VideoResult(video, video.name, error=refused[0], message=refused[1]))
            else:
                found.append(video)
        return found

    def _plan(self, video: Path) -> places.Place:
        """Runs in a thread of its own, one video after the other."""
        from stages.source.kinds import check_input  # with what it takes to read pictures

        check_input(video)
        identity = summary.identify(video, self._check_stop)
        place = places.choose(
            self._options.folder,
            video,
            identity,
            places.result_settings(self._loaded.settings.stages),
            taken=self._taken,
            resume=self._options.resume,
            fresh=self._options.fresh,
        )
        self._taken.add(place.name)
        return place

    # -- exports ---------------------------------------------------------------------------------------

    def drawn(self, results: Path, done: int) -> None:
        """So many frames of an overlay are drawn; from any thread."""
        total = self._totals.get(results.name)
        self._view.exporting(results.name, "overlay", done, max(done + 1, total or 0))

    def _begin_overlay(self, name: str) -> None:
        if self._beside is not None:
            place, video = self._places[name], self._sources[name]
            self._beside.begin(place.results, video.absolute(), place.job / summary.FRAMES, place.overlay)

    def _drop_overlay(self, place: places.Place) -> None:
        if self._beside is not None:
            self._beside.drop(place.results)

    def _take_earlier(self, place: places.Place, video: Path) -> None:
        """Results that are there already; those exports that an interrupted run owes them are made."""
        try:
            found = summary.read_summary(place.results)
            if damage := summary.damage(found):
                raise summary.SummaryError(damage)
            owed = [name for name in self._options.exports if name not in found["exports"]]
            held = places.reopen(place.results) if owed or place.work.is_dir() else None
        except (summary.SummaryError, KeyError, TypeError, OSError) as error:
            message = f"{place.results}: its summary is damaged ({error}): --fresh makes new results"
            self._close(VideoResult(video, place.name, error="damaged-results", message=message))
            return
        self._view.note(f"{video.name}: results are there already, in {place.results}")
        result = VideoResult(video, place.name, place.results, summary=found, earlier=True)
        result.outcome.frames = int(found.get("frames", 0))
        self._close(result)
        if held is not None:
            self._later(result, held, owed)

    def _later(self, result: VideoResult, place: places.Place, exports: Sequence[str]) -> None:
        self._exports.append(self._export_pool.submit(self._export, result, place, exports))

    def _export(self, result: VideoResult, place: places.Place, exports: Sequence[str]) -> None:
        """In a thread of its own: make exports, then clear the work folder away."""
        try:
            self._make(result, exports)
            place.leave(self._options.keep_work)
        except Interrupted:
            pass  # what was drawn stays, for --resume
        finally:
            place.release()

    def _make(self, result: VideoResult, exports: Sequence[str]) -> None:
        assert result.folder is not None and self._exporter is not None
        for export in exports:

            def progress(done: int, export: str = export) -> None:
                self._check_stop()
                self._view.exporting(result.name, export, done, result.outcome.frames)

            began = time.monotonic()
            try:
                self._check_stop()
                made = self._exporter(export, result.video, result.folder, progress)
                result.summary["exports"][export] = {
                    "files": [path.name for path in made],
                    "seconds": round(time.monotonic() - began, 3),
                }
                summary.write_summary(result.folder, result.summary)
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001  (an export must not take the results with it)
                result.export_errors[export] = str(error) or type(error).__name__
                self._log.error("export failed", job=result.name, export=export, error=repr(error))

    def _wait_for_exports(self) -> None:
        for future in self._exports:
            while not future.done():
                self._check_stop()
                wait([future], timeout=STEP)
            future.result()
        self._check_stop()


@contextlib.contextmanager
def stopping_on_signals(runner: Runner, view: View, kill: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP stop the run in order; asked again, ``kill`` is called."""
    asked = 0

    def handle(number: int, _frame: object) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            runner.stop(number)
            view.note("stopping; once more kills")
        else:
            kill()
            if asked > 2:
                os._exit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
