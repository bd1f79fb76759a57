"""``poseward run``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.export import split_names
from daemon.cli.options import as_json, configured, motion_options
from daemon.cli.output import drop_output
from daemon.jobs.finishing import Exporter
from daemon.run import Factory, Interrupted, Options, Runner, VideoResult, default_pipeline
from daemon.settings.loading import Loaded

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    epilog="""\b
Where results go:
  The results of clip.mp4 go to DIR/clip/: summary.json, frames.msgpack and the exports. Nothing that is
  there is overwritten: a name that is taken gives way to clip-2, and it is said why. --fresh replaces
  finished results of the same content. Until they are finished, the work stands in
  DIR/clip.poseward-work/, and --resume goes on from there, whatever ended the run before. Without it such
  work is named and kept, and the new run goes to clip-2; --fresh begins it afresh.

\b
Examples:
  poseward run clip.mp4
  poseward run -o out --export overlay --export glb a.mp4 b.mov
  poseward run --resume clip.mp4
  poseward run images/                       a folder of numbered images
  poseward run --set stages.mesh.threads=2 --json clip.mp4 > result.json

\b
Exit codes: 0 all done; 1 a video or an export failed; 2 wrong usage or configuration; 130 Ctrl-C."""
)
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="VIDEO…")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Results folder [default: results]."
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run; leave finished results as they are.")
@click.option("--fresh", is_flag=True, help="Replace finished results, and interrupted work, of the same video.")
@click.option("--export", "exports", multiple=True, metavar="NAME", help="Also write this, or several: bvh,glb.")
@click.option("--no-exports", is_flag=True, help="Write frames.msgpack and summary.json only.")
@click.option("--no-vertices", is_flag=True, help="Leave the surfaces out of frames.msgpack (much smaller).")
@click.option("--stream", type=click.IntRange(0), metavar="N", help="Read this video stream of the file.")
@click.option("--keep-work", is_flag=True, help="Keep the work folder (journal) after success.")
@click.option("-v", "--verbose", is_flag=True, help="Also show what the stages print.")
@as_json()
@configured
@motion_options
def run(
    videos: tuple[Path, ...],
    output: Path | None,
    resume: bool,
    fresh: bool,
    exports: tuple[str, ...],
    no_exports: bool,
    no_vertices: bool,
    stream: int | None,
    keep_work: bool,
    verbose: bool,
    json_output: bool,
    loaded: Loaded,
) -> None:
    """Turn videos into tracked 3D body meshes.

    VIDEO is any file that the video library reads, a single image, or a folder of numbered images.
    """
    if resume and fresh:
        raise click.UsageError("--resume leaves finished results as they are, --fresh replaces them: choose one")
    if no_vertices:
        loaded = loaded.replace("stages.vertices", False, "--no-vertices")
    if stream is not None:
        loaded = loaded.replace("stages.stream", stream, "--stream")
    names = () if no_exports else tuple(dict.fromkeys((*loaded.settings.results.exports, *split_names(exports))))
    options = Options(output or Path(loaded.settings.results.folder).expanduser(), names, resume, fresh, keep_work)
    sys.exit(execute(videos, loaded, options, verbose=verbose, json_output=json_output))


def execute(
    videos: Sequence[Path],
    loaded: Loaded,
    options: Options,
    *,
    verbose: bool = False,
    json_output: bool = False,
    factory: Factory = default_pipeline,
    exporter: Exporter | None = None,
) -> int:
    """Run, show it, and return the exit code."""
    from rich.console import Console

    from daemon.cli.export import check_names, drawing
    from daemon.cli.export import exporter as make_exporter
    from daemon.cli.progress import PlainView, RichView
    from daemon.run import stopping_on_signals
    from daemon.telemetry import logs
    from stages.protocols import ConfigurationError
    from stages.transport.ring import RingError
    from supervisor.runtime import RuntimePathError

    settings = loaded.settings

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with contextlib.ExitStack() as stack:
        try:
            if exporter is None:
                check_names(options.exports, settings.stages.backend)
            if settings.daemon.log_file:
                log = logs.configure(settings.daemon.log_level, True, settings.daemon.log_file)
                stack.callback(log.close if log else lambda: None)
                stack.callback(logs.silence)
            else:
                logs.silence()
            live = console.is_terminal and not json_output
            view = stack.enter_context(RichView(console, verbose=verbose)) if live else PlainView(verbose=verbose)
            beside = stack.enter_context(contextlib.closing(drawing(loaded, lambda *told: runner.drawn(*told))))
            made = exporter or make_exporter(loaded, beside)
            runner = Runner(
                loaded, options, view, factory=factory, exporter=made, beside=None if exporter else beside
            )
            code = 0
            with stopping_on_signals(runner, view, kill_children):
                try:
                    runner.run(videos)
                except Interrupted as stopped:
                    code = stopped.exit_code
        except (ConfigurationError, RingError, RuntimePathError, OSError) as error:
            click.echo(f"poseward: {error}", err=True)
            return 2
    results = runner.results
    if json_output:
        _print(json.dumps([as_map(result) for result in results], indent=2, default=str) + "\n")
    elif results:
        _print(table_of(results))
    if code:
        click.echo("stopped; the same command with --resume goes on from here", err=True)
        return code
    if any(result.error == "configuration-error" for result in results):
        return 2
    return 0 if all(result.ok for result in results) else 1


def _print(text: str) -> None:
    """On stdout. Whoever has stopped reading changes nothing in how the videos ended: the exit code says that."""
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        drop_output()


def kill_children() -> None:
    """The second Ctrl-C: no more patience with the stages."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


def as_map(result: VideoResult) -> dict[str, Any]:
    """A result for ``--json``."""
    return {
        "video": str(result.video),
        "ok": result.ok,
        "results": str(result.folder) if result.folder else None,
        "error": result.error,
        "message": result.message,
        "resumable": result.resumable,
        "export_errors": result.export_errors,
        "summary": result.summary,
    }


def table_of(results: Sequence[VideoResult]) -> str:
    """The short table at the end, as wide as stdout."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        _show_table(console, results)
    return captured.get()


def _show_table(console: Console, results: Sequence[VideoResult]) -> None:
    from rich import box
    from rich.table import Table

    from daemon.cli.progress import span_text
    from stages.settings import STAGES

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("video", overflow="fold")
    for name in ("frames", "people", "tracks", "failed", "restarts", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        summary = result.summary
        if result.error is not None or not summary:
            continue
        table.add_row(
            result.video.name,
            str(summary["frames"]),
            str(summary["people"]),
            str(summary["tracks"]),
            str(len(summary["failed_frames"])),
            str(len(summary["restarts"])),
            span_text(summary["wall_seconds"]),
        )
    if table.row_count:
        console.print(table)
    for result in results:
        if result.error is not None:
            console.print(f"{result.video}: failed: {result.error}: {result.message}", soft_wrap=True)
            continue
        if result.summary.get("truncated"):
            console.print(f"{result.video}: ends early: {result.summary['truncated']}", soft_wrap=True)
        for line in losses(result.summary):
            console.print(f"{result.video}: {line}", soft_wrap=True)
        for export, message in result.export_errors.items():
            console.print(f"{result.video}: export {export} failed: {message}", soft_wrap=True)
        if not result.earlier:
            seconds = result.summary["seconds"]
            stages = ", ".join(f"{stage} {span_text(seconds.get(stage, 0.0))}" for stage in STAGES)
            console.print(f"{result.video.name}: busy: {stages}", soft_wrap=True)
        console.print(f"results: {result.folder}", soft_wrap=True)


def losses(summary: Mapping[str, Any]) -> list[str]:
    """What a summary says of frames that failed, and of those that were used though damaged, in a line each."""
    lines = []
    if failed := summary.get("failed_frames", []):
        first = failed[0]
        more = f"; {len(failed) - 1} more in summary.json" if len(failed) > 1 else ""
        lines.append(f"frame {first['frame']} failed in {first['stage']}: {first['reason']}{more}")
    if damaged := summary.get("damaged_frames", []):
        count = sum(run["last"] - run["first"] + 1 for run in damaged)
        frames = "1 frame was" if count == 1 else f"{count} frames were"
        lines.append(f"{frames} used though the file is damaged there, from frame {damaged[0]['first']} on")
    return lines
