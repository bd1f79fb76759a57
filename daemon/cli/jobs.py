"""``poseward submit``, ``status``, ``wait``, ``cancel`` and ``retry``: work for a running daemon."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from daemon.cli.connect import LONG_PATIENCE, REFUSED, UNDER_WAY, Connection, connected, console, fail, print_json
from daemon.cli.export import split_names
from daemon.cli.options import as_json

FAILED, TIMEOUT = 1, 3
STATES = ("queued", "running", "done", "failed", "cancelled")


@click.command(
    epilog="""\b
A video is named by its path, as the daemon's machine sees it and below one of its api.roots, or its bytes are
sent with --upload (which goes on where an interrupted upload ended). A video whose content was done before is
done at once, with the earlier results.

\b
Examples:
  poseward submit clip.mp4
  poseward submit --wait *.mp4                 bars until all are done, then a table
  poseward submit --upload ~/Downloads/a.mov   for what is outside of api.roots, or on another machine
  poseward submit --priority 10 --export glb clip.mp4
  poseward submit --job-key shoot-7 clip.mp4   may be repeated: it is the same job
  poseward submit --json clip.mp4 | jq -r '.[].id'

\b
Exit codes: 0 queued, or with --wait all done; 1 a job failed or was cancelled; 2 refused, or no daemon;
130 Ctrl-C while waiting (the jobs go on)."""
)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO…")
@click.option("--upload", is_flag=True, help="Send the bytes instead of the path.")
@click.option("--name", metavar="NAME", help="What to call the job [default: the file's name].")
@click.option(
    "--priority",
    type=click.IntRange(-100, 100),
    default=0,
    metavar="N",
    help="-100 to 100, higher goes first [0].",
)
@click.option("--export", "exports", multiple=True, metavar="NAME",
              help="Make this, or several (bvh,glb), instead of results.exports.")  # fmt: skip
@click.option("--no-exports", is_flag=True, help="Make no exports.")
@click.option("--recompute", is_flag=True, help="Compute anew what was done before.")
@click.option("--stream", type=click.IntRange(0), metavar="N", help="Read this video stream of the file.")
@click.option("--job-key", metavar="TEXT", help="Your own name for this job: submitted again, it is the same job.")
@click.option("--wait", "waiting", is_flag=True, help="Wait until all are done, and show how they go.")
@as_json()
@connected
def submit(
    videos: tuple[str, ...], upload: bool, name: str | None, priority: int, exports: tuple[str, ...],
    no_exports: bool, recompute: bool, stream: int | None, job_key: str | None, waiting: bool, json_output: bool,
    connection: Connection,
) -> None:  # fmt: skip
    """Give videos to the running daemon.

    VIDEO is a video, an image or a folder of numbered images.
    """
    from daemon.client import ClientError

    if len(videos) > 1 and (name is not None or job_key is not None):
        raise click.UsageError("--name and --job-key are for one video at a time")
    if no_exports and exports:
        raise click.UsageError("--no-exports and --export exclude each other")
    asked: dict[str, Any] = {
        "name": name, "priority": priority, "recompute": recompute, "key": job_key,
        "stream": stream,
        "exports": list(split_names(exports)) if exports or no_exports else None,
    }  # fmt: skip
    jobs: list[dict[str, Any]] = []
    refused = False
    with connection.client() as client:
        client.hello()  # with short patience: a person wants to know at once
    with connection.client(30.0) as client:
        for video in videos:
            try:
                job = _send(client, video, asked, upload=upload, quiet=json_output)
            except ClientError as error:
                if error.name in ("timeout", "closed"):
                    raise
                fail(ClientError(error.name, _about(error, video)), connection)
                refused = True
                continue
            jobs.append(job)
            if not json_output and not waiting:
                _print_submitted(job)
    if waiting and jobs:
        sys.exit(_wait_for(connection, jobs, None, json_output=json_output) or (REFUSED if refused else 0))
    if json_output:
        print_json(jobs)
    sys.exit(REFUSED if refused else 0)


def _send(client: Any, video: str, asked: Mapping[str, Any], *, upload: bool, quiet: bool) -> dict[str, Any]:
    from daemon.api.paths import translate
    from daemon.client import ClientError
    from daemon.settings.sources import ConfigError, expand_home

    try:
        path = expand_home(translate(video), "VIDEO").absolute()
    except ConfigError as error:
        raise ClientError("no-such-file", str(error)) from error
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ClientError(
            "bad-request", "its path is not UTF-8: rename it, or put it into the drop folder"
        ) from error
    if not upload:
        return dict(client.submit(str(path), **asked))
    if path.is_dir():
        raise ClientError("bad-request", "a folder cannot be uploaded: submit it by its path, or as a video")
    try:
        return dict(client.submit(upload=_upload(client, path, quiet=quiet), **asked))
    except OSError as error:
        raise ClientError("no-such-file", error.strerror or str(error)) from error


def _upload(client: Any, path: Path, *, quiet: bool) -> str:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from daemon.cli.words import printable

    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, expand=True, transient=True,
                  disable=quiet or not screen.is_terminal) as bars:  # fmt: skip
        task = bars.add_task(f"upload {printable(path.name)}", total=None)
        return str(client.upload(path, lambda done, total: bars.update(task, completed=done, total=total)))


def _about(error: Any, video: str) -> str:
    """What the daemon said about a video, and the way out."""
    from daemon.cli.words import printable

    message = error.message if video in error.message else f"{printable(video)}: {error.message}"
    if error.name == "path-refused" and "api.roots" in error.message:
        return f"{message}: poseward submit --upload {_quoted(video)}"
    if error.name == "no-such-file" and Path(video).exists():
        return f"{message}; it is on this one: poseward submit --upload {_quoted(video)}"
    return str(message)


def _quoted(video: str) -> str:
    import shlex

    word = shlex.quote(video)
    return f"./{word}" if word.startswith("-") else word


def _print_submitted(job: Mapping[str, Any]) -> None:
    from daemon.cli.words import printable, short

    note = ""
    if not job["new"]:
        note = "  (submitted before)"
    elif job["same_as"]:
        note = f"  (the same content as {short(job['same_as'])}; --recompute does it anew)"
    click.echo(f"{job['id']}  {job['state']:<7}  {printable(job['name'])}{note}")


@click.command(
    epilog="""\b
JOB is an id, the beginning of its last part as the table shows it, or a file's name (its newest job).

\b
Examples:
  poseward status                              the newest jobs
  poseward status --state failed --limit 100
  poseward status clip.mp4                     one job and its story
  poseward status --json | jq '.jobs[] | [.id, .state]'

\b
Exit codes: 0; 2 no such job, or no daemon."""
)
@click.argument("jobs", nargs=-1, metavar="[JOB…]")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, metavar="N", help="At most so many [20].")
@as_json()
@connected
def status(
    jobs: tuple[str, ...], states: tuple[str, ...], limit: int, json_output: bool, connection: Connection
) -> None:
    """Show jobs, newest first, or one job in detail."""
    from rich.text import Text

    from daemon.cli.jobs_follow import resolve
    from daemon.cli.jobs_view import counts_line, detail, table
    from daemon.cli.words import printable

    screen = console()
    with connection.client() as client:
        if jobs:
            found = [resolve(client, word) for word in jobs]
            if json_output:
                print_json(found)
            for job in [] if json_output else found:
                detail(job, screen)
            return
        listed = client.list(list(states) or None, limit=limit)
        wrong = client.health()["problems"]
    if json_output:
        print_json({"jobs": listed["jobs"], "counts": listed["counts"], "problems": wrong})
        return
    if listed["jobs"]:
        screen.print(table(listed["jobs"], screen.width))
        screen.print()
    screen.print(counts_line(listed["counts"]))
    for text in wrong:
        screen.print(Text(f"problem: {printable(text)}", style="bold red"))
    if not any(listed["counts"].values()):
        screen.print("poseward submit VIDEO gives it one")


@click.command(
    epilog="""\b
A restart of the daemon in the meantime is only a pause.

\b
Examples:
  poseward wait clip.mp4 && poseward results clip.mp4
  poseward wait --timeout 600 a.mp4 b.mp4
  poseward wait                                all that are queued or running

\b
Exit codes: 0 all done; 1 a job failed or was cancelled; 2 no such job, or no daemon; 3 not done in time;
130 Ctrl-C (the jobs go on)."""
)
@click.argument("jobs", nargs=-1, metavar="[JOB…]")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long [never].")
@as_json()
@connected
def wait(jobs: tuple[str, ...], timeout: float | None, json_output: bool, connection: Connection) -> None:
    """Wait until jobs have ended, and show how they go."""
    from daemon.cli.jobs_follow import LIVE, resolve

    with connection.client() as client:
        found = [resolve(client, word) for word in jobs] if jobs else client.list(LIVE, limit=1000)["jobs"]
    sys.exit(_wait_for(connection, found, timeout, json_output=json_output))


def _wait_for(
    connection: Connection, jobs: Sequence[Mapping[str, Any]], timeout: float | None, *, json_output: bool
) -> int:
    """Show jobs until they have ended; the exit code."""
    from daemon.cli.jobs_follow import FINAL, follow
    from daemon.cli.jobs_view import Bars, table

    try:
        with (
            connection.client(LONG_PATIENCE) as client,
            Bars(console(stderr=True), jobs, quiet=json_output) as bars,
        ):
            ids = [job["id"] for job in jobs]
            latest = list(follow(client, ids, bars, timeout, problems=bars.problems).values())
    except KeyboardInterrupt:
        click.echo("not waiting any more; the jobs go on: `poseward status`", err=True)
        return UNDER_WAY
    if json_output:
        print_json(latest)
    elif latest:
        screen = console()
        screen.print(table(latest, screen.width))
    if any(job["state"] in ("failed", "cancelled") for job in latest):
        return FAILED
    if any(job["state"] not in FINAL for job in latest):
        click.echo(f"not done after {timeout:g} s: `poseward wait` goes on waiting", err=True)
        return TIMEOUT
    return 0


@click.command(
    epilog="""\b
What was done of it is kept: `poseward retry` goes on from there.

\b
Examples:
  poseward cancel clip.mp4
  poseward cancel 3fa2 91bc

\b
Exit codes: 0 cancelled; 1 it had ended before; 2 no such job, or no daemon."""
)
@click.argument("jobs", nargs=-1, required=True, metavar="JOB…")
@as_json()
@connected
def cancel(jobs: tuple[str, ...], json_output: bool, connection: Connection) -> None:
    """Cancel jobs that are queued or running."""
    from daemon.cli.jobs_follow import resolve

    with connection.client() as client:
        ended = [client.cancel(resolve(client, word)["id"]) for word in jobs]
    _print_changed(ended, json_output=json_output)
    sys.exit(0 if all(job["state"] == "cancelled" for job in ended) else FAILED)


@click.command(
    epilog="""\b
Finished frames are not computed again.

\b
Examples:
  poseward retry clip.mp4
  poseward retry 3fa2 --wait

\b
Exit codes: 0 queued, or with --wait done; 1 it failed again; 2 it is done, there is no such job, or no daemon."""
)
@click.argument("jobs", nargs=-1, required=True, metavar="JOB…")
@click.option("--wait", "waiting", is_flag=True, help="Wait until all are done.")
@as_json()
@connected
def retry(jobs: tuple[str, ...], waiting: bool, json_output: bool, connection: Connection) -> None:
    """Queue failed or cancelled jobs again."""
    from daemon.cli.jobs_follow import resolve

    with connection.client() as client:
        again = [client.retry(resolve(client, word)["id"]) for word in jobs]
    if waiting:
        sys.exit(_wait_for(connection, again, None, json_output=json_output))
    _print_changed(again, json_output=json_output)


def _print_changed(jobs: Sequence[Mapping[str, Any]], *, json_output: bool) -> None:
    from daemon.cli.words import printable

    if json_output:
        print_json(list(jobs))
        return
    for job in jobs:
        click.echo(f"{job['id']}  {job['state']:<9}  {printable(job['name'])}")
