"""``poseward export``: more files out of finished results."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from daemon.cli.options import configured
from daemon.jobs.summary import FRAMES
from daemon.settings.loading import Loaded


def check_names(names: Sequence[str], backend: str) -> None:
    """Refuse unknown exports before any work is done.

    Raises:
        ConfigError: there is no such export for results of this backend; names the nearest.
        ConfigurationError: there is no such backend.
    """
    from daemon.exports import EXPORTS
    from daemon.settings.loading import ConfigError
    from stages.protocols import find_backend

    known = [*EXPORTS, *getattr(find_backend(backend), "exports", {})]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"no export {name!r} with backend {backend}: there are {', '.join(known)}{hint}")


def make(
    name: str, source: Path, folder: Path, progress: Callable[[int], None], options: Mapping[str, Any]
) -> Path:
    """One export of the results in ``folder``; see `daemon.exports.export`."""
    from daemon.exports import export as export_results

    return export_results(name, source, folder / FRAMES, folder, progress, options)


@click.command(
    epilog="""\b
Examples:
  poseward export overlay results/clip     the meshes drawn on the video
  poseward export glb results/clip         the frame with the most people, for 3D viewers"""
)
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--video", type=click.Path(path_type=Path), help="Where the video is now, if it is no longer where it was."
)
@configured
def export(name: str, folder: Path, video: Path | None, loaded: Loaded) -> None:
    """Make one more file out of finished results: overlay, glb, json, or one of the backend's own."""
    from rich.console import Console
    from rich.progress import Progress

    from daemon.jobs.summary import SummaryError, identify, read_summary, write_summary
    from stages.protocols import ConfigurationError

    try:
        summary = read_summary(folder)
        check_names([name], summary["backend"])
    except (SummaryError, ConfigurationError) as error:
        raise click.ClickException(str(error)) from error
    source = video or Path(summary["input"]["path"])
    try:
        same = identify(source)["sha256"] == summary["input"]["sha256"]
    except (OSError, KeyError) as error:
        raise click.ClickException(f"{source}: {error}; --video names it where it is now") from error
    if not same:
        raise click.ClickException(
            f"{source} is not the video that {folder} holds the results of (it has other content): --video names that"
        )
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=summary["frames"])
        try:
            options = loaded.settings.stages.options
            path = make(name, source, folder, lambda done: bar.update(task, completed=done), options)
        except Exception as error:
            raise click.ClickException(f"{name}: {error or type(error).__name__}") from error
    summary.setdefault("exports", {})[name] = {"files": [path.name]}
    write_summary(folder, summary)
    click.echo(path)
