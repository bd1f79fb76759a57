"""From what was seen of one person, frame after frame, to his final bodies, a fixed number of frames later."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stages.backends.blazepose.smooth import REACH, Mender, gains, window
from stages.body.fit import BodyFit
from stages.records import F32, FrameRecord, People, Track
from stages.results.stream import decode_record, encode_record


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


@dataclass(frozen=True)
class Bodies:
    """What the bodies of all people of a video share. ``lag``: frames that a body waits; shorter gaps are filled."""

    fit: BodyFit
    mender: Mender | None
    width: int
    height: int
    lag: int


class Body:
    """One person's bodies. Each frame is pushed once, in order, from the first in which he was seen on."""

    def __init__(self, shared: Bodies) -> None:
        self._shared = shared
        self._waiting: deque[tuple[int, Track | None, F32]] = deque()
        """Frame, the body as it was fitted to it, and how fast its limbs may move."""
        self._shown: deque[tuple[int, Track]] = deque(maxlen=REACH)

    def push(self, frame: int, seen: Observation | None) -> list[tuple[int, Track]]:
        """Take the next frame; returns the frames that have become final and in which the person is."""
        track, gain = None, np.ones(0, np.float32)
        if seen is not None:
            track, gain = self._fitted(seen), gains(seen.visibility)
        self._waiting.append((frame, track, gain))
        return list(self._final(self._shared.lag))

    def finish(self) -> list[tuple[int, Track]]:
        """The frames that were still held back."""
        return list(self._final(0))

    @property
    def idle(self) -> bool:
        """Nothing is held back."""
        return all(track is None for _, track, _ in self._waiting)

    def save(self) -> list[Any]:
        """Everything, for `restore`."""
        waiting = [[frame, _pack(track), gain] for frame, track, gain in self._waiting]
        return [waiting, [[frame, _pack(track)] for frame, track in self._shown]]

    @classmethod
    def restore(cls, shared: Bodies, saved: list[Any]) -> Body:
        body = cls(shared)
        waiting, shown = saved
        body._waiting.extend((frame, _unpack(track), gain) for frame, track, gain in waiting)
        body._shown.extend((frame, track) for frame, packed in shown if (track := _unpack(packed)) is not None)
        return body

    def _final(self, lag: int) -> Iterator[tuple[int, Track]]:
        while len(self._waiting) > lag:
            frame, track, gain = self._waiting.popleft()
            final = self._filled(frame) if track is None else self._mended(frame, track, gain)
            if final is not None:
                self._shown.append((frame, final))
                yield frame, replace(final)

    def _mended(self, frame: int, track: Track, gain: F32) -> Track:
        if self._shared.mender is None:
            return track
        after = [(other, t.pose) for other, t, _ in self._waiting if t is not None and other - frame <= REACH]
        before = [(other, t.pose) for other, t in self._shown]
        return self._shared.mender.mend(track, gain, window([*before, *after], frame))

    def _filled(self, frame: int) -> Track | None:
        """Put the person into a frame of an occlusion that is over soon."""
        if self._shared.mender is None or not self._shown:
            return None
        last, before = self._shown[-1]
        then, after = next(((other, t) for other, t, _ in self._waiting if t is not None), (0, None))
        if after is None or frame - last > 1:
            return None
        return self._shared.mender.between(before, after, 1 / (then - last))

    def _fitted(self, seen: Observation) -> Track:
        shared = self._shared
        fit = shared.fit.fit(seen.landmarks, seen.world, seen.visibility, shared.width, shared.height)
        return Track(
            0, seen.box, seen.score, fit.camera, fit.pose, fit.betas, fit.joints_3d, fit.joints_2d, fit.vertices
        )


def pack_tracks(tracks: list[Track]) -> Any:
    """Tracks as a value that can travel."""
    return encode_record(FrameRecord(0, 0.0, tracks))["tracks"]


def unpack_tracks(values: Any) -> list[Track]:
    """The inverse of `pack_tracks`."""
    return decode_record({"frame": 0, "time": 0.0, "tracks": values}).tracks


def _pack(track: Track | None) -> Any:
    return None if track is None else pack_tracks([track])


def _unpack(packed: Any) -> Track | None:
    return None if packed is None else unpack_tracks(packed)[0]
