"""``poseward health``, ``reset``, ``reload`` and ``drain``: how the daemon is, and what an operator does about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from daemon.cli.connect import LONG_PATIENCE, UNDER_WAY, Connection, connected, console, print_json
from daemon.cli.options import as_json

PROBLEMS, TIMEOUT = 1, 3
EVERY = 0.5


@click.command(
    epilog="""\b
A stage that crashed and was restarted is told below "happened"; it is no problem any more.

\b
Examples:
  poseward health
  poseward health --json | jq .processes.mesh.state
  poseward health >/dev/null || alert           in a script

\b
Exit codes: 0 well; 1 problems, or the stages are not ready yet; 2 no answer."""
)
@as_json()
@connected
def health(json_output: bool, connection: Connection) -> None:
    """Say whether the running daemon is well."""
    with connection.client() as client:
        found = client.health()
    if json_output:
        print_json(found)
    else:
        _print(found)
    sys.exit(PROBLEMS if problems(found) or not found["ready"] else 0)


def problems(found: Mapping[str, Any]) -> list[str]:
    """What is wrong now."""
    return list(found["problems"])


def drop_text(drop: Mapping[str, Any]) -> str:
    """The drop folder in one line."""
    told = "told by the kernel" if drop["watching"] == "kernel" else "looked into every few seconds"
    return f"{drop['folder']} ({told}): {drop['incomplete']} coming in, {drop['claimed']} taken"


def happened(found: Mapping[str, Any]) -> list[str]:
    """What went wrong lately and was mended."""
    return list(found.get("incidents", ()))


def processes(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The daemon's processes in the order in which a frame passes them."""
    from stages.settings import STAGES

    return sorted(found["processes"].items(), key=lambda item: (STAGES.index(item[1]["stage"]), item[0]))


def verdict(found: Mapping[str, Any]) -> tuple[str, str]:
    """The daemon's state in a few words, and their colour."""
    from daemon.cli.words import counted

    if wrong := problems(found):
        return counted(len(wrong), "problem"), "bold red"
    if not found["ready"]:
        waiting = [name for name, process in processes(found) if process["state"] != "ready"]
        return f"not ready: {', '.join(waiting)}", "bold yellow"
    return ("draining", "bold yellow") if found["draining"] else ("well", "bold green")


def _print(found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from daemon.cli.jobs_view import counts_line
    from daemon.cli.words import age_text, bar, level_style, size_text

    screen = console()
    text, style = verdict(found)
    screen.print(Text.assemble(
        ("poseward ", "bold"), found["poseward"], ": ", (text, style),
        (f"   up {age_text(found['uptime'])}, backend {found['backend']}", "dim"),
    ))  # fmt: skip
    screen.print(_table(found))
    screen.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    memory = found["memory"]
    levels = [("memory", memory["total"], memory["available"], "")]
    levels += [(f"GPU {gpu['index']}", gpu["total"], gpu["free"], f"  {gpu['name']}") for gpu in memory["device"]]
    for label, total, free, note in levels:
        used = total - free
        part = used / total if total else 0.0
        facts.add_row(label, Text.assemble(
            bar(part, 24, level_style(part)), f" {size_text(used)} of {size_text(total)} in use{note}"
        ))  # fmt: skip
    facts.add_row("jobs", counts_line(found["queue"]))
    facts.add_row("requests", found["api"]["requests"])
    facts.add_row("events", found["api"]["events"])
    if found["drop"] is not None:
        facts.add_row("drop folder", drop_text(found["drop"]))
    if found["draining"]:
        facts.add_row("draining", "no job is begun: `poseward drain --off` ends that")
    screen.print(facts)
    for label, texts, colour in (("problems", problems(found), "red"), ("happened", happened(found), "dim")):
        if texts:
            screen.print(f"\n{label}", style="bold")
        for line in texts:
            screen.print(Text(f"  {line}{way_out(line)}", style=colour))


def way_out(problem: str) -> str:
    """What to do about a problem that does not say so itself."""
    name, _, rest = problem.partition(": ")
    if rest.startswith("open circuit"):
        return f"; when its cause is gone: `poseward reset {name.partition('-')[0]}`"
    return ""


def _table(found: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from daemon.cli.words import size_text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True, style="bold")
    table.add_column("state")
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("device", no_wrap=True)
    table.add_column("code", no_wrap=True)
    table.add_column("restarts", justify="right", no_wrap=True)
    table.add_column("last exit", overflow="fold", style="dim")
    for name, process in processes(found):
        device = process["device"] or ""
        if process["device_used"] is not None:
            device += f" {size_text(process['device_used'])}"
        code = Text((process["fingerprint"] or "")[:8], style="dim")
        if process["stale"]:
            code.append(" stale", style="bold yellow")
        table.add_row(
            name,
            process_state(process),
            str(process["pid"] or "-"),
            size_text(process["rss"] or None),
            device,
            code,
            str(process["restarts"]),
            exit_text(process),
        )
    return table


def process_state(process: Mapping[str, Any]) -> Any:
    """State, with how far it is or why while it is not ready; what is a problem is told among the problems."""
    from daemon.cli.words import state_text
    from daemon.telemetry.health import TROUBLED

    text = state_text(process["state"])
    if process["state"] != "ready":
        if process["fraction"] is not None:
            text.append(f" {100 * process['fraction']:.0f} %")
        if process["detail"] and process["state"] not in TROUBLED:
            text.append(f" {process['detail']}", style="dim")
    return text


def exit_text(process: Mapping[str, Any]) -> str:
    """How the process last ended, or nothing; why is told among the problems while it is one."""
    from daemon.telemetry.health import TROUBLED

    last = process["last_exit"]
    if last is None:
        return ""
    return str(last["kind"]) if process["state"] in TROUBLED else f"{last['kind']}: {last['reason']}"


@click.command(
    epilog="""\b
A stage gives up when the same failure comes back at once each time (its circuit is open), or when its
configuration is wrong. Finished frames stay finished.

\b
Example: poseward reset mesh

\b
Exit codes: 0; 2 no such stage, or no daemon."""
)
@click.argument("stage", metavar="STAGE")
@as_json()
@connected
def reset(stage: str, json_output: bool, connection: Connection) -> None:
    """Start a stage that has given up."""
    with connection.client() as client:
        client.reset(stage)
    if json_output:
        print_json({"reset": [stage]})
        return
    click.echo(f"{stage}: started anew; `poseward health` says how it fares")


@click.command(
    epilog="""\b
One stage after the other, each when the ones before are ready again; what they had in work is done again and
nothing is lost or doubled. `poseward health` says which code is stale.

\b
Examples:
  poseward reload mesh
  poseward reload                 all of them

\b
Exit codes: 0; 2 no such stage, or no daemon."""
)
@click.argument("stage", required=False, metavar="[STAGE]")
@as_json()
@connected
def reload(stage: str | None, json_output: bool, connection: Connection) -> None:
    """Restart stages with the code that is on disk now."""
    from stages.settings import STAGES

    with connection.client() as client:
        client.reload(stage)
    if json_output:
        print_json({"reloading": [stage] if stage else list(STAGES)})
        return
    click.echo(f"{stage or 'all stages'}: restarting; `poseward health` says how they fare")


@click.command(
    epilog="""\b
Before an upgrade, or to let the machine rest. New jobs are refused, queued ones stay queued, and a restart of
the daemon ends it too.

\b
Examples:
  poseward drain --wait           returns when nothing runs any more
  poseward drain --off            go on

\b
Exit codes: 0; 2 no daemon; 3 something still runs after --timeout; 130 Ctrl-C while waiting."""
)
@click.option("--off", is_flag=True, help="Begin jobs again.")
@click.option("--wait", "waiting", is_flag=True, help="Wait until nothing runs.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer than that.")
@as_json()
@connected
def drain(off: bool, waiting: bool, timeout: float | None, json_output: bool, connection: Connection) -> None:
    """Begin no more jobs; what runs is finished."""
    if off and waiting:
        raise click.UsageError("--off and --wait exclude each other")
    with connection.client() as client:
        client.drain(not off)
        running = len(client.health()["jobs"])
    if json_output:
        code = _wait_until_idle(connection, timeout) if waiting else 0
        if code != UNDER_WAY:
            with connection.client(LONG_PATIENCE) as client:
                running = client.list(["running"], limit=1)["counts"]["running"]
        print_json({"draining": not off, "running": running})
        sys.exit(code)
    if off:
        click.echo("jobs are begun again")
        return
    click.echo(f"draining; {running} running" + ("" if waiting or not running else ": --wait waits for them"))
    if not waiting:
        return
    if code := _wait_until_idle(connection, timeout):
        sys.exit(code)
    click.echo("nothing runs any more")


def _wait_until_idle(connection: Connection, timeout: float | None) -> int:
    """Wait until no job runs; the exit code."""
    until = None if timeout is None else time.monotonic() + timeout
    try:
        with connection.client(LONG_PATIENCE) as client:
            while client.list(["running"], limit=1)["jobs"]:
                if until is not None and time.monotonic() >= until:
                    click.echo(f"still running after {timeout:g} s: `poseward status --state running`", err=True)
                    return TIMEOUT
                time.sleep(EVERY)
    except KeyboardInterrupt:
        click.echo("not waiting any more; it is still draining: `poseward drain --off` ends that", err=True)
        return UNDER_WAY
    return 0
