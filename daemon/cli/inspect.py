"""``poseward inspect``: a results folder in a short table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from daemon.cli.options import as_json


@click.command(
    epilog="""\b
Examples:
  poseward inspect results/clip
  poseward inspect --subject 320,180@45 results/clip     who stands there
  poseward inspect --json results/clip | jq .people"""
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--subject", default="auto", metavar="WHO", help="Who is meant: auto, a track's ID, x,y@frame, or all."
)
@as_json()
def inspect(folder: Path, subject: str, json_output: bool) -> None:
    """Show what stands in a results folder: frames, people, who of them matters most, tracks and files.

    Reads frames.msgpack from end to end, so that a damaged file is noticed.
    """
    from daemon.cli.words import counted
    from daemon.jobs.summary import SummaryError, read_summary
    from daemon.motion.subject import SubjectError
    from stages.results import ResultsError

    try:
        summary = read_summary(folder)
        found = {**_read(folder), **_people(folder, subject)}
    except (SummaryError, ResultsError, SubjectError) as error:
        raise click.ClickException(str(error)) from error
    if found["frames"] != summary["frames"]:
        raise click.ClickException(
            f"{folder}: frames.msgpack has {counted(found['frames'], 'frame')}, the summary says {summary['frames']}"
        )
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    if json_output:
        click.echo(json.dumps({**found, "files": files, "summary": summary}, indent=2))
        return
    _print(folder, summary, found, files)


def _read(folder: Path) -> dict[str, Any]:
    from stages.results import read_results

    tracks: dict[int, dict[str, Any]] = {}
    frames = failed = 0
    with read_results(folder) as results:
        for record in results:
            frames += 1
            failed += record.failed is not None
            for track in record.tracks:
                row = tracks.setdefault(track.id, {"id": track.id, "first": record.frame, "frames": 0, "sum": 0.0})
                row["last"] = record.frame
                row["frames"] += 1
                row["sum"] += track.confidence
        header = results.header
    for row in tracks.values():
        row["confidence"] = round(row.pop("sum") / row["frames"], 3)
    return {
        "width": header.width,
        "height": header.height,
        "fps": header.fps,
        "backend": header.backend,
        "faces": len(header.faces),
        "frames": frames,
        "failed": failed,
        "tracks": list(tracks.values()),
    }


def _people(folder: Path, subject: str) -> dict[str, Any]:
    """Who the tracks are: people with the tracks that each one is, and the subject's id (docs/motion.md)."""
    from daemon.jobs.summary import FRAMES
    from daemon.motion.options import MotionOptions
    from daemon.motion.people import read_motion

    motion = read_motion(folder / FRAMES, MotionOptions(subject=subject, smooth=False))
    people = []
    for person in motion.people:
        standing = {name: round(value, 3) for name, value in vars(person.standing).items()}
        filled = int(person.filled.sum())
        people.append(
            {
                "id": person.id,
                "tracks": list(person.tracks),
                "frames": len(person.frames),
                "filled": filled,
                **standing,
            }
        )
    return {"people": people, "subject": motion.subject}


def _print(folder: Path, summary: dict[str, Any], found: dict[str, Any], files: dict[str, int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from daemon.cli.words import counted

    console = Console(highlight=False, markup=False, emoji=False)
    console.print(
        f"{folder}: {counted(found['frames'], 'frame')} of {found['width']}x{found['height']} at {found['fps']:g}/s "
        f"from {summary['input']['name']}, by {found['backend']}"
    )
    if found["failed"]:
        console.print(f"{counted(found['failed'], 'frame')} failed; summary.json says why")
    if summary["truncated"]:
        console.print(f"the input ends early: {summary['truncated']}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("track", "first", "last", "frames", "confidence"):
        table.add_column(name, justify="right")
    for row in found["tracks"]:
        table.add_row(
            str(row["id"]), str(row["first"]), str(row["last"]), str(row["frames"]), f"{row['confidence']:.2f}"
        )
    console.print(table)
    for person in found["people"]:
        tracks = ", ".join(map(str, person["tracks"]))
        mark = "  the subject" if person["id"] == found["subject"] else ""
        console.print(
            f"person {person['id']}: tracks {tracks}; {counted(person['frames'], 'frame')}, {person['filled']} filled; "
            f"score {person['score']:.3f} (time {person['time']:.2f}, size {person['size']:.2f}, "
            f"centre {person['centre']:.2f}, motion {person['motion']:.2f}){mark}"
        )
    for name, size in files.items():
        console.print(f"{size:>12,}  {name}")
