"""Before a job can run: is its input there, what is its content, was that done before, and where does it go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.jobs import places, summary
from daemon.jobs.store import JobStore, StoredJob
from daemon.settings.loading import Loaded

RELEVANT = ("stages.options", "stages.vertices", "stages.stream")
"""Settings in a summary that must agree for its results to be offered for the same content."""


class Refused(Exception):  # noqa: N818  (the job is refused, by ``name``)
    """The job cannot be begun; ``name`` is a stable name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Prepared:
    """A job that can be begun in ``place``, or whose results are those of ``earlier``, or that waits until the job
    ``awaits`` has ended."""

    identity: Mapping[str, Any]
    place: places.Place | None = None
    earlier: StoredJob | None = None
    awaits: str | None = None


def prepare(
    job: StoredJob,
    store: JobStore,
    loaded: Loaded,
    check: Callable[[], None],
    claim: Callable[[tuple[str, Any]], str | None] = lambda _: None,
) -> Prepared:
    """Everything about a job that needs reading.

    Args:
        claim: is told the content (hash and stream); returns the job that computes the same at this time, if any.
        check: called between pieces of a large file; may raise to stop.

    Raises:
        Refused: the input is not there, is empty, or cannot be read.
        OSError: the results folder cannot be written.
        StoreError: the store cannot be written.
    """
    source = Path(job.source)
    from stages.source.base import SourceError  # with what it takes to read pictures
    from stages.source.kinds import check_input

    try:
        check_input(source)
        identity = summary.identify(source, check)
    except SourceError as error:
        if error.name == "missing-file":
            message = f"{source}: no such file: it was there when the job was submitted"
            raise Refused("no-such-file", message) from error
        raise Refused(error.name, str(error)) from error
    except FileNotFoundError as error:
        raise Refused(
            "no-such-file", f"{source}: no such file: it was there when the job was submitted"
        ) from error
    except OSError as error:
        raise Refused("unreadable-file", f"{source}: {error.strerror}: check who may read it") from error
    if identity["bytes"] == 0:
        raise Refused("empty-file", f"{source}: the file is empty: was it copied whole?")
    other = claim((identity["sha256"], job.options.get("stream")))
    if not job.options.get("recompute") and job.folder is None:
        if other is not None:
            return Prepared(identity, awaits=other)
        for earlier in store.same_content(identity["sha256"]):
            same_stream = earlier.options.get("stream") == job.options.get("stream")
            if earlier.id != job.id and same_stream and _offers(earlier, loaded):
                return Prepared(identity, earlier=earlier)
    folder = Path(loaded.settings.results.folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    relevant = places.result_settings(loaded.settings.stages)
    if (stream := job.options.get("stream")) is not None:
        relevant["stages.stream"] = stream
    name = job.folder
    while True:
        if name is None:
            name = _free_name(folder, job, store)
            store.note(job.id, folder=name)
        place = None if _is_taken(folder / name, job) else places.claim(folder, name, identity, relevant)
        if place is not None:
            return Prepared(identity, place)
        name = None  # somebody else's: another one


def _offers(earlier: StoredJob, loaded: Loaded) -> bool:
    """Whether an earlier job's results are still there and were made with the same settings."""
    if earlier.results is None:
        return False
    try:
        found = summary.read_summary(Path(earlier.results))
    except summary.SummaryError:
        return False
    now = loaded.changed()
    return (
        (Path(earlier.results) / summary.FRAMES).is_file()
        and found.get("backend") == loaded.settings.stages.backend
        and all(found.get("settings", {}).get(key) == now.get(key) for key in RELEVANT)
    )


def _is_taken(results: Path, job: StoredJob) -> bool:
    """Whether something stands in the job's results folder that is not its own."""
    if not results.is_dir():
        return results.exists() or results.is_symlink()
    try:
        return summary.read_summary(results).get("job") != job.id
    except summary.SummaryError:
        return any(results.iterdir())


def _free_name(folder: Path, job: StoredJob, store: JobStore) -> str:
    base = places.folder_name(Path(job.name))
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        number += 1
        taken = store.has_folder(name) or (folder / name).is_symlink() or (folder / name).exists()
        if not taken and not (folder / f"{name}{places.WORK_SUFFIX}").exists():
            return name
