"""``poseward logs``."""

from __future__ import annotations

import contextlib
import json
import time

import click

from daemon.cli.options import as_json, configured
from daemon.settings.loading import Loaded
from daemon.telemetry.logs import LEVELS


@click.command(
    epilog="""\b
Examples:
  poseward logs                          everything the daemon has logged
  poseward logs clip.mp4                 the story of the latest job of that name
  poseward logs 20260301-1412            a job by the beginning of its id
  poseward logs --level warning --since 1d
  poseward logs --stage mesh --follow
  poseward logs clip.mp4 --json | jq .   the lines as they stand in the file

\b
A job's story has every line that names it, and what happened to the stages while it was in work. Under systemd
the same lines stand in the journal: journalctl -u poseward -o cat.
Exit codes: 0; 1 there is no such job, or no log."""
)
@click.argument("job", required=False)
@click.option(
    "--stage", metavar="NAME", help="Only lines about this stage or process: decode, detect, mesh, mesh.0, …"
)
@click.option("--level", type=click.Choice(list(LEVELS)), help="Only lines at least this important.")
@click.option("--since", metavar="TIME", help="Only lines since 30m, 1h, 2d ago, or since 2026-03-01 14:30.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@as_json()
@configured
def logs(
    loaded: Loaded,
    job: str | None,
    stage: str | None,
    level: str | None,
    since: str | None,
    follow: bool,
    json_output: bool,
) -> None:
    """Show one job's story across all processes, or the whole log."""
    from daemon.telemetry import story
    from daemon.telemetry.logs import files, path_of

    path = path_of(loaded.settings)
    try:
        if not follow and not files(path):
            raise story.StoryError(f"no log at {path}: it is written by `poseward serve` (daemon.state)")
        wanted = story.Wanted(
            job=None if job is None else story.find_job(story.read(path), job),
            stage=stage,
            level=level,
            since=None if since is None else story.since(since, time.time()),
        )
    except story.StoryError as error:
        raise click.ClickException(str(error)) from error
    chosen = story.Story(wanted)
    with contextlib.suppress(KeyboardInterrupt):
        for line in story.follow(path) if follow else story.read(path):
            if line in chosen:
                click.echo(json.dumps(line, ensure_ascii=False) if json_output else story.show(line, wanted.job))
