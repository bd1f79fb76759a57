"""``poseward serve``."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from daemon.cli.options import configured
from daemon.settings.loading import ConfigError, Loaded
from daemon.settings.schema import Settings

if TYPE_CHECKING:
    from daemon.assembly import PipelineFactory

PASSING = ("disk-full", "store-locked")
"""What a later start may find mended: systemd tries again after exit code 1, and never after 2."""
AGAIN = 1


@click.command(
    epilog="""\b
What it does:
  Loads the models once, takes jobs from the drop folder (drop.folder) and over ZeroMQ (api.address), and
  works on them one after the other. Every job stands in a store on disk: whatever ends the daemon, the
  next one goes on where it was.

\b
Examples:
  poseward serve --set drop.folder=~/videos/inbox --set results.folder=~/videos/results
  poseward serve --config /etc/poseward/poseward.toml
  poseward submit clip.mp4            in another terminal
  poseward top                        and watch

\b
Ctrl-C or SIGTERM stops it in order (jobs in work are continued next time); twice kills.
Exit codes: 0 stopped; 1 a defect, or the job store's disk is full, or it is locked: start again later; 2 wrong
configuration or a folder that cannot be used."""
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@configured
def serve(loaded: Loaded, verbose: bool) -> None:
    """Run as a service: drop folder, API, job store."""
    from daemon.telemetry import logs

    settings = loaded.settings.daemon
    path, kept, problem = logs.path_of(loaded.settings), None, ""
    try:
        kept = logs.RotatingFile(path, settings.log_mb << 20)
    except OSError as error:
        problem = f"{path}: {error.strerror}: this log is kept nowhere (daemon.log_file)"
    logs.configure("debug" if verbose else settings.log_level, keep=kept)
    # Before anything heavy is imported: a daemon that hangs in an import has said so.
    log = logs.get("daemon")
    log.info("starting", pid=os.getpid(), python=sys.executable, config=str(loaded.file or "defaults"))
    if problem:
        log.warning("log", message=problem)
    if crash := logs.watch_crashes(path.parent):
        log.error("crashed", message="the daemon before this one crashed natively", stack_dump=crash)
    try:
        sys.exit(execute(loaded))
    except ConfigError:
        raise
    except Exception:
        log.exception("defect", message="the daemon ends; please report this")
        raise
    finally:
        if kept is not None:
            kept.close()


def _factory(settings: Settings) -> PipelineFactory:
    """What makes the pipeline: one of this machine, or one that gives work to others."""
    if not settings.cluster.address:
        from stages.owner.pipeline import Pipeline

        return Pipeline
    from daemon.cluster.pipeline import ClusterPipeline

    return partial(ClusterPipeline, cluster=settings.cluster)


def execute(loaded: Loaded) -> int:
    """Serve until a signal; returns the exit code."""
    from daemon.cli.export import check_names, drawing, exporter
    from daemon.exports import EXPORTS
    from daemon.jobs.store import StoreError
    from daemon.serve import Service
    from daemon.service.notify import Notifier
    from daemon.telemetry import logs
    from stages.protocols import ConfigurationError, find_backend
    from stages.transport.ring import RingError
    from supervisor.runtime import RuntimePathError

    settings = loaded.settings

    try:
        exports = [*EXPORTS, *find_backend(settings.stages.backend).exports]
        check_names(settings.results.exports, settings.stages.backend)
        beside = drawing(loaded)
        notifier = Notifier.from_environment(os.environ)
        service = Service(
            loaded, exporter(loaded, beside), exports, notifier, factory=_factory(settings), beside=beside
        )
    except (ConfigError, ConfigurationError, StoreError, RingError, RuntimePathError) as error:
        logs.get("daemon").error("cannot start", message=str(error))
        if isinstance(error, StoreError) and error.name in PASSING:
            click.echo(f"poseward: {error.name}: {error}", err=True)
            return AGAIN
        raise ConfigError(str(error)) from error
    asked = 0

    def handle(number: int, _frame: object) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            os._exit(128 + number)  # the janitor ends the stages
        service.stop(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)
    try:
        service.run()
    finally:
        beside.close()
    return 0
