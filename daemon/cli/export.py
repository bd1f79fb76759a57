"""``poseward export``: more files out of finished results."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.options import configured, motion_options
from daemon.jobs.summary import FRAMES
from daemon.motion.options import MotionOptions
from daemon.settings.loading import Loaded

if TYPE_CHECKING:
    from daemon.exports.beside import Beside
    from daemon.exports.style import Style
    from daemon.jobs.finishing import Exporter


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
    name: str, source: Path, folder: Path, progress: Callable[[int], None], options: Mapping[str, Any],
    motion: MotionOptions, frame: int | None = None, style: Style | None = None,
) -> Sequence[Path]:  # fmt: skip
    """One export of the results in ``folder``; see `daemon.exports.export`."""
    from daemon.exports import export as export_results

    return export_results(name, source, folder / FRAMES, folder, progress, options, motion, frame, style)


def drawing(loaded: Loaded, tell: Callable[[Path, int], None] = lambda results, done: None) -> Beside:
    """What draws overlays beside the pipeline, with these settings; see `daemon.exports.beside.Beside`."""
    from daemon.exports.beside import Beside

    settings = loaded.settings
    runtime = Path(settings.daemon.runtime) if settings.daemon.runtime else None
    return Beside(style(loaded), settings.stages.options, settings.stages.backend, runtime, tell)


def style(loaded: Loaded) -> Style:
    """How overlays are to be."""
    from daemon.exports.style import Style

    return Style(loaded.settings.results.overlay_side, loaded.settings.results.overlay_sound)


def exporter(loaded: Loaded, beside: Beside) -> Exporter:
    """Makes exports of what has just been done: an overlay is drawn beside the pipeline, the others here."""
    from daemon.jobs.places import OVERLAY, work_of

    def export_one(name: str, source: Path, folder: Path, progress: Callable[[int], None]) -> Sequence[Path]:
        if name == "overlay":
            return [beside.export(folder, source.absolute(), folder / FRAMES, work_of(folder) / OVERLAY, progress)]
        settings = loaded.settings
        return make(name, source, folder, progress, settings.stages.options, settings.motion)

    return export_one


class _Listing(click.Command):
    """Lists the exports in its help, each with the program that it is for."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from daemon.exports import EXPORTS

        with formatter.section("Exports"):
            formatter.write_dl(list(EXPORTS.items()))
        super().format_epilog(context, formatter)


@click.command(
    cls=_Listing,
    epilog="""\b
With the backend humans4d also tracks: tracks.pkl, as PHALP's track.py writes it.

\b
Examples:
  poseward export overlay results/clip             the meshes drawn on the video
  poseward export web,json results/clip            for a page of your own
  poseward export web --subject 320,180@45 results/clip
                                                   the subject is who stands there in frame 45""",
)
@click.argument("names", metavar="NAME[,NAME…]")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--video", type=click.Path(path_type=Path), help="Where the video is now, if it is no longer where it was."
)
@click.option("--frame", type=click.IntRange(min=0), metavar="N", help="glb: the people of this frame.")
@configured
@motion_options
def export(names: str, folder: Path, video: Path | None, frame: int | None, loaded: Loaded) -> None:
    """Make more files out of finished results."""
    from rich.console import Console
    from rich.progress import Progress

    from daemon.exports import OF_THE_VIDEO
    from daemon.jobs.summary import SummaryError, read_summary, write_summary
    from stages.protocols import ConfigurationError

    wanted = split_names([names])
    try:
        summary = read_summary(folder)
        check_names(wanted, summary["backend"])
    except (SummaryError, ConfigurationError) as error:
        raise click.ClickException(str(error)) from error
    source = video or Path(summary["input"]["path"])
    if any(name in OF_THE_VIDEO for name in wanted):
        _check_video(source, folder, summary)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        for name in wanted:
            task = bar.add_task(name, total=summary["frames"])

            def told(done: int, task: Any = task) -> None:
                bar.update(task, completed=done)

            try:
                settings = loaded.settings
                made = make(
                    name, source, folder, told, settings.stages.options, settings.motion, frame, style(loaded)
                )
            except Exception as error:
                raise click.ClickException(f"{name}: {error or type(error).__name__}") from error
            summary.setdefault("exports", {})[name] = {"files": [path.name for path in made]}
            write_summary(folder, summary)
            for path in made:
                click.echo(path)


def _check_video(source: Path, folder: Path, summary: Mapping[str, Any]) -> None:
    from daemon.jobs.summary import identify

    try:
        same = identify(source)["sha256"] == summary["input"]["sha256"]
    except (OSError, KeyError) as error:
        raise click.ClickException(f"{source}: {error}; --video names it where it is now") from error
    if not same:
        raise click.ClickException(
            f"{source} is not the video that {folder} holds the results of (it has other content): --video names that"
        )


def split_names(given: Sequence[str]) -> tuple[str, ...]:
    """Names of exports, each once, where several may stand in one text: ``bvh,glb``."""
    return tuple(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))
