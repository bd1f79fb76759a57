"""Sizes, ages and bars in the words that all commands for a running daemon use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

STATE_STYLES = {
    "queued": "cyan", "running": "bold blue", "done": "green", "failed": "bold red", "cancelled": "yellow",
    "ready": "green", "importing": "yellow", "loading": "yellow", "warming": "yellow", "starting": "yellow",
    "backoff": "yellow", "waiting for memory": "bold yellow", "open circuit": "bold red", "stopped": "dim",
}  # fmt: skip
FULL, EMPTY = "━", "─"


def size_text(count: float | None) -> str:
    """``812 B``, ``1.5 GB``: powers of 1024, as memory is counted; ``-`` for None."""
    if count is None:
        return "-"
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def age_text(seconds: float | None) -> str:
    """``12 s``, ``5 min``, ``3 h 10 min``, ``2 d 4 h``; ``-`` for None."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 track``, ``2 tracks``; ``many`` where that is not ``one`` and an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def bar(fraction: float, width: int, style: str = "green") -> Text:
    """A bar of ``width`` characters; it can be read without colours too."""
    full = round(min(1.0, max(0.0, fraction)) * width)
    return Text.assemble((FULL * full, style), (EMPTY * (width - full), "dim"))


def level_style(fraction: float) -> str:
    """The colour of a level that should not get too high."""
    return "green" if fraction < 0.75 else "yellow" if fraction < 0.9 else "bold red"


def fraction_of(job: Mapping[str, Any]) -> float | None:
    """How much of a job is done, from 0 to 1; None where nobody knows."""
    progress = job.get("progress") or {}
    if job["state"] == "done":
        return 1.0
    if not progress.get("total"):
        return None
    return min(1.0, float(progress["committed"] / progress["total"]))


def remaining(job: Mapping[str, Any]) -> float | None:
    """Seconds until a running job's last frame, or None."""
    progress = job.get("progress") or {}
    if not progress.get("total") or not progress.get("rate"):
        return None
    return max(0.0, float((progress["total"] - progress["committed"]) / progress["rate"]))


def short(job: str) -> str:
    """The part of a job's id that tells it from others; every command takes it."""
    return job.rpartition("-")[2]


def printable(name: str) -> str:
    """A file's name on one line, without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def state_text(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))
