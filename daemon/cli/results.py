"""``poseward results``: what a job of the running daemon has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from daemon.cli.connect import Connection, connected, console, print_json
from daemon.cli.options import as_json


@click.command(
    epilog="""\b
Examples:
  poseward results clip.mp4                         what was found, and where it lies
  poseward results clip.mp4 --download out          all files, from whatever machine
  poseward results clip.mp4 --download . --file overlay.mp4
  poseward results clip.mp4 --json | jq .summary

\b
Exit codes: 0; 2 the job is not done, its results are gone, there is no such job or file, or no daemon."""
)
@click.argument("job", metavar="JOB")
@click.option(
    "--download", type=click.Path(path_type=Path), metavar="DIR", help="Fetch the files into this folder."
)
@click.option("--file", "names", multiple=True, metavar="NAME", help="Only this file; may be repeated.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@as_json()
@connected
def results(
    job: str, download: Path | None, names: tuple[str, ...], force: bool, json_output: bool, connection: Connection
) -> None:
    """Show the results of a job that is done, and fetch them."""
    from daemon.cli.jobs_follow import resolve
    from daemon.client import ClientError

    if names and download is None:
        raise click.UsageError("--file says what to fetch: say where to with --download DIR")
    with connection.client() as client:
        found = client.results(resolve(client, job)["id"])
        there = {file["name"]: file["bytes"] for file in found["files"]}
        for name in names:
            if name not in there:
                raise ClientError("no-such-file", f"the results have no {name!r}; there are {', '.join(there)}")
        if download is not None:
            try:
                _download(
                    client, found["job"]["id"], download, list(names or there), force=force, quiet=json_output
                )
            except OSError as error:
                raise ClientError("cannot-write", f"{error.filename or download}: {error.strerror}") from error
    if json_output:
        print_json({name: found[name] for name in ("job", "summary", "folder", "files")})
        return
    if download is None:
        _print_results(found)


def _download(client: Any, job: str, folder: Path, names: Sequence[str], *, force: bool, quiet: bool) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from daemon.client import ClientError

    folder.mkdir(parents=True, exist_ok=True)
    taken = [name for name in names if (folder / name).exists()]
    if taken and not force:
        raise ClientError("exists", f"{folder / taken[0]} is there already: --force replaces it")
    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, expand=True, transient=True,
                  disable=quiet or not screen.is_terminal) as bars:  # fmt: skip
        for name in names:
            task = bars.add_task(name, total=None)

            def told(done: int, total: int, task: Any = task) -> None:
                bars.update(task, completed=done, total=total)

            path = client.download(job, name, folder / name, told)
            if not quiet:
                click.echo(str(path))


def _print_results(found: Mapping[str, Any]) -> None:
    from daemon.cli.progress import span_text
    from daemon.cli.words import counted, printable, size_text

    summary, screen = found["summary"], console()
    source = summary["input"]
    size = f" of {source['width']}x{source['height']}" if "width" in source else ""
    screen.print(
        f"{printable(source['name'])}: {counted(summary['frames'], 'frame')}{size}, by {summary['backend']}"
    )
    facts = [
        counted(summary[name], one, name)
        for name, one in (("people", "person"), ("tracks", "track"))
        if name in summary
    ]
    facts += [counted(len(summary[name]), one) for name, one in
              (("failed_frames", "failed frame"), ("restarts", "restart")) if summary.get(name)]  # fmt: skip
    if "wall_seconds" in summary:
        facts.append(f"in {span_text(summary['wall_seconds'])}")
    screen.print(", ".join(facts))
    if summary.get("truncated"):
        screen.print(f"the input ends early: {summary['truncated']}")
    if found["job"]["message"]:
        screen.print(found["job"]["message"], style="red")
    screen.print(f"results: {found['folder']}", soft_wrap=True)
    for file in found["files"]:
        screen.print(f"{size_text(file['bytes']):>9}  {file['name']}")
