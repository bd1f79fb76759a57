"""Options that every command has: which configuration, and single settings on top of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def which_configuration(command: Command) -> Command:
    """Add ``--config`` and ``--set``; the command gets them as ``config_file`` and ``sets``."""
    file = click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Configuration file instead of the one found by itself.",
    )
    single = click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="One setting, such as stages.mesh.batch=2; may be repeated.",
    )
    return file(single(command))


def configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config`` and ``--set``; the command gets the `daemon.settings.loading.Loaded` as ``loaded``."""

    @which_configuration
    @wraps(command)
    def with_configuration(*args: Any, config_file: Path | None, sets: tuple[str, ...], **rest: Any) -> Any:
        from daemon.settings.loading import load

        return command(*args, loaded=load(config_file, sets=sets), **rest)

    return with_configuration


def as_json() -> Callable[[Command], Command]:
    """The option ``--json``, as ``json_output``."""
    return click.option("--json", "json_output", is_flag=True, help="JSON on stdout, for programs.")
