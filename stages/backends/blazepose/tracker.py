"""Identities over time: a deterministic fold with a serialisable state.

Prediction by a constant-velocity Kalman filter (SORT, Bewley et al. 2016); assignment by the Hungarian method in
two rounds, sure detections before unsure ones (ByteTrack, Zhang et al. 2022); the cost joins motion, overlap and
the similarity of poses. A new track is tentative until it has been seen ``n_init`` times in a row: false people
flicker. Its first frames are filled in when it is confirmed, and so are the frames of a short occlusion when it is
over; the output lags until that is decided, and by the few frames that mending poses looks ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from stages.backends.blazepose.motion import F64, BoxMotion
from stages.backends.blazepose.options import Options
from stages.backends.blazepose.smooth import REACH, Mender, gains, window
from stages.body.model import load_body
from stages.records import F32, FrameRecord, People, Track
from stages.results.stream import decode_record, encode_record
from stages.transport.wire import pack_value, unpack_value

IMPOSSIBLE = 1e6
INERTIA = 0.9
"""Velocity that somebody who is not seen keeps from frame to frame: who was hidden may have stopped."""


@dataclass(frozen=True)
class TrackerSettings:
    """When people are taken for the same person."""

    n_init: int = 3
    """Sightings in a row after which a track is confirmed."""
    max_age: int = 45
    """Frames for which a lost person is remembered."""
    fill: int = 9
    """Longest occlusion in frames that is filled in once it is over (``detected`` False); needs a `Mender`."""
    sure: float = 0.5
    """Detections of at least this score are assigned first, and only they begin tracks."""
    gate: float = 0.7
    """Largest distance from the prediction, as a share of the person's height; grows while lost."""
    max_cost: float = 0.75
    """Largest cost of an assignment; costs are in [0, 1]."""


@dataclass
class Person:
    """One followed person. ``id`` is 0 until confirmed; ``joints`` (24, 2) pixels of the last sighting."""

    number: int
    motion: BoxMotion
    joints: F64
    last: Track
    id: int = 0
    hits: int = 1
    misses: int = 0


@dataclass
class Entry:
    """A person in a held frame, as measured; ``gain`` (24,) as `Mender.mend` takes it."""

    number: int
    track: Track
    gain: F32


@dataclass
class Held:
    """A frame whose record is not final: who stands in it, by person number, is decided later."""

    frame: int
    time: float
    entries: list[Entry] = field(default_factory=list)


class PersonTracker:
    """`stages.protocols.Tracker` for one video; without a mender, poses come out as they were measured."""

    def __init__(self, settings: TrackerSettings, mender: Mender | None = None) -> None:
        self._settings = settings
        self._mender = mender
        self._people: list[Person] = []
        self._held: deque[Held] = deque()
        self._ids: dict[int, int] = {}
        """Identity of each confirmed person that a held frame may still name."""
        self._shown: dict[int, list[tuple[int, F32]]] = {}
        """By person number: frames and mended poses that were released last."""
        self._next_number = 1
        self._next_id = 1

    def update(self, frame: int, time: float, people: People) -> list[FrameRecord]:
        """Take the next frame's people; returns the records that have become final."""
        for person in self._people:
            person.motion.predict(INERTIA if person.misses else 1.0)
        held = Held(frame, time)
        self._held.append(held)
        free = self._assign(people, held)
        self._age(held)
        for index in free:
            if float(people.scores[index]) >= self._settings.sure:
                self._begin(people, index, held)
        return self._release(final=False)

    def finish(self) -> list[FrameRecord]:
        """The records that were still held back; tentative people do not get into them."""
        return self._release(final=True)

    def snapshot(self) -> bytes:
        """The whole state, as a msgpack map."""
        return pack_value(
            {
                "next": [self._next_number, self._next_id],
                "ids": [[number, identity] for number, identity in self._ids.items()],
                "people": [
                    {
                        "numbers": [p.number, p.id, p.hits, p.misses],
                        "motion": p.motion.save(),
                        "joints": p.joints,
                        "last": _pack_tracks([p.last]),
                    }
                    for p in self._people
                ],
                "held": [
                    [h.frame, h.time, [e.number for e in h.entries], _pack_tracks([e.track for e in h.entries]),
                     [e.gain for e in h.entries]]
                    for h in self._held
                ],
                "shown": [[number, [list(pose) for pose in poses]] for number, poses in self._shown.items()],
            }
        )  # fmt: skip

    def restore(self, data: bytes) -> None:
        """Become what `snapshot` described."""
        state = unpack_value(data)
        self._next_number, self._next_id = state["next"]
        self._ids = {int(number): int(identity) for number, identity in state["ids"]}
        self._people = []
        for saved in state["people"]:
            number, identity, hits, misses = saved["numbers"]
            (last,) = _unpack_tracks(saved["last"])
            motion = BoxMotion.restore(saved["motion"])
            self._people.append(Person(number, motion, saved["joints"], last, identity, hits, misses))
        self._held = deque(
            Held(frame, time, [Entry(*entry) for entry in zip(numbers, _unpack_tracks(tracks), gain, strict=True)])
            for frame, time, numbers, tracks, gain in state["held"]
        )
        self._shown = {number: [(frame, pose) for frame, pose in poses] for number, poses in state["shown"]}

    # -- one frame -----------------------------------------------------------------------------------------

    def _assign(self, people: People, held: Held) -> list[int]:
        """Give detections to followed people; returns the detections that nobody took."""
        sure = [i for i in range(len(people)) if float(people.scores[i]) >= self._settings.sure]
        unsure = [i for i in range(len(people)) if i not in sure]
        # Confirmed people choose before tentative ones: a flicker must not take over an identity.
        rounds = [
            ([p for p in self._people if p.id], sure),
            ([p for p in self._people if p.id], unsure),
            ([p for p in self._people if not p.id], sure + unsure),
        ]
        taken: set[int] = set()
        seen: set[int] = set()
        for candidates, detections in rounds:
            left = [p for p in candidates if p.number not in seen]
            for person, index in self._match(left, [i for i in detections if i not in taken], people):
                taken.add(index)
                seen.add(person.number)
                self._see(person, people, index, held)
        return [i for i in range(len(people)) if i not in taken]

    def _match(self, persons: list[Person], detections: list[int], people: People) -> list[tuple[Person, int]]:
        if not persons or not detections:
            return []
        cost = np.array([[self._cost(person, people, index) for index in detections] for person in persons])
        rows, columns = linear_sum_assignment(cost)
        return [
            (persons[row], detections[column])
            for row, column in zip(rows, columns, strict=True)
            if cost[row, column] <= self._settings.max_cost
        ]

    def _cost(self, person: Person, people: People, index: int) -> float:
        predicted = person.motion.box
        box = people.boxes[index].astype(np.float64)
        height = max(predicted[3] - predicted[1], box[3] - box[1], 1.0)
        distance = float(np.linalg.norm((predicted[:2] + predicted[2:] - box[:2] - box[2:]) / 2)) / height
        gate = self._settings.gate * (1 + 0.1 * min(person.misses, 20))
        if distance > gate:
            return IMPOSSIBLE
        # Poses are compared relative to their boxes' centres: where the person went is the motion's affair.
        before = person.joints - person.joints.mean(axis=0)
        now = people.joints_2d[index].astype(np.float64)
        apart = np.linalg.norm(before - (now - now.mean(axis=0)), axis=1) / height
        similarity = float(np.exp(-((apart / 0.1) ** 2)).mean())
        return float(0.4 * distance / gate + 0.4 * (1 - overlap(predicted, box)) + 0.2 * (1 - similarity))

    def _see(self, person: Person, people: People, index: int, held: Held) -> None:
        now = _track(people, index)
        if person.misses <= self._settings.fill:
            self._fill(person, now)
        person.motion.update(people.boxes[index])
        person.joints = people.joints_2d[index].astype(np.float64)
        person.last = now
        person.hits += 1
        person.misses = 0
        if not person.id and person.hits >= self._settings.n_init:
            self._confirm(person)
        held.entries.append(_entry(person, people, index))

    def _fill(self, person: Person, now: Track) -> None:
        """Put the person into the frames of the occlusion that is over."""
        if self._mender is None or not person.misses:
            return
        for step in range(1, person.misses + 1):
            track = self._mender.between(person.last, now, step / (person.misses + 1))
            gap = self._held[-2 - person.misses + step]
            gap.entries.append(Entry(person.number, track, np.ones(len(track.pose), np.float32)))

    def _confirm(self, person: Person) -> None:
        person.id = self._next_id
        self._ids[person.number] = person.id
        self._next_id += 1

    def _age(self, held: Held) -> None:
        """Deal with those who were not seen in this frame."""
        seen = {entry.number for entry in held.entries}
        kept = []
        for person in self._people:
            if person.number not in seen:
                person.misses += 1
                if not person.id or person.misses > self._settings.max_age:
                    continue  # tentative people must be seen without a gap
            kept.append(person)
        self._people = kept

    def _begin(self, people: People, index: int, held: Held) -> None:
        last = _track(people, index)
        person = Person(
            self._next_number, BoxMotion.of(people.boxes[index]), people.joints_2d[index].astype(np.float64), last
        )
        self._next_number += 1
        if self._settings.n_init <= 1:
            self._confirm(person)
        self._people.append(person)
        held.entries.append(_entry(person, people, index))

    def _release(self, *, final: bool) -> list[FrameRecord]:
        """The held frames, from the oldest on, of which nothing is undecided any more."""
        undecided = set() if final else {person.number for person in self._people if not person.id}
        keep = 0
        if self._mender is not None and not final:
            gaps = [person.misses for person in self._people if person.misses <= self._settings.fill]
            keep = max([REACH, *gaps])
        records = []
        while len(self._held) > keep and not any(e.number in undecided for e in self._held[0].entries):
            held = self._held.popleft()
            tracks = [self._final(entry, held.frame) for entry in held.entries if entry.number in self._ids]
            records.append(FrameRecord(held.frame, held.time, sorted(tracks, key=lambda track: track.id)))
        living = {person.number for person in self._people}
        living.update(entry.number for held in self._held for entry in held.entries)
        self._ids = {number: identity for number, identity in self._ids.items() if number in living}
        self._shown = {number: poses for number, poses in self._shown.items() if number in living}
        return records

    def _final(self, entry: Entry, frame: int) -> Track:
        """The track of a confirmed person, with its identity, mended if that is on."""
        track = entry.track
        if self._mender is not None:
            before = self._shown.setdefault(entry.number, [])
            if track.detected:
                after = [
                    (held.frame, other.track.pose)
                    for held in list(self._held)[:REACH]
                    for other in held.entries
                    if other.number == entry.number and other.track.detected
                ]
                track = self._mender.mend(track, entry.gain, window([*before, *after], frame))
            before.append((frame, track.pose))
            del before[:-REACH]
        track.id = self._ids[entry.number]
        return track


def make_tracker(options: Mapping[str, Any], width: int, height: int, fps: float) -> PersonTracker:
    """The tracker of one job. Times in the settings are frames at 30 frames/s and scale with ``fps``.

    Raises:
        ConfigurationError: an option is wrong, or the body model cannot be read.
    """
    chosen = Options.from_mapping(options)
    if fps <= 0:
        return PersonTracker(TrackerSettings(n_init=1))  # one image: nothing to wait for
    scale = fps / 30
    settings = TrackerSettings(max_age=max(5, round(45 * scale)), fill=max(2, round(9 * scale)))
    if not chosen.smoothing:
        return PersonTracker(settings)
    return PersonTracker(settings, Mender(load_body({"smpl_model": chosen.smpl_model}), width, height))


def overlap(first: F64, second: F64) -> float:
    """Intersection over union of two boxes (4,) x0 y0 x1 y1."""
    low = np.maximum(first[:2], second[:2])
    high = np.minimum(first[2:], second[2:])
    shared = float(np.prod(np.maximum(high - low, 0.0)))
    union = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - shared
    return float(shared / union) if union > 0 else 0.0


def _track(people: People, index: int) -> Track:
    return Track(
        0, people.boxes[index], float(people.scores[index]), people.camera[index], people.pose[index],
        people.betas[index], people.joints_3d[index], people.joints_2d[index],
        None if people.vertices is None else people.vertices[index],
    )  # fmt: skip


def _entry(person: Person, people: People, index: int) -> Entry:
    visibility = people.extra.get("visibility")
    gain = np.ones(len(person.last.pose), np.float32) if visibility is None else gains(visibility[index])
    return Entry(person.number, person.last, gain)


def _pack_tracks(tracks: list[Track]) -> Any:
    return encode_record(FrameRecord(0, 0.0, tracks))["tracks"]


def _unpack_tracks(values: Any) -> list[Track]:
    return decode_record({"frame": 0, "time": 0.0, "tracks": values}).tracks
