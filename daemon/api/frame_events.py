"""Events about frames: published for a job only while somebody has subscribed to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from daemon.api.streams import Streams
from daemon.jobs import summary
from daemon.jobs.store import JobStore
from stages.results import ResultsError

MOST = 1000
"""Frames that are told at a time."""


class Growing(Protocol):
    """What is asked of the daemon about a job in work."""

    def progress(self, job: str) -> dict[str, Any] | None: ...
    def growing(self, job: str) -> Path | None: ...


class FrameEvents:
    """Who wants which topics, and how far each job has been told."""

    def __init__(self, port: Growing, store: JobStore, streams: Streams) -> None:
        self._port = port
        self._store = store
        self._streams = streams
        self._topics: set[str] = set()
        self._followed: dict[str, int] = {}
        """Jobs whose frames are published, with the next frame's number."""

    def subscribed(self, topic: str, wanted: bool) -> None:
        """Somebody wants a topic, or nobody wants it any more."""
        (self._topics.add if wanted else self._topics.discard)(topic)
        for job in [job for job in self._followed if not self._wants(job)]:
            del self._followed[job]

    def changed(self, job: str) -> Iterable[tuple[str, dict[str, Any]]]:
        """Topics and events of the frames that a job has got since, if anybody has subscribed to them."""
        if not self._topics or not self._wants(job):
            return
        folder = self._port.growing(job)
        if folder is None:
            found_job = self._store.get(job) if job in self._followed else None
            if found_job is None or found_job.results is None:
                self._followed.pop(job, None)
                return
            folder = Path(found_job.results)  # done: what came since the last look
        if job not in self._followed:
            progress = self._port.progress(job) or {"committed": 0}
            self._followed[job] = progress["committed"]
        try:
            path = folder / summary.FRAMES
            found = self._streams.read(b"", job, path, self._followed[job], MOST, vertices=False)
        except ResultsError:
            return  # not there yet
        _, records, self._followed[job] = found
        for record in records:
            for track in record["tracks"]:
                track.pop("extra", None)  # events show how it goes; the backend's own data may be large
            yield f"frame.{job}", {"record": record}
        if self._port.growing(job) is None:
            self._followed.pop(job, None)
            self._streams.forget(b"", job)

    def _wants(self, job: str) -> bool:
        topic = f"frame.{job}"
        return any(topic.startswith(wanted) for wanted in self._topics)
