"""``poseward top``: a live screen of the running daemon."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import click

from daemon.cli.connect import Connection, connected, console, print_json
from daemon.cli.options import as_json

EVERY = 1.0
"""Seconds between two looks at the daemon."""
MEASURE = 0.5
"""Seconds between the two looks of --once from which rates are measured."""
SILENT = 1.0


@click.command(
    epilog="""\b
Stages: state, frames a second over the last ten seconds, size of the batches, memory beside the largest of them,
how often each was restarted and why it last ended. Jobs: how far, how fast, how long still. A daemon that is
restarted is waited for.

\b
Examples:
  poseward top
  poseward top --once                 one screen, for a script or a report
  poseward top --once --json          the same as a program reads it

\b
Exit codes: 0, after Ctrl-C too; 2 no daemon at the start."""
)
@click.option("--once", is_flag=True, help="Print one screen and end.")
@as_json()
@connected
def top(once: bool, json_output: bool, connection: Connection) -> None:
    """Watch the running daemon: stages, jobs, memory."""
    if json_output and not once:
        raise click.UsageError("--json is for --once; `poseward events --json` goes on")
    if once or not sys.stdout.isatty():
        _print_once(connection, json_output=json_output)
        return
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_live(connection))


def _print_once(connection: Connection, *, json_output: bool) -> None:
    import time

    from daemon.cli.top_view import COUNTS, Watched, screen

    watched = Watched(connection.address)
    with connection.client() as client:
        watched.answered(client.health())
        if watched.health is not None and watched.health["jobs"]:
            time.sleep(MEASURE)
            watched.answered(client.health())
    if json_output:
        rates = {stage: watched.rate(stage) for stage in COUNTS}
        print_json({**(watched.health or {}), "rates": rates})
    else:
        output = console()
        output.print(screen(watched, output.width))


async def _live(connection: Connection) -> None:
    """Show the screen until somebody has seen enough."""
    from rich.live import Live

    from daemon.cli.top_view import Watched, screen

    watched = Watched(connection.address)
    async with connection.async_client() as client:
        hello = await client.hello()
        watched.answered(await client.health())
        hearing = connection.hearing(hello).async_client(probe=False)
        async with hearing:
            tasks = [asyncio.create_task(_ask(client, watched)), asyncio.create_task(_hear(hearing, watched))]
            output = console()
            try:
                with Live(console=output, screen=True, auto_refresh=False) as live:
                    while True:
                        live.update(screen(watched, output.width, output.height), refresh=True)
                        await asyncio.wait(tasks, timeout=EVERY, return_when=asyncio.FIRST_EXCEPTION)
                        for task in tasks:
                            if task.done():
                                task.result()  # raises what ended it
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(client: Any, watched: Any) -> None:
    """Look at the daemon every second, for ever."""
    from daemon.client import ClientError

    while True:
        asking = asyncio.ensure_future(client.health())
        done, _ = await asyncio.wait({asking}, timeout=SILENT)
        if not done:
            watched.silent("it is restarting, or busy; this goes on by itself")
        try:
            watched.answered(await asking)
        except ClientError as error:
            watched.silent(error.name)
        await asyncio.sleep(EVERY)


async def _hear(client: Any, watched: Any) -> None:
    async for topic, values in client.events("stage", "daemon"):
        watched.heard(topic, values)
