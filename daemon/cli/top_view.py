"""What ``poseward top`` has seen, and the screen made of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemon.cli.events import in_words
from daemon.cli.health import exit_text, happened, problems, process_state, processes, verdict, way_out
from daemon.cli.jobs_view import WIDE, counts_line, frames_text, progress_text
from daemon.cli.progress import Rate, clock_text
from daemon.cli.words import age_text, bar, level_style, printable, remaining, short, size_text

NARROW = 72
"""Columns below which even more is left out than below `WIDE`."""
LINES = 8
"""Events kept for the last part of the screen."""
COUNTS = {"decode": "decoded", "detect": "detected", "mesh": "meshed", "track": "committed"}
"""Which of a job's counts tells what a stage has done."""
NEWS = ("died", "failed", "circuit open", "waiting", "ready", "corrupt message", "stalled", "skipping")
"""States of a stage that are worth a line; loading and warming are seen in the table."""


@dataclass
class Watched:
    """What has been seen of one daemon. ``clock`` is monotonic, in seconds."""

    address: str
    clock: Callable[[], float] = time.monotonic
    health: Mapping[str, Any] | None = None
    seen: float | None = None
    """When the last answer came."""
    silence: str = ""
    """Why there is none now, and since when."""
    rates: dict[tuple[str, str], Rate] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))

    def answered(self, health: Mapping[str, Any]) -> None:
        """The daemon's newest answer."""
        if self.health is not None and self.health["daemon"] != health["daemon"]:
            self.events.append(f"{_now()}  daemon  restarted")
            self.rates.clear()
        self.health, self.seen, self.silence = health, self.clock(), ""
        running = {(job["id"], stage) for job in health["jobs"] for stage in COUNTS}
        for gone in self.rates.keys() - running:
            del self.rates[gone]
        for job in health["jobs"]:
            progress = job.get("progress")
            if progress and progress["phase"] == "working":
                for stage, count in COUNTS.items():
                    self.rates.setdefault((job["id"], stage), Rate(self.clock)).update(progress[count])

    def silent(self, reason: str) -> None:
        """It did not answer."""
        if not self.silence:
            self.silence = f"no answer since {_now()}: {reason}"

    def heard(self, topic: str, values: Mapping[str, Any]) -> None:
        """An event of a stage or of the daemon."""
        if topic.startswith("stage.") and values["state"] not in NEWS:
            return
        clock = time.strftime("%H:%M:%S", time.localtime(values["time"]))
        self.events.append(f"{clock}  {in_words(topic, values)}")

    def rate(self, stage: str) -> float | None:
        """Frames a second that a stage did in the last seconds, over all jobs."""
        found = [rate.per_second for (_, name), rate in self.rates.items() if name == stage]
        known = [value for value in found if value is not None]
        return sum(known) if known else None


def screen(watched: Watched, width: int = 100, height: int = 100) -> RenderableType:
    """The whole screen; what does not fit into ``height`` lines is left away from the jobs and events, and narrow
    screens go without some columns."""
    health = watched.health
    if health is None:
        return Group(
            Text("poseward", style="bold"), Text(watched.silence or f"asking {watched.address} …"), _keys()
        )
    old = "dim" if watched.silence else ""
    memory = _memory(health)
    stages = _stages(watched, health, width)
    parts: list[RenderableType] = [_head(watched, health), memory, Text(""), stages, Text("")]
    left = height - 8 - memory.row_count - stages.row_count  # the other lines of head, table, queue and foot
    if (cluster := health.get("cluster")) is not None:
        stations = _cluster(cluster)
        parts += [stations, Text("")]
        left -= stations.row_count + 1
    jobs = health["jobs"][: max(1, left // 2)]
    parts.append(_queue(health, len(health["jobs"]) - len(jobs)))
    if jobs:
        parts += [_jobs(jobs, width), Text("")]
    parts += _news(watched, health, max(1, left - len(jobs)))
    for part in parts if old else ():
        if isinstance(part, Table):
            part.style = old
    return Group(*parts, _keys())


def _head(watched: Watched, health: Mapping[str, Any]) -> RenderableType:
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    text, style = verdict(health)
    right = f"{health['backend']}, up {age_text(health['uptime'])}  {_now()}"
    if watched.silence:
        text, style, right = watched.silence, "bold red", _now()
    left = Text.assemble(("poseward ", "bold"), health["poseward"], "  ", (text, style))
    grid.add_row(left, Text(right, style="dim"))
    return grid


def _memory(health: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim", overflow="ellipsis", no_wrap=True)
    memory = health["memory"]
    levels = [("host memory", memory["total"], memory["available"], "")]
    levels += [(f"GPU {gpu['index']} memory", gpu["total"], gpu["free"], gpu["name"]) for gpu in memory["device"]]
    for label, total, free, note in levels:
        used = total - free
        part = used / total if total else 0.0
        amount = f"{size_text(used)} / {size_text(total)}"
        grid.add_row(label, bar(part, 24, level_style(part)), amount, note)
    return grid


def _stages(watched: Watched, health: Mapping[str, Any], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_edge=False, padding=(0, 1, 0, 0))
    listed = processes(health)
    left_out = ({"pid", "last exit"} if width < WIDE else set()) | ({"GPU", "batch"} if width < NARROW else set())
    if all(process["device_used"] is None for _, process in listed):
        left_out.add("GPU")
    columns: dict[str, dict[str, Any]] = {
        "stage": {"style": "bold"},
        "state": {"overflow": "ellipsis", "ratio": 2, "min_width": 12},
        "pid": {"justify": "right"},
        "frames/s": {"justify": "right"},
        "batch": {"justify": "right"},
        "memory": {},
        "GPU": {"justify": "right"},
        "restarts": {"justify": "right"},
        "last exit": {"overflow": "ellipsis", "ratio": 3, "style": "dim"},
    }
    for name, how in columns.items():
        if name not in left_out:
            table.add_column(name, no_wrap=True, **how)
    largest = max((process["peak_rss"] or process["rss"] for _, process in listed), default=0) or 1
    told = set()
    for name, process in listed:
        stage = process["stage"]
        rate = None if stage in told else watched.rate(stage)  # replicas share their stage's
        told.add(stage)
        state = process_state(process)
        if process["stale"]:
            state.append(" stale", style="bold yellow")
        batch = process["metrics"].get("batch")
        cells = {
            "stage": name,
            "state": state,
            "pid": str(process["pid"] or "-"),
            "frames/s": "-" if rate is None else f"{rate:.1f}",
            "batch": "-" if batch is None else f"{batch:.0f}",
            "memory": Text.assemble(bar(process["rss"] / largest, 6, "cyan"), f" {_rss(process):>7}"),
            "GPU": size_text(process["device_used"]),
            "restarts": Text(str(process["restarts"]), style="bold yellow" if process["restarts"] else ""),
            "last exit": exit_text(process),
        }
        table.add_row(*(cell for column, cell in cells.items() if column not in left_out))
    return table


def _rss(process: Mapping[str, Any]) -> str:
    return size_text(process["rss"] or None)


def _cluster(cluster: Mapping[str, Any]) -> Table:
    """The other machines: what each does, and how much of each job has come back."""
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row("cluster", f"{cluster['address']}: {cluster['state']}", f"{len(cluster['stations'])} stations")
    for station in cluster["stations"]:
        doing = f"refused: {station['refusal']}" if station["refusal"] else station["doing"] or "idle"
        host = printable(station["host"]) or "starting"
        grid.add_row(f"  {host}", printable(doing), f"{station['segments']} segments")
    for job, found in cluster["jobs"].items():
        back = f"{found['done']}/{found['segments']} segments"
        grid.add_row(f"  {short(job)}", f"{found['frames']} frames back", back)
    return grid


def _queue(health: Mapping[str, Any], hidden: int) -> Text:
    text = Text.assemble(("jobs  ", "bold"), counts_line(health["queue"]), no_wrap=True, overflow="ellipsis")
    if hidden > 0:
        text.append(f" ({hidden} more run)", style="dim")
    if health["draining"]:
        text.append("  draining: none is begun", style="bold yellow")
    return text


def _jobs(jobs: list[Mapping[str, Any]], width: int) -> Table:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(no_wrap=True)
    for _ in range(3):
        grid.add_column(justify="right", no_wrap=True)
    for job in jobs:
        progress = job.get("progress") or {}
        rate = f"{progress['rate']:.1f}/s" if progress.get("rate") else "-/s"
        grid.add_row(
            f"  {short(job['id'])}",
            printable(job["name"]),
            progress_text(job, 28 if width >= WIDE else 10),
            frames_text(job),
            rate,
            f"{clock_text(remaining(job))} left",
        )
    return grid


def _news(watched: Watched, health: Mapping[str, Any], room: int) -> list[RenderableType]:
    found: list[RenderableType] = [
        Text(f"! {line}{way_out(line)}", style="bold red", no_wrap=True, overflow="ellipsis")
        for line in problems(health)[:room]
    ]
    # The daemon remembers what happened before this screen was opened; since then, events say it.
    lines = list(watched.events) or [line.replace(" ", "  ", 1) for line in happened(health)]
    rest = max(0, room - len(found))
    if lines and rest:
        found += [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines[-rest:]]
    return found


def _keys() -> Text:
    return Text("Ctrl-C leaves", style="dim")


def _now() -> str:
    return time.strftime("%H:%M:%S")
