"""What may be removed: decided from what is known, without looking at anything.

Nothing goes that somebody uses, or that nobody has fetched (unless `RetentionSettings.unfetched`), or that is not
certainly this store's. `daemon.retention.retention` finds out what there is, and acts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.jobs.store import State, StoredJob
from daemon.settings.schema import RetentionSettings

IDLE = 3600.0
"""What somebody has read or written within so many seconds is in use."""
DAY = 86400.0
GIGABYTE = 1e9


@dataclass(frozen=True)
class Standing:
    """A folder on disk: its size in bytes, when anything in it last changed, and for results whose they are."""

    path: Path
    size: int
    touched: float
    owner: str | None = None


@dataclass(frozen=True)
class Removal:
    """Something that may go. ``kind`` is results, work, job or log; ``job`` the id of the job it is of."""

    kind: str
    reason: str
    job: str | None = None
    path: Path | None = None
    size: int = 0


def kept_because(
    group: Iterable[StoredJob], settings: RetentionSettings, now: float, reading: Collection[str]
) -> str | None:
    """Why results must stay; None if they may go.

    Args:
        group: all jobs whose results they are, or that point to one of these.
        settings: what may be removed.
        now: seconds since 1970.
        reading: jobs whose results somebody reads.
    """
    for job in group:
        if not job.state.final:
            return f"job {job.id} needs them"
        if job.id in reading or (job.fetched is not None and now - job.fetched < IDLE):
            return f"somebody reads those of job {job.id}"
        if job.state is State.DONE and job.fetched is None and not settings.unfetched:
            return f"nobody has fetched those of job {job.id}"
    return None


def decide(
    jobs: Sequence[StoredJob],
    results: Mapping[str, Standing],
    works: Mapping[str, Standing],
    settings: RetentionSettings,
    now: float,
    reading: Collection[str] = (),
) -> list[Removal]:
    """What may go now. Knows nothing but its arguments.

    Args:
        jobs: all jobs of the store.
        results: the results folders that are on disk, by path.
        works: the work folders that are on disk, by the id of the job that began them.
        settings: what to remove.
        now: seconds since 1970.
        reading: jobs whose results somebody reads.
    """
    return [
        *_decide_results(jobs, results, settings, now, reading),
        *_decide_works(jobs, works, settings, now),
        *_decide_jobs(jobs, results, works, settings, now, reading),
    ]


def ends(jobs: Iterable[StoredJob], now: float) -> dict[str, float]:
    """When each of these jobs that has ended did so, in seconds since 1970, by its id.

    By a clock that was years behind, a job that has just been done is old. But they are numbered as they came: none
    has ended before the one that came before it was submitted.
    """
    found: dict[str, float] = {}
    earliest = 0.0
    for job in sorted(jobs, key=lambda job: job.number):
        if job.created <= now:  # one from a clock that was ahead says nothing about the others
            earliest = max(earliest, job.created)
        if job.ended is not None:
            found[job.id] = max(job.ended, earliest)
    return found


def _decide_results(
    jobs: Sequence[StoredJob],
    results: Mapping[str, Standing],
    settings: RetentionSettings,
    now: float,
    reading: Collection[str],
) -> list[Removal]:
    if not settings.results_days and not settings.results_gb:
        return []
    groups, ended_at = _groups(jobs), ends(jobs, now)
    free: list[tuple[float, Standing]] = []
    for path, standing in results.items():
        group = groups.get(path, [])
        pointing = groups.get(standing.owner or "", [])
        done = [ended_at[job.id] for job in group if job.state is State.DONE and job.id in ended_at]
        own = any(job.id == standing.owner and job.state is State.DONE for job in group)
        idle = now - standing.touched >= IDLE
        if own and done and idle and kept_because([*group, *pointing], settings, now, reading) is None:
            free.append((max(done), standing))
    found = []
    total = sum(standing.size for standing in results.values())
    for ended, standing in sorted(free, key=lambda item: item[0]):
        days = (now - ended) / DAY
        old = settings.results_days > 0 and days > settings.results_days
        large = settings.results_gb > 0 and total > settings.results_gb * GIGABYTE
        if old or large:
            why = (
                f"{days:.1f} days old, more than retention.results_days = {settings.results_days:g}"
                if old
                else f"all results take {total / GIGABYTE:.2f} GB, more than retention.results_gb ="
                f" {settings.results_gb:g}, and these are the oldest"
            )
            found.append(Removal("results", why, standing.owner, standing.path, standing.size))
            total -= standing.size
    return found


def _decide_works(
    jobs: Sequence[StoredJob], works: Mapping[str, Standing], settings: RetentionSettings, now: float
) -> list[Removal]:
    found, ended_at = [], ends(jobs, now)
    for job in jobs:
        standing = works.get(job.id)
        if standing is None or not settings.work_days or job.state not in (State.FAILED, State.CANCELLED):
            continue
        days = (now - ended_at.get(job.id, now)) / DAY
        if days > settings.work_days and now - standing.touched >= IDLE:
            why = f"{days:.1f} days since it {job.state.value}, more than retention.work_days = {settings.work_days:g}"
            found.append(Removal("work", why, job.id, standing.path, standing.size))
    return found


def _decide_jobs(
    jobs: Sequence[StoredJob],
    results: Mapping[str, Standing],
    works: Mapping[str, Standing],
    settings: RetentionSettings,
    now: float,
    reading: Collection[str],
) -> list[Removal]:
    if not settings.jobs_days:
        return []
    pointed = {job.same_as for job in jobs if job.same_as is not None}
    found, ended_at = [], ends(jobs, now)
    for job in jobs:
        days = (now - ended_at.get(job.id, now)) / DAY
        stands = job.id in works or (job.results is not None and job.results in results)
        if job.state.final and days > settings.jobs_days and not stands and job.id not in {*pointed, *reading}:
            why = f"{days:.1f} days old, more than retention.jobs_days = {settings.jobs_days:g}; its folders are gone"
            found.append(Removal("job", why, job.id))
    return found


def _groups(jobs: Iterable[StoredJob]) -> dict[str, list[StoredJob]]:
    """Jobs by the path of their results, and by the id of the job that they point to."""
    found: dict[str, list[StoredJob]] = {}
    for job in jobs:
        for key in (job.results, job.same_as):
            if key is not None:
                found.setdefault(key, []).append(job)
    return found
