"""From what was seen of one person, frame after frame, to his final bodies, a fixed number of frames later.

A body is fitted to the landmarks as all sightings within `stages.body.window.REACH` of its moment have them, and to the
shape as it is known by then. So it depends on what was pushed alone, and a body that was saved and restored goes on
with the same bits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.body.fit import BodyFit
from stages.body.model import LinearBody
from stages.body.shape import FIRST, Lengths, ShapeFit
from stages.body.window import REACH, Sighting, steady
from stages.records import F32, FrameRecord, People, Track
from stages.results.stream import decode_record, encode_record

FILLED_CONFIDENCE = 0.5
"""Confidence of a filled-in frame, as a share of the lower one of the two sightings around it."""


@dataclass
class Observation:
    """One person in one frame: ``box`` (4,) pixels, ``score`` in [0, 1], ``landmarks`` (33, 3) pixels, ``world``
    (33, 3) metres, ``visibility`` (33,), ``appearance`` (SIZE,): as in `stages.backends.blazepose.follower`."""

    box: F32
    score: float
    landmarks: F32
    world: F32
    visibility: F32
    appearance: F32

    @classmethod
    def of(cls, people: People, index: int) -> Observation:
        extra = people.extra
        return cls(
            people.boxes[index], float(people.scores[index]), extra["landmarks"][index],
            extra["landmarks_world"][index], extra["visibility"][index], extra["appearance"][index],
        )  # fmt: skip

    def save(self) -> list[Any]:
        return [self.box, self.score, self.landmarks, self.world, self.visibility, self.appearance]


class Bodies:
    """What the bodies of all people of a video of ``width`` x ``height`` pixels share. ``lag``: frames that a body
    waits; gaps that are no longer are filled. Without a lag every frame stands for itself."""

    def __init__(self, body: LinearBody, width: int, height: int, fps: float, *, smoothing: bool = True) -> None:
        self.fit = BodyFit(body, width, height)
        self.shape = ShapeFit(body)
        self.lag = math.ceil(REACH * fps) if smoothing and fps > 0 else 0
        self.learning = max(1, round(FIRST * fps))
        """Sightings from which the shape is taken."""


@dataclass
class Moment:
    """A frame that was pushed; ``scene`` counts the cuts before it."""

    frame: int
    time: float
    scene: int
    seen: Observation | None
    sighting: Sighting | None


class Body:
    """One person's bodies. Each frame is pushed once, in order, from the first in which he was seen on."""

    def __init__(self, shared: Bodies) -> None:
        self._shared = shared
        self._moments: deque[Moment] = deque()
        """Those that wait, and before them those that still count."""
        self._done = 0
        """How many of them are final."""
        self._scene = 0
        self._lengths = Lengths()
        self._learned = 0

    @property
    def idle(self) -> bool:
        """Whether nothing of him is held back."""
        return all(moment.seen is None for moment in list(self._moments)[self._done :])

    def push(
        self, frame: int, time: float, seen: Observation | None, *, cut: bool = False
    ) -> list[tuple[int, Track]]:
        """Take the next frame, at ``time`` seconds; ``cut``: nothing before it says anything about it. Returns the
        frames that have become final and in which the person is."""
        self._scene += cut
        moment = Moment(frame, time, self._scene, seen, _sighting(seen))
        self._moments.append(moment)
        if moment.sighting is not None and self._learned < self._shared.learning:
            self._lengths.add(moment.sighting)
            self._learned += 1
        return list(self._final(self._shared.lag))

    def finish(self) -> list[tuple[int, Track]]:
        """The frames that were still held back."""
        return list(self._final(0))

    def save(self) -> list[Any]:
        """Everything, for `restore`."""
        moments = [[m.frame, m.time, m.scene, m.seen and m.seen.save()] for m in self._moments]
        return [moments, self._done, self._scene, self._lengths.sums, self._learned]

    @classmethod
    def restore(cls, shared: Bodies, saved: list[Any]) -> Body:
        body = cls(shared)
        moments, body._done, body._scene, sums, body._learned = saved
        body._lengths = Lengths(sums)
        for frame, time, scene, values in moments:
            seen = None if values is None else Observation(*values)
            body._moments.append(Moment(frame, time, scene, seen, _sighting(seen)))
        return body

    def _final(self, lag: int) -> Iterator[tuple[int, Track]]:
        while len(self._moments) - self._done > lag:
            track = self._track(self._done)
            frame = self._moments[self._done].frame
            self._done += 1
            if self._done > self._shared.lag + 1:
                self._moments.popleft()
                self._done -= 1
            if track is not None:
                yield frame, track

    def _track(self, index: int) -> Track | None:
        moments = list(self._moments)
        now = moments[index]
        same = [(place, m) for place, m in enumerate(moments) if m.scene == now.scene and m.seen is not None]
        seen = now.seen
        if seen is None:
            before = max((place for place, _ in same if place < index), default=None)
            after = min((place for place, _ in same if place > index), default=None)
            if before is None or after is None or after - before - 1 > self._shared.lag:
                return None
            seen = _between(moments[before], moments[after], now.time)
        if self._shared.lag:
            near = [(m.time - now.time, m.sighting) for _, m in same if m.sighting is not None]
            near = [(apart, sighting) for apart, sighting in near if abs(apart) <= REACH * 1.25]
            steadied = steady([apart for apart, _ in near], [sighting for _, sighting in near])
        else:
            steadied = Sighting.of(seen.landmarks, seen.world, seen.visibility)
        fit = self._shared.fit.fit(steadied, self._shared.shape.betas(self._lengths))
        return Track(
            0, seen.box, seen.score, fit.camera, fit.pose, fit.betas, fit.joints_3d, fit.joints_2d, fit.vertices,
            detected=now.seen is not None,
        )  # fmt: skip


def _sighting(seen: Observation | None) -> Sighting | None:
    return None if seen is None else Sighting.of(seen.landmarks, seen.world, seen.visibility)


def _between(before: Moment, after: Moment, time: float) -> Observation:
    """What stands for a sighting in a gap: the box on its way, and less confidence."""
    assert before.seen is not None and after.seen is not None
    share = np.float32((time - before.time) / max(after.time - before.time, 1e-9))
    first, second = before.seen, after.seen
    box = (first.box + share * (second.box - first.box)).astype(np.float32)
    return Observation(
        box, FILLED_CONFIDENCE * min(first.score, second.score), first.landmarks, first.world, first.visibility,
        first.appearance,
    )  # fmt: skip


def pack_tracks(tracks: list[Track]) -> Any:
    return encode_record(FrameRecord(0, 0.0, tracks))["tracks"]


def unpack_tracks(values: Any) -> list[Track]:
    return decode_record({"frame": 0, "time": 0.0, "tracks": values}).tracks
