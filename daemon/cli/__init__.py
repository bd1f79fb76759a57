"""The command line. Each command's module is imported only when that command runs, so that help is fast."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping

import click

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("daemon.cli.run:run", "Turn videos into tracked 3D body meshes."),
    "serve": ("daemon.cli.serve:serve", "Run as a service: drop folder, API, job store."),
    "submit": ("daemon.cli.jobs:submit", "Give videos to the running daemon."),
    "status": ("daemon.cli.jobs:status", "Show jobs, newest first, or one job in detail."),
    "wait": ("daemon.cli.jobs:wait", "Wait until jobs have ended, and show how they go."),
    "cancel": ("daemon.cli.jobs:cancel", "Cancel jobs that are queued or running."),
    "retry": ("daemon.cli.jobs:retry", "Queue failed or cancelled jobs again."),
    "results": ("daemon.cli.results:results", "Show the results of a job that is done, and fetch them."),
    "top": ("daemon.cli.top:top", "Watch the running daemon: stages, jobs, memory."),
    "health": ("daemon.cli.health:health", "Say whether the running daemon is well."),
    "events": ("daemon.cli.events:events", "Print what happens in the running daemon, as it happens."),
    "logs": ("daemon.cli.logs:logs", "Show one job's story across all processes, or the whole log."),
    "reset": ("daemon.cli.health:reset", "Start a stage that has given up."),
    "reload": ("daemon.cli.health:reload", "Restart stages with the code that is on disk now."),
    "drain": ("daemon.cli.health:drain", "Begin no more jobs; what runs is finished."),
    "retention": ("daemon.cli.retention:retention", "Show what the daemon would remove now, and why."),
    "keys": ("daemon.cli.keys:keys", "Make keys for a daemon that is reached over the network."),
    "inspect": ("daemon.cli.inspect:inspect", "Show what stands in a results folder."),
    "export": ("daemon.cli.export:export", "Make an overlay video, a mesh file, … of finished results."),
    "models": ("daemon.cli.models:models", "Fetch and list the files of the models."),
    "config": ("daemon.cli.config:config", "Show the settings in force, or begin a configuration file."),
    "doctor": ("daemon.cli.doctor:doctor", "Check this machine and the settings, and say the way out."),
    "service": ("daemon.cli.service:service", "Install, remove and look at the systemd service."),
    "demo-clip": ("daemon.cli.demo:demo_clip", "Make the clip that `make demo` uses."),
}
"""Where each command is, and its line of help (as in the command itself: a test holds them together)."""
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Videos, here and now": ("run", "inspect", "export", "demo-clip"),
    "Jobs of a running daemon": ("submit", "status", "wait", "cancel", "retry", "results"),
    "The daemon": ("serve", "top", "health", "events", "logs", "reset", "reload", "drain", "retention", "service"),
}
"""How `poseward --help` groups the commands; the others stand below "This machine"."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click asks so)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean `poseward {close[0]}`?" if close else f"; there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        named = {name for names in SECTIONS.values() for name in names}
        rest = tuple(name for name in COMMANDS if name not in named)
        width = max(map(len, COMMANDS))
        for title, names in {**SECTIONS, "This machine": rest}.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), COMMANDS[name][1]) for name in names if name in COMMANDS])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  poseward models fetch                        once, while online
  poseward run clip.mp4                        results in results/clip/
  poseward run -o out --export glb *.mp4       several videos, with a mesh for 3D viewers
  poseward run --resume clip.mp4               go on after Ctrl-C or a crash
  poseward inspect results/clip                what was found
  poseward config show                         every setting and where it comes from

\b
With a daemon that keeps its models warm:
  poseward serve                               or as a service: poseward service install
  poseward submit --wait *.mp4                 from any other terminal
  poseward top                                 a live screen of stages, jobs and memory

`poseward COMMAND --help` explains each command.""",
)
@click.version_option(package_name="poseward", prog_name="poseward")
def cli() -> None:
    """Poseward turns videos of people into tracked 3D body meshes, and keeps doing so.

    Four processes (decode, detect, mesh, track) work on each video; one that crashes is restarted and
    nothing is lost or counted twice.
    """


def main() -> None:
    """The entry point ``poseward``: expected errors become one line and exit code 2."""
    from daemon.cli.output import UNWRITTEN, drop_output
    from daemon.settings.sources import ConfigError

    try:
        try:
            cli.main(prog_name="poseward", standalone_mode=True)
        finally:
            sys.stdout.flush()  # here a full disk can still be named
    except ConfigError as error:
        click.echo(f"poseward: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone: nobody is left to be told
        sys.exit(1)
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITTEN:
            raise
        drop_output()
        with contextlib.suppress(OSError):
            click.echo(f"poseward: the output cannot be written: {error.strerror}", err=True)
        sys.exit(1)
