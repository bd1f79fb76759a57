"""``poseward doctor``: looks at everything that a job needs, and says the way out of what is wrong."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.options import as_json, which_configuration
from daemon.doctor.check import Check, Context, Finding, Severity, error, exit_code, run_checks

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

MARKS = {
    Severity.OK: ("✓", "green"),
    Severity.NOTE: ("·", "cyan"),
    Severity.WARNING: ("!", "bold yellow"),
    Severity.ERROR: ("✗", "bold red"),
}


@click.command(
    epilog="""\b
Examples:
  poseward doctor
  poseward doctor --config /etc/poseward/poseward.toml     what the service will use
  poseward doctor --json | jq '.[] | select(.severity == "error")'

\b
Exit code: 0 all well, or worth a note; 1 with a warning; 2 with an error."""
)
@which_configuration
@as_json()
def doctor(config_file: Path | None, sets: tuple[str, ...], json_output: bool) -> None:
    """Check this machine and the settings, and say the way out of every problem.

    Interpreters, packages, GPU, models, codecs, memory, folders, sockets, the running daemon, systemd, WSL
    and the clock; nothing is changed, and nothing is downloaded.
    """
    from daemon.doctor.checks import CHECKS
    from daemon.settings.loading import load
    from daemon.settings.sources import ConfigError

    try:
        loaded = load(config_file, sets=sets)
    except ConfigError as problem:
        # Nothing else can be judged: which interpreters, which folders?
        found = error("settings.file", str(problem), "correct that line; the rest is checked once it can be read")
        results: Iterable[tuple[Check, list[Finding]]] = [(CHECKS[0], [found])]
    else:
        results = run_checks(Context(loaded), CHECKS)
    findings = _json(results) if json_output else _report(results)
    sys.exit(exit_code(findings))


def _json(results: Iterable[tuple[Check, list[Finding]]]) -> list[Finding]:
    findings = [finding for _, found in results for finding in found]
    click.echo(json.dumps([finding.to_map() for finding in findings], indent=2, ensure_ascii=not _fits()))
    return findings


def _report(results: Iterable[tuple[Check, list[Finding]]]) -> list[Finding]:
    """Print each finding as soon as it is there, under its theme; then the counts."""
    from rich.console import Console
    from rich.text import Text

    from daemon.doctor.checks import THEMES

    # Not on a terminal, a line is a finding: nothing is wrapped, so that grep finds it whole.
    console = Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
    fits = _fits()
    if not fits and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # paths and dashes may have letters that this output lacks
    theme = ""
    findings: list[Finding] = []
    waiting = console.status("looking …") if console.is_terminal else None
    if waiting:
        waiting.start()
    try:
        for check, found in results:
            if check.theme != theme:
                theme = check.theme
                console.print(
                    Text(f"\n{THEMES.get(theme, theme)}" if findings else THEMES.get(theme, theme), "bold")
                )
            for finding in found:
                findings.append(finding)
                mark, style = MARKS[finding.severity]
                _print(console, Text(mark if fits else finding.severity.value.upper(), style), Text(finding.found))
                if finding.way_out:
                    _print(console, Text("  →" if fits else "  ->", "dim"), Text(finding.way_out, "dim"))
    finally:
        if waiting:
            waiting.stop()
    console.print(Text("\n") + _counts(findings))
    return findings


def _print(console: Console, mark: Text, text: Text) -> None:
    """A mark, and the text beside it; on a terminal what does not fit into the line is hung under its beginning."""
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        console.print(Text("  ") + mark + Text("  ") + text)
        return
    grid = Table.grid(padding=(0, 2, 0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, text)
    console.print(grid)


def _counts(findings: list[Finding]) -> Text:
    from rich.text import Text

    words = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note", Severity.OK: "ok"}
    line = Text()
    for severity, word in words.items():
        count = sum(finding.severity is severity for finding in findings)
        if line:
            line.append(", ")
        plural = "s" if count != 1 and severity is not Severity.OK else ""
        line.append(f"{count} {word}{plural}", MARKS[severity][1] if count else "dim")
    return line


def _fits() -> bool:
    """Whether the output's encoding has the marks."""
    try:
        "✓✗→·".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
