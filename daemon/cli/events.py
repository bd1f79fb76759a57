"""``poseward events``: what happens, one line each."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from daemon.cli.connect import UNDER_WAY, Connection, connected
from daemon.cli.options import as_json

KINDS = ("job", "frame", "stage", "memory", "daemon")
PROGRESS_EVERY = 1.0
"""Seconds between two lines about one job's progress; with --json each event is a line."""


@click.command(
    epilog="""\b
TOPIC is the beginning of what to hear: job, job.ID, stage, stage.mesh, memory, daemon, frame, frame.ID; without
any, all but the frames.
Events may be lost (while the daemon restarts, say): they are for watching; `poseward status` is the truth.

\b
Examples:
  poseward events
  poseward events stage daemon
  poseward events --json job | jq -r '[.topic, .job.state] | @tsv'
  poseward events --json --count 1 memory

\b
Exit codes: 0 after --count events; 2 no daemon, or no such topic; 130 Ctrl-C."""
)
@click.argument("topics", nargs=-1, metavar="[TOPIC…]")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many [never].")
@as_json()
@connected
def events(topics: tuple[str, ...], count: int | None, json_output: bool, connection: Connection) -> None:
    """Print what happens in the running daemon, as it happens."""
    for topic in topics:
        if topic.partition(".")[0] not in KINDS:
            raise click.UsageError(f"no topic {topic!r}; there are {', '.join(KINDS)}")
    with connection.client() as client:
        heard = connection.hearing(client.hello())
    told = Thinned()
    left = count
    try:
        with heard.client() as client:
            for topic, values in client.events(*(topics or ("job", "stage", "memory", "daemon"))):
                if json_output:
                    line: str | None = json.dumps({"topic": topic, **values}, ensure_ascii=False, default=_plain)
                else:
                    line = told.line(topic, values)
                if line is None:
                    continue
                click.echo(line)
                sys.stdout.flush()
                if left is not None and (left := left - 1) == 0:
                    return
    except KeyboardInterrupt:
        sys.exit(UNDER_WAY)


class Thinned:
    """Events in words; of a job that only goes on, a line now and then."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, float]] = {}

    def line(self, topic: str, values: Mapping[str, Any]) -> str | None:
        """None for an event that says nothing new to a person."""
        if topic.startswith("job."):
            job = values["job"]
            phase = f"{job['state']} {(job.get('progress') or {}).get('phase', '')}"
            before, at = self._told.get(topic, ("", 0.0))
            if phase == before and values["time"] - at < PROGRESS_EVERY:
                return None
            self._told[topic] = (phase, values["time"])
            if job["state"] in ("done", "failed", "cancelled"):
                del self._told[topic]
        clock = time.strftime("%H:%M:%S", time.localtime(values["time"]))
        return f"{clock}  {in_words(topic, values)}"


def in_words(topic: str, values: Mapping[str, Any]) -> str:
    """An event for a person: kind, whom it is about, what happened."""
    from daemon.cli.jobs_view import ending_line, frames_text
    from daemon.cli.words import printable, short, size_text

    kind, _, name = topic.partition(".")
    if kind == "job":
        job = values["job"]
        progress = job.get("progress")
        if job["state"] != "running" or not progress:
            return f"job     {ending_line(job)}"
        done = f" {frames_text(job)} frames, {progress['rate']:.1f}/s" if progress["phase"] == "working" else ""
        return f"job     {short(job['id'])} {printable(job['name'])}: {progress['phase']}{done}"
    if kind == "stage":
        fraction = "" if values["fraction"] is None else f" {100 * values['fraction']:.0f} %"
        message = f": {printable(values['message'])}" if values["message"] else ""
        return f"stage   {name} {values['state']}{fraction}{message}"
    if kind == "memory":
        host = values["host"]
        parts = [f"{size_text(host['available'])} of {size_text(host['total'])} available"]
        parts += [f"GPU {gpu['index']} {size_text(gpu['free'])} free" for gpu in values["device"]]
        parts += [f"{process} {size_text(used['rss'])}" for process, used in values["processes"].items()]
        return f"memory  {', '.join(parts)}"
    if kind == "frame":
        record = values["record"]
        tracks = ", ".join(str(track["id"]) for track in record["tracks"])
        failed = f"; failed: {record['failed']['reason']}" if record.get("failed") else ""
        return f"frame   {short(name)} {record['frame']}: tracks {tracks or 'none'}{failed}"
    if kind == "daemon":
        return f"daemon  {values['state']}"
    return f"{topic}  {json.dumps(values, ensure_ascii=False, default=_plain)}"


def _plain(value: Any) -> Any:
    """Arrays' bytes as they can stand in JSON."""
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)
