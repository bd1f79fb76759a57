"""``poseward config``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from daemon.cli.options import as_json, configured
from daemon.settings.loading import DEFAULT, FILE_NAME, Loaded


@click.group()
def config() -> None:
    """Show the settings in force, or begin a configuration file.

    \b
    Settings come, the later the stronger, from
      the defaults,
      one file: $POSEWARD_CONFIG, ./poseward.toml, the user's, or /etc/poseward/poseward.toml,
      the environment: POSEWARD_STAGES__MESH__BATCH=2,
      flags: --set stages.mesh.batch=2
    """


@config.command(
    epilog="""\b
Examples:
  poseward config show                     everything
  poseward config show mesh restart        the keys with one of these words in them
  poseward config show --changed --json    what differs from the defaults, for a program"""
)
@click.argument("words", nargs=-1)
@click.option("--changed", is_flag=True, help="Only what was set somewhere.")
@as_json()
@configured
def show(words: tuple[str, ...], changed: bool, json_output: bool, loaded: Loaded) -> None:
    """Print each setting in force, where it comes from, and what it is for."""
    from daemon.settings.show import rows, toml_value

    found = [
        row
        for row in rows(loaded)
        if (not words or any(word in row["key"] for word in words)) and (not changed or row["origin"] != DEFAULT)
    ]
    if json_output:
        click.echo(json.dumps({"file": str(loaded.file) if loaded.file else None, "settings": found}, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    table.add_column("what it is for", overflow="fold", style="dim")
    for row in found:
        from_default = row["origin"] == DEFAULT
        table.add_row(
            row["key"],
            toml_value(row["value"]),
            row["origin"],
            row["help"],
            style="" if from_default else "bold",
        )
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    console.print(f"file: {loaded.file or 'none (poseward config init writes one)'}")


@config.command()
@click.argument("path", type=click.Path(path_type=Path), default=FILE_NAME)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(path: Path, force: bool) -> None:
    """Write a file with every setting, explained and commented out; PATH is ./poseward.toml by default."""
    from daemon.settings.show import template

    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError as error:
        raise click.ClickException(f"{path} is there already (--force replaces it)") from error
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error
    click.echo(f"{path} written; poseward config show tells what is in force")
