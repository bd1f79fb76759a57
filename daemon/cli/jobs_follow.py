"""Which job somebody means, and following jobs until they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

from daemon.client import ClientError

FINAL = ("done", "failed", "cancelled")
LIVE = ("queued", "running")
PAGE = 200
TURN = 0.5
"""Seconds between two looks at jobs that are followed."""
LOOK = 3.0
"""Seconds between two looks at what is wrong with the daemon meanwhile."""


class Jobs(Protocol):
    """What is used of `daemon.client.Client`."""

    def status(self, job: str | None = None) -> dict[str, Any]: ...
    def health(self) -> dict[str, Any]: ...
    def wait(self, job: str, timeout: float | None = None) -> dict[str, Any]: ...
    def list(
        self, states: Sequence[str] | None = None, *, limit: int = 100, before: int | None = None, text: str = ""
    ) -> dict[str, Any]: ...


def resolve(client: Jobs, word: str) -> dict[str, Any]:
    """The job that ``word`` means: its id, a unique beginning of it or of its last part, or a file's name (its
    newest job).

    Raises:
        ClientError: ``no-such-job``, or ``ambiguous-job``.
    """
    if 0 < len(word) <= 64:
        try:
            return client.status(word)
        except ClientError as error:
            if error.name != "no-such-job":
                raise
    name = PurePath(word).name
    if 0 < len(name) <= 255:
        for job in _pages(client, text=name):
            if job["name"] == name and _from(job, word):
                return job
    found = [job for job in _pages(client) if _begins(job["id"], word)] if word else []
    if not found:
        raise ClientError("no-such-job", f"no job and no file's name is {word!r}: `poseward status` lists them")
    if len(found) > 1:
        some = ", ".join(job["id"] for job in found[:3]) + (", …" if len(found) > 3 else "")
        raise ClientError("ambiguous-job", f"{len(found)} jobs begin with {word!r}: {some}")
    return found[0]


def _from(job: Mapping[str, Any], word: str) -> bool:
    """Whether a path, if ``word`` is one, can be the job's source; where uploads came from nobody knows."""
    return "/" not in word or job["origin"] == "upload" or str(job["source"]).endswith(word.lstrip("."))


def _begins(job: str, word: str) -> bool:
    return job.startswith(word) or job.rpartition("-")[2].startswith(word)


def _pages(client: Jobs, text: str = "") -> Iterator[dict[str, Any]]:
    """All jobs with ``text`` in their name, newest first."""
    before = None
    while True:
        jobs = client.list(limit=PAGE, before=before, text=text)["jobs"]
        yield from jobs
        if len(jobs) < PAGE:
            return
        before = jobs[-1]["number"]


def follow(
    client: Jobs,
    ids: Sequence[str],
    show: Callable[[Mapping[str, Any]], None],
    timeout: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    problems: Callable[[Sequence[str]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Wait until all jobs have ended, or ``timeout`` seconds; ``show`` gets each map seen, ``problems`` what is wrong
    with the daemon while jobs wait: a stage that has failed for good fails no job. Returns the last maps.

    Raises:
        ClientError: the daemon is silent for longer than the client is patient, or knows one no more.
    """
    until = None if timeout is None else clock() + timeout
    looked = clock()
    latest: dict[str, dict[str, Any]] = {}
    pending = list(dict.fromkeys(ids))
    while pending:
        known = {job["id"]: job for job in client.list(LIVE, limit=1000)["jobs"]} if len(pending) > 1 else {}
        for name in pending:
            # Not in the list: it has ended since, or the list was full.
            job = latest[name] = known.get(name) or client.status(name)
            show(job)
        pending = [name for name in pending if latest[name]["state"] not in FINAL]
        if pending and problems is not None and clock() - looked >= LOOK:
            looked = clock()
            problems(client.health()["problems"])
        left = TURN if until is None else min(TURN, until - clock())
        if left <= 0:
            break
        if pending:
            client.wait(min(pending, key=lambda name: latest[name]["state"] != "running"), left)
    return latest
