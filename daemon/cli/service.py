"""``poseward service``: the systemd unit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.options import as_json
from daemon.service.units import ServiceError

if TYPE_CHECKING:
    from daemon.service.plan import Choices, Machine
    from daemon.settings.loading import Loaded


def _named(command: Callable[..., Any]) -> Callable[..., Any]:
    """A `ServiceError` becomes its name and text, and exit code 1."""

    @wraps(command)
    def with_names(*args: Any, **more: Any) -> Any:
        try:
            return command(*args, **more)
        except ServiceError as error:
            click.echo(f"poseward: {error.name}: {error}", err=True)
            sys.exit(1)

    return with_names


_user = click.option("--user", "user_unit", is_flag=True, help="Your own service instead of the system's.")
_yes = click.option("--yes", "--apply", "apply", is_flag=True, help="Do it; without, it is only shown.")
_force = click.option("--force", is_flag=True, help="Even where the unit was changed by hand.")


@click.group(
    epilog="""\b
Examples:
  poseward service install --user            show the unit and what would be done
  poseward service install --user --yes      do it
  sudo $(which poseward) service install     for the whole machine, running as you
  poseward service status --user
  poseward service uninstall --user --yes"""
)
def service() -> None:
    """Install, remove and look at the systemd service that runs `poseward serve`."""


@service.command(
    epilog="""\b
The unit names this interpreter, this configuration, and the settings given by --set or in the environment.
What it does not say can be added with `systemctl [--user] edit poseward`.

\b
Exit codes: 0 done, or shown; 1 refused, with a name and the way out; 2 wrong usage or configuration."""
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Configuration file instead of the one found by itself.")  # fmt: skip
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting of the service; may be repeated."
)
@click.option("--run-as", metavar="NAME", default="", help="User of the system's service; with sudo, you.")
@click.option("--memory-high", metavar="SIZE", help="Above this (12G, 75%) the kernel slows the service down.")
@click.option("--memory-max", metavar="SIZE", help="Above this (12G, 75%) the kernel kills a stage.")
@click.option("--writable", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="One more folder that the system's service may write; may be repeated.")  # fmt: skip
@_user
@_yes
@click.option("--dry-run", is_flag=True, help="Only show it, which is what happens without --yes.")
@_force
@_named
def install(
    config_file: Path | None, sets: tuple[str, ...], run_as: str, memory_high: str | None, memory_max: str | None,
    writable: tuple[Path, ...], user_unit: bool, apply: bool, dry_run: bool, force: bool,
) -> None:  # fmt: skip
    """Write the unit for this machine, enable and start it; without --yes, show it."""
    from daemon.service.install import check_systemd, install_steps, remarks, run_steps, unit_file
    from daemon.service.plan import Choices, Machine, make_plan
    from daemon.service.units import render

    machine = Machine()
    choices = Choices(user_unit, run_as, memory_high, memory_max, writable, sets)
    plan = make_plan(_load(config_file, sets, machine, choices), machine, choices)
    width = max(len(name) for name, _ in plan.folders)
    if not apply or dry_run:
        click.echo(f"# {unit_file(machine, user_unit)}\n")
        click.echo(render(plan.unit))
        steps = install_steps(plan, machine, force=force)
        click.echo("This would be the unit. With --yes, `poseward service install` would:" if steps else "")
        for step in steps:
            click.echo(f"  {step.text}")
        click.echo("\nIt would use:")
    else:
        check_systemd(machine, user_unit)
        steps = install_steps(plan, machine, force=force)
        run_steps(steps, lambda text: click.echo(f"done: {text}"))
        click.echo(f"{'Installed and running' if steps else 'Nothing to do: installed and running'}. It uses:")
    for name, value in plan.folders:
        click.echo(f"  {name:{width}}  {value}")
    for text in remarks(plan, machine):
        click.echo(f"\n{text}")
    if not apply or dry_run:
        try:
            check_systemd(machine, user_unit)
        except ServiceError as error:
            click.echo(f"\nBut not yet: {error}", err=True)


@service.command()
@_user
@_yes
@click.option("--dry-run", is_flag=True, help="Only show it, which is what happens without --yes.")
@_force
@_named
def uninstall(user_unit: bool, apply: bool, dry_run: bool, force: bool) -> None:
    """Stop the service and remove the unit that `install` wrote; jobs and results stay."""
    from daemon.service.install import check_systemd, drop_ins, run_steps, uninstall_steps
    from daemon.service.plan import Machine

    machine = Machine()
    steps = uninstall_steps(machine, user_unit, force=force)
    if not steps:
        click.echo("Nothing to do: there is no unit.")
    elif apply and not dry_run:
        check_systemd(machine, user_unit)
        run_steps(steps, lambda text: click.echo(f"done: {text}"))
    else:
        click.echo("With --yes, `poseward service uninstall` would:")
        for step in steps:
            click.echo(f"  {step.text}")
    for path in drop_ins(machine, user_unit):
        click.echo(f"left alone: {path}")


@service.command()
@_user
@as_json()
@_named
def status(user_unit: bool, json_output: bool) -> None:
    """Show how the service fares: state, progress, and recent problems.

    Exit codes: 0 running; 3 not running; 4 not installed; 1 systemd cannot be asked.
    """
    from daemon.service.install import check_systemd
    from daemon.service.plan import Machine
    from daemon.service.status import as_map, read_status

    machine = Machine(uid=0) if not user_unit else Machine()  # looking at the system's unit needs no root
    check_systemd(machine, user_unit)
    found = read_status(machine, user_unit)
    if json_output:
        click.echo(json.dumps(as_map(found), indent=2, ensure_ascii=False))
        sys.exit(found.exit_code)
    click.echo(f"poseward: {found.headline}")
    if found.text:
        click.echo(f"  it says: {found.text}")
    if found.cause:
        click.echo(f"  cause: {found.cause}")
    for note in found.notes:
        click.echo(f"  {note}")
    if found.problems:
        click.echo("recent problems:")
        for problem in found.problems:
            click.echo(f"  {problem}")
    sys.exit(found.exit_code)


def _load(config_file: Path | None, sets: tuple[str, ...], machine: Machine, choices: Choices) -> Loaded:
    """The configuration that the service's user would find, which with sudo is not root's."""
    from daemon.service.plan import account_for
    from daemon.settings.loading import find_file, load

    account = account_for(machine, choices)
    if config_file is None and account.home is not None and account.uid != machine.uid:
        config_file = find_file({**machine.environ, "XDG_CONFIG_HOME": str(account.home / ".config")})
    return load(config_file, environ=machine.environ, sets=sets)
