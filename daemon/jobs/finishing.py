"""After the last frame: results into their place, then the exports beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from daemon.jobs import places, summary


class Exporter(Protocol):
    """Makes one export of finished results; ``progress`` may raise to stop it."""

    def __call__(
        self, name: str, source: Path, folder: Path, progress: Callable[[int], None]
    ) -> Sequence[Path]: ...


class Ahead(Protocol):
    """Begins an overlay while its results grow, see `daemon.exports.beside.Beside`."""

    def begin(self, results: Path, source: Path, frames: Path, work: Path) -> None: ...
    def drop(self, results: Path) -> None: ...
    def drawn(self, results: Path) -> int | None: ...


@dataclass(frozen=True)
class Finished:
    """Results in place. ``problems`` maps exports that could not be made to why."""

    results: Path
    summary: dict[str, Any]
    problems: dict[str, str] = field(default_factory=dict)


def finish(
    place: places.Place,
    content: Mapping[str, Any],
    source: Path,
    exports: Sequence[str],
    exporter: Exporter,
    check: Callable[[], None],
) -> Finished:
    """Bring results into place, and make the exports.

    Raises:
        OSError: the results cannot be written; the work folder is still there.
    """
    check()
    return _exported(place, place.finish(content, hold=True), source, exports, exporter, check)


def finish_exports(
    results: Path, source: Path, exports: Sequence[str], exporter: Exporter, check: Callable[[], None]
) -> Finished:
    """Make what is missing of the exports of results that are in place, and clear away what was left for that.

    Raises:
        OSError: the summary cannot be written.
    """
    missing = [name for name in exports if name not in summary.read_summary(results)["exports"]]
    if not missing and not places.work_of(results).is_dir():
        return make_exports(results, source, (), exporter, check)
    place = places.reopen(results)
    if place is None:
        content = summary.read_summary(results)
        return Finished(
            results, content, dict.fromkeys(missing, f"another run works in {places.work_of(results)}")
        )
    return _exported(place, results, source, exports, exporter, check)


def _exported(
    place: places.Place, results: Path, source: Path, exports: Sequence[str], exporter: Exporter,
    check: Callable[[], None],
) -> Finished:  # fmt: skip
    try:
        made = make_exports(results, source, exports, exporter, check)
        place.leave()
        return made
    finally:
        place.release()


def make_exports(
    results: Path, source: Path, exports: Sequence[str], exporter: Exporter, check: Callable[[], None]
) -> Finished:
    """Make those of ``exports`` that are not there yet. One that fails does not take the results with it.

    Raises:
        OSError: the summary cannot be written.
    """
    content = summary.read_summary(results)
    problems: dict[str, str] = {}
    for name in exports:
        if name in content["exports"]:
            continue
        began = time.monotonic()
        check()
        try:
            made = exporter(name, source, results, lambda _done: check())
        except Exception as error:  # noqa: BLE001  (whatever a video library raises; it stands in the summary)
            check()
            problems[name] = str(error) or type(error).__name__
            continue
        content["exports"][name] = {
            "files": [path.name for path in made], "seconds": round(time.monotonic() - began, 3)
        }  # fmt: skip
        summary.write_summary(results, content)
    return Finished(results, content, problems)
