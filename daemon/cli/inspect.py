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
  poseward inspect --json results/clip | jq .tracks"""
)
@click.argument("folder", type=click.Path(path_type=Path))
@as_json()
def inspect(folder: Path, json_output: bool) -> None:
    """Show what stands in a results folder: frames, people, tracks and files.

    Reads frames.msgpack from end to end, so that a damaged file is noticed.
    """
    from daemon.cli.words import counted
    from daemon.jobs.summary import SummaryError, read_summary
    from stages.results import ResultsError

    try:
        summary = read_summary(folder)
        found = _read(folder)
    except (SummaryError, ResultsError) as error:
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
    for name, size in files.items():
        console.print(f"{size:>12,}  {name}")
