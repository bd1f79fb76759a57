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


def motion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--subject``, ``--gap``, ``--no-smoothing`` and ``--raw``, each over its setting ``motion.…``; the
    command's ``loaded`` has them. To stand above `configured`."""

    @click.option("--subject", metavar="WHO", help="The one it is about: auto, a track's ID, x,y@frame, or all.")
    @click.option("--gap", type=float, metavar="SECONDS", help="Join and fill over up to this long without sight.")
    @click.option("--no-smoothing", is_flag=True, help="Join and fill, but leave what was found as it is.")
    @click.option("--up", type=click.Choice(["z", "y"]), help="npz: the axis that points up [default: z].")
    @click.option(
        "--ground", is_flag=True, help="Upright on the ground that the feet tell; standing feet stay in place."
    )
    @click.option("--raw", is_flag=True, help="Tracks as they were found: not joined, not filled, not smooth.")
    @wraps(command)
    def with_motion(
        *args: Any,
        subject: str | None,
        gap: float | None,
        no_smoothing: bool,
        up: str | None,
        ground: bool,
        raw: bool,
        loaded: Any,
        **rest: Any,
    ) -> Any:
        given = {
            "subject": subject,
            "gap": gap,
            "up": up,
            "ground": ground or None,
            "smooth": False if no_smoothing else None,
            "raw": raw or None,
        }
        for name, value in given.items():
            if value is not None:
                flag = "--no-smoothing" if name == "smooth" else f"--{name}"
                loaded = loaded.replace(f"motion.{name}", value, flag)
        return command(*args, loaded=loaded, **rest)

    return with_motion


def as_json() -> Callable[[Command], Command]:
    """The option ``--json``, as ``json_output``."""
    return click.option("--json", "json_output", is_flag=True, help="JSON on stdout, for programs.")
