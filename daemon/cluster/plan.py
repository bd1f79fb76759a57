"""Which segment of which job is worked on next, and by whom. Plain data: no Ray, no clock, no files."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

TWICE = 2
"""Stations that may work on one segment at a time: the first answer counts."""


@dataclass(frozen=True, order=True)
class Segment:
    """Frames ``first`` to ``stop - 1`` of a job."""

    job: str
    first: int
    stop: int

    @property
    def frames(self) -> int:
        return self.stop - self.first


def cut(job: str, frames: int, length: int) -> list[Segment]:
    """An input of ``frames`` frames in segments of at most ``length``."""
    return [Segment(job, first, min(first + length, frames)) for first in range(0, frames, length)]


@dataclass
class Part:
    """One job's segments. ``done`` holds those of which the records are safe on the front's disk."""

    segments: list[Segment]
    priority: int = 0
    done: set[Segment] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        return len(self.done) == len(self.segments)

    @property
    def frames_done(self) -> int:
        return sum(segment.frames for segment in self.done)


class Plan:
    """All jobs in work, in the order in which they came; those of a higher priority first.

    Args:
        ahead: segments of one job that may be finished or in work beyond the first unfinished one. It bounds what one
            slow segment can pile up.
    """

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._parts: dict[str, Part] = {}
        self._working: dict[str, Segment] = {}
        """By station."""

    def add(self, job: str, frames: int, length: int, done: Collection[int] = (), priority: int = 0) -> Part:
        """Take a job in; ``done`` are the first frames of the segments that are there already."""
        segments = cut(job, frames, length)
        part = Part(segments, priority, {segment for segment in segments if segment.first in done})
        self._parts[job] = part
        return part

    def drop(self, job: str) -> list[str]:
        """Forget a job; returns the stations that work on it."""
        self._parts.pop(job, None)
        stations = [station for station, segment in self._working.items() if segment.job == job]
        for station in stations:
            del self._working[station]
        return stations

    def part(self, job: str) -> Part | None:
        return self._parts.get(job)

    def assign(self, station: str) -> Segment | None:
        """The segment that an idle station takes next; None if there is nothing for it."""
        chosen = next(self._waiting(), None) or self._slow()
        if chosen is not None:
            self._working[station] = chosen
        return chosen

    def finished(self, station: str) -> Segment | None:
        """A station has answered; None if nobody wants its answer any more: another was faster, or the job is gone."""
        segment = self._working.pop(station, None)
        part = self._parts.get(segment.job) if segment else None
        if segment is None or part is None or segment in part.done:
            return None
        part.done.add(segment)
        return segment

    def lost(self, station: str) -> Segment | None:
        """A station is gone; its segment waits again."""
        return self._working.pop(station, None)

    def of(self, station: str) -> Segment | None:
        return self._working.get(station)

    def _waiting(self) -> Iterator[Segment]:
        working = set(self._working.values())
        for part in sorted(self._parts.values(), key=lambda part: -part.priority):
            missing = next((n for n, segment in enumerate(part.segments) if segment not in part.done), None)
            if missing is None:
                continue
            for segment in part.segments[missing : missing + self._ahead]:
                if segment not in part.done and segment not in working:
                    yield segment

    def _slow(self) -> Segment | None:
        """The segment that has been in work for longest, of those that one station has. Nothing else is left to do."""
        working = list(self._working.values())
        for segment in working:
            part = self._parts.get(segment.job)
            if part is not None and segment not in part.done and working.count(segment) < TWICE:
                return segment
        return None
