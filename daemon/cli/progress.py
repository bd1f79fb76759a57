"""What a run looks like while it runs: bars on a terminal, plain lines now and then everywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from daemon.cli.words import counted
from daemon.run import VideoResult
from stages.owner.jobs import JobOpened, JobProgress, StageEvent

STAGES = ("decode", "detect", "mesh", "track")
PLAIN_EVERY = 5.0
"""Seconds between two lines where there is no terminal."""
WINDOW = 10.0
"""Seconds over which a rate is measured."""
PHASES = ("importing", "loading", "warming")
QUIET = ("output", "importing", "warming", "working")
"""States that are worth a line only with --verbose."""


class Rate:
    """Frames a second over the last seconds, and what is left to do."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, done: int) -> None:
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # a crash: what was in flight is done again
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """None until it is known."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return None
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start)

    def remaining(self, total: int | None) -> float | None:
        """Seconds until ``total``, or None."""
        rate = self.per_second
        if not rate or total is None or not self._seen:
            return None
        return max(0.0, (total - self._seen[-1][1]) / rate)


def clock_text(seconds: float | None) -> str:
    """``1:02:03``, ``2:03`` or ``-:--``."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span_text(seconds: float) -> str:
    """``0.3 s``, or ``2:03`` from a minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else clock_text(seconds)


def _counts(event: JobProgress) -> tuple[int, int, int, int]:
    return event.decoded, event.detected, event.meshed, event.committed


def stage_line(event: StageEvent) -> str:
    """``mesh: died: killed by SIGKILL; again in 0.1 s``."""
    if event.state == "ready":
        return f"{event.stage}: {event.message}"
    return f"{event.stage}: {event.state}" + (f": {event.message}" if event.message else "")


class _Lines:
    """What both ways of showing have in common: which stage events become lines, and each only once."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._last: dict[str, str] = {}

    def stage(self, event: StageEvent) -> None:
        expected = event.message.startswith(("stopped", "configuration error"))  # the latter is told as failed
        if not self._verbose and (event.state in QUIET or (event.state == "died" and expected)):
            return
        key = event.state if event.state in PHASES else stage_line(event)
        if self._last.get(event.stage) == key and event.state != "output":
            return
        self._last[event.stage] = key
        self.note(stage_line(event))

    def note(self, text: str) -> None:
        raise NotImplementedError


class PlainView(_Lines):
    """Lines on ``out``, for files and pipes. ``quiet`` leaves only notes and what ends a video."""

    def __init__(
        self,
        out: TextIO | None = None,
        *,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(verbose)
        self._out = out or sys.stderr
        self._clock = clock
        self._totals: dict[str, int | None] = {}
        self._rates: dict[str, Rate] = {}
        self._told = clock()
        self._loading: dict[str, float] = {}

    def stage(self, event: StageEvent) -> None:
        """Loading takes minutes on a slow disk: it is told how far it is, but not at every step."""
        super().stage(event)
        if event.state not in PHASES:
            self._loading.pop(event.stage, None)
        elif event.state == "loading" and event.fraction is not None:
            now = self._clock()
            if now - self._loading.setdefault(event.stage, now) >= PLAIN_EVERY:
                self._loading[event.stage] = now
                self.note(f"{stage_line(event)}, {event.fraction:.0%}")

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def opened(self, name: str, event: JobOpened) -> None:
        self._totals[name] = event.frames
        self._rates[name] = Rate(self._clock)
        self.note(f"{name}: {_describe(event)}")

    def progress(self, name: str, event: JobProgress) -> None:
        rate = self._rates.setdefault(name, Rate(self._clock))
        rate.update(event.committed)
        if self._clock() - self._told < PLAIN_EVERY:
            return
        self._told = self._clock()
        total = self._totals.get(name)
        stages = ", ".join(f"{stage} {done}" for stage, done in zip(STAGES, _counts(event), strict=True))
        speed = f"{rate.per_second:.1f} frames/s, " if rate.per_second else ""
        left = clock_text(rate.remaining(total))
        self.note(f"{name}: {stages} of {'?' if total is None else total}; {speed}{left} left")

    def exporting(self, name: str, export: str, done: int, total: int) -> None:
        if self._clock() - self._told >= PLAIN_EVERY:
            self._told = self._clock()
            self.note(f"{name}: export {export} {done} of {total}")

    def closed(self, result: VideoResult) -> None:
        self.note(ending(result))


class RichView(_Lines):
    """One live line a stage, and events as lines above them. Use as a context manager."""

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        super().__init__(verbose)
        self._console = console
        self._bars = Progress(
            TextColumn("{task.fields[name]}", style="bold", markup=False),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _Done(),
            _Speed(),
            console=console,
            expand=True,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._rates: dict[tuple[str, str], Rate] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> RichView:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def opened(self, name: str, event: JobOpened) -> None:
        self.note(f"{name}: {_describe(event)}")
        for stage in STAGES:
            self._bar(name, stage, event.frames)

    def progress(self, name: str, event: JobProgress) -> None:
        for stage, done in zip(STAGES, _counts(event), strict=True):
            self._show(name, stage, done)

    def exporting(self, name: str, export: str, done: int, total: int) -> None:
        self._bar(name, export, total)
        self._show(name, export, done)
        if done >= total:
            self._remove(name, [export])

    def closed(self, result: VideoResult) -> None:
        self._remove(result.name, STAGES)
        self._console.print(Text(ending(result), style="green" if result.ok else "bold red"))

    def _bar(self, name: str, line: str, total: int | None) -> None:
        with self._lock:
            if (name, line) not in self._tasks:
                self._rates[name, line] = Rate()
                self._tasks[name, line] = self._bars.add_task(
                    line, total=total, name=name, rate=self._rates[name, line]
                )

    def _show(self, name: str, line: str, done: int) -> None:
        task = self._tasks.get((name, line))
        if task is not None:
            self._rates[name, line].update(done)
            self._bars.update(task, completed=done)

    def _remove(self, name: str, lines: tuple[str, ...] | list[str]) -> None:
        with self._lock:
            for line in lines:
                task = self._tasks.pop((name, line), None)
                if task is not None:
                    self._bars.remove_task(task)


class _Done(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:.0f}"
        return Text(f"{task.completed:.0f}/{total}", justify="right")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate: Rate = task.fields["rate"]
        total = None if task.total is None else round(task.total)
        speed = "   -/s" if rate.per_second is None else f"{rate.per_second:5.1f}/s"
        return Text(f"{speed}  {clock_text(rate.remaining(total)):>7} left", style="dim")


def _describe(event: JobOpened) -> str:
    frames = "an unknown number of frames" if event.frames is None else counted(event.frames, "frame")
    rate = f" at {event.fps:g}/s" if event.fps else ""
    return f"{frames} of {event.width}x{event.height}{rate}"


def ending(result: VideoResult) -> str:
    """One line about how a video ended; a failure's reason stands in the table at the end."""
    if result.error is not None:
        again = " (--resume continues it)" if result.resumable else ""
        return f"{result.video}: failed: {result.error}{again}"
    if result.earlier:
        return f"{result.name}: nothing to do"
    return f"{result.name}: done, {counted(result.outcome.frames, 'frame')} in {span_text(result.outcome.wall_seconds)}"
