"""``poseward retention``."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from daemon.cli.options import as_json, configured
from daemon.settings.loading import Loaded


@click.command(
    epilog="""\b
Examples:
  poseward retention                                    with the settings in force
  poseward retention --set retention.results_days=30    what another setting would do
  poseward retention --json | jq 'map(.size) | add'

\b
`poseward serve` does the removing, at its start and every ten minutes; docs/operations.md says what is never removed.
Exit codes: 0; 1 there is no job store, or it cannot be read."""
)
@as_json()
@configured
def retention(loaded: Loaded, json_output: bool) -> None:
    """Show what the daemon would remove now, and why. Removes nothing."""
    from daemon.jobs.results_folder import ResultsFolder
    from daemon.jobs.store import FILE, JobStore, StoreError
    from daemon.retention.clock import FILE as CLOCK
    from daemon.retention.clock import CredibleClock
    from daemon.retention.retention import Daemon, Retention
    from daemon.settings.addresses import state_folder
    from daemon.telemetry.logs import path_of

    state = state_folder(loaded.settings)
    if not (state / FILE).is_file():
        raise click.ClickException(f"no job store in {state}: it is made by `poseward serve` (daemon.state)")
    results = Path(loaded.settings.results.folder).expanduser().absolute()
    try:
        store = JobStore(state)
        try:
            nobody = Daemon(_not_here, tuple, lambda _: None, lambda _: (), lambda _kind, _size: None)
            log = path_of(loaded.settings)
            clock = CredibleClock(state / CLOCK, store.newest(), keep=False)
            home = ResultsFolder(results, state)
            found = Retention(
                store, loaded.settings.retention, results, nobody, log=log, clock=clock, away=home.away
            ).plan()
        finally:
            store.close()
    except StoreError as error:
        raise click.ClickException(f"{error.name}: {error}") from error
    for doubt in (clock.doubt, home.away()):
        if doubt is not None:
            click.echo(doubt, err=True)
    if json_output:
        shown = [{**asdict(one), "path": None if one.path is None else str(one.path)} for one in found]
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for one in found:
        click.echo(f"{one.kind:8} {one.size / 1e6:10.1f} MB  {one.path or one.job}: {one.reason}")
    total = sum(one.size for one in found)
    click.echo(f"{len(found)} to remove, {total / 1e6:.1f} MB" if found else "nothing to remove")


def _not_here(work: Any) -> Future[Any]:  # noqa: ARG001  (a loop is called so)
    raise AssertionError("a plan changes nothing")
