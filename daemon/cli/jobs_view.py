"""What jobs look like: a table, one in detail, bars while they run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from daemon.cli.jobs_follow import FINAL
from daemon.cli.progress import PLAIN_EVERY, clock_text, span_text
from daemon.cli.words import (
    age_text,
    bar,
    counted,
    fraction_of,
    printable,
    remaining,
    short,
    size_text,
    state_text,
)

BAR = 16
WIDE = 96
"""Columns below which a table goes without some of what is told."""
WAYS_OUT = {
    "unreadable-video": "look at the file with `ffprobe`; convert it, or send it again if the copy was cut short",
    "no-frames": "the file holds no picture that can be decoded: look at it with `ffprobe`",
    "no-such-file": "it was moved or removed since: put it back and `poseward retry`, or submit it again",
    "too-many-failed-frames": "raise stages.max_failed_fraction if the others are worth having, then `poseward retry`",
    "too-long": "raise api.max_duration, or cut the video",
    "results-gone": "submit the video again with --recompute",
    "disk-full": "make room, then `poseward retry`",
}


def counts_line(counts: Mapping[str, int]) -> str:
    """``1 running, 3 queued, 12 done``."""
    order = ("running", "queued", "done", "failed", "cancelled")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts.get(state)) or "no jobs"


def progress_text(job: Mapping[str, Any], width: int = BAR) -> Text:
    """A bar and percents, or as much as is known; how it ended."""
    if job["state"] == "running":
        progress = job.get("progress") or {}
        fraction = fraction_of(job)
        if progress.get("phase") == "working" and fraction is not None:
            return Text.assemble(bar(fraction, width, "blue"), f" {100 * fraction:3.0f} %")
        return Text(str(progress.get("phase", "")), style="blue")
    if job["state"] == "done":
        return Text(f"same as {short(job['same_as'])}" if job["same_as"] else "", style="dim")
    return Text(job["error"] or "", style="red")


def frames_text(job: Mapping[str, Any]) -> str:
    progress = job.get("progress")
    if progress and job["state"] == "running":
        total = progress.get("total")
        return f"{progress['committed']}/{'?' if total is None else total}"
    return "" if job["frames"] is None else str(job["frames"])


def table(jobs: Iterable[Mapping[str, Any]], width: int = 100, now: float | None = None) -> Table:
    """Jobs, one a line of at most ``width`` characters, whatever their names are."""
    now = time.time() if now is None else now
    narrow = width < WIDE
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("job", no_wrap=True, style="bold")
    # The other columns need 76 characters, or 67.
    made.add_column("name", overflow="ellipsis", no_wrap=True, max_width=max(12, width - (67 if narrow else 76)))
    made.add_column("state", no_wrap=True)
    made.add_column("progress", no_wrap=True, overflow="ellipsis")
    for name in ("frames", "age") if narrow else ("frames", "age", "took"):
        made.add_column(name, justify="right", no_wrap=True)
    for job in jobs:
        cells: list[str | Text] = [
            short(job["id"]),
            printable(job["name"]),
            state_text(job["state"]),
            progress_text(job),
            frames_text(job),
            age_text(now - job["created"]),
        ]
        if not narrow:
            cells.append("" if job["started"] is None else span_text(took(job, now)))
        made.add_row(*cells)
    return made


def took(job: Mapping[str, Any], now: float) -> float:
    """Seconds since a job was begun, up to its end."""
    return max(0.0, float((job["ended"] or now) - job["started"]))


def detail(job: Mapping[str, Any], console: Console, now: float | None = None) -> None:
    """One job and its story."""
    now = time.time() if now is None else now
    summary = job.get("summary") or {}
    console.print(Text.assemble((job["id"], "bold"), "  ", printable(job["name"]), "  ", state_text(job["state"])))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")

    def row(name: str, value: Any) -> None:
        if value not in (None, ""):
            rows.add_row(name, value if isinstance(value, Text) else str(value))

    row("source", f"{printable(job['source'])} ({job['origin']}{_size(job)})")
    row("submitted", f"{_clock(job['created'])}, {age_text(now - job['created'])} ago{_asked(job)}")
    if job["started"] is not None:
        ended = f", ended {_clock(job['ended'])}, took" if job["ended"] else ", for"
        row("begun", f"{_clock(job['started'])}{ended} {span_text(took(job, now))}")
    if job["attempts"] > 1:
        row("attempts", f"{job['attempts']}: it was begun again after a restart of the daemon or a retry")
    if job["state"] == "running":
        row("progress", running_text(job))
    row("frames", _frames(job, summary))
    for death in summary.get("restarts") or ():
        row("restart", f"{death.get('process')}: {death.get('kind')}: {death.get('reason')}; nothing was lost")
    if summary.get("truncated"):
        row("ends early", summary["truncated"])
    if job["same_as"]:
        row("same as", f"{job['same_as']}: the content was done before (--recompute does it anew)")
    if job["error"]:
        row("error", Text(f"{job['error']}: {job['message']}", style="red"))
        row("way out", WAYS_OUT.get(job["error"], "`poseward retry` goes on from the finished frames"))
        row("log", f"poseward logs {job['id']}")
    else:
        row("note", job["message"])
    row("results", job["results"])
    console.print(rows)


def running_text(job: Mapping[str, Any]) -> Text:
    progress = job.get("progress") or {}
    text = Text.assemble(progress_text(job, 24), f"  {frames_text(job)} frames")
    if progress.get("rate"):
        text.append(f", {progress['rate']:.1f}/s, {clock_text(remaining(job))} left")
    return text


def _size(job: Mapping[str, Any]) -> str:
    return f", {size_text(job['bytes'])}" if job["bytes"] is not None else ""


def _asked(job: Mapping[str, Any]) -> str:
    parts = [f"priority {job['priority']}"] if job["priority"] else []
    if job["client_key"] and not job["client_key"].startswith("auto-"):
        parts.append(f"key {job['client_key']}")
    if job["options"].get("exports") is not None:
        parts.append("exports " + (", ".join(job["options"]["exports"]) or "none"))
    if job["options"].get("recompute"):
        parts.append("recompute")
    return f" ({'; '.join(parts)})" if parts else ""


def _frames(job: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    if job["frames"] is None or job["state"] == "running":
        return None
    parts = [str(job["frames"])]
    if "tracks" in summary:
        parts.append(counted(summary["tracks"], "track"))
    if failed := summary.get("failed_frames"):
        count = len(failed) + summary.get("left_out", {}).get("failed_frames", 0)
        parts.append(f"{count} failed (summary.json says why)")
    return ", ".join(parts)


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def ending_line(job: Mapping[str, Any]) -> str:
    """How a job ended, or stands, in one line."""
    name = f"{short(job['id'])} {printable(job['name'])}"
    if job["state"] == "done":
        return f"{name}: done, {counted(job['frames'], 'frame')}: {job['results']}"
    if job["error"]:
        return f"{name}: {job['state']}: {job['error']}: {job['message']}"
    return f"{name}: {job['state']}"


class Bars:
    """One live line a job on a terminal, a line now and then elsewhere. Call it with job maps."""

    def __init__(self, console: Console, jobs: Sequence[Mapping[str, Any]], *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live = console.is_terminal and not quiet
        self._told = time.monotonic()
        self._ended: set[str] = set()
        self._wrong: set[str] = set()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), _Phase(), console=console,
            expand=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        if len(jobs) <= 30:  # more lines than a screen has would only flicker
            for job in jobs:
                label = f"{short(job['id'])} {printable(job['name'])[:40]}"
                self._tasks[job["id"]] = self._bars.add_task(label, total=None, job=job)

    def __enter__(self) -> Bars:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def __call__(self, job: Mapping[str, Any]) -> None:
        task, progress = self._tasks.get(job["id"]), job.get("progress") or {}
        if task is not None:
            total = progress.get("total")
            if job["state"] in FINAL:
                total = total or 1
            self._bars.update(
                task,
                total=total,
                completed=total if job["state"] == "done" else progress.get("committed", 0),
                job=job,
            )
        if self._quiet:
            return
        if job["state"] in FINAL and job["id"] not in self._ended:
            self._ended.add(job["id"])
            self._console.print(Text(ending_line(job), style="green" if job["state"] == "done" else "bold red"))
        elif not self._live and job["state"] == "running" and time.monotonic() - self._told >= PLAIN_EVERY:
            self._told = time.monotonic()
            self._console.print(f"{short(job['id'])} {printable(job['name'])}: {_working(job)}", soft_wrap=True)

    def problems(self, found: Sequence[str]) -> None:
        """Tell what is wrong with the daemon, once while it lasts."""
        for text in found:
            if text not in self._wrong and not self._quiet:
                self._console.print(Text(f"meanwhile: {printable(text)}", style="bold red"))
        self._wrong = set(found)


def _working(job: Mapping[str, Any]) -> str:
    progress = job.get("progress") or {}
    if progress.get("phase") != "working":
        return str(progress.get("phase", job["state"]))
    return f"{frames_text(job)} frames, {progress['rate']:.1f}/s, {clock_text(remaining(job))} left"


class _Phase(ProgressColumn):
    def render(self, task: Task) -> Text:
        job = task.fields["job"]
        if job["state"] == "running":
            return Text(_working(job), style="blue")
        return state_text(job["state"])
