"""Identities over time: a deterministic fold with a serialisable state.

Prediction by a constant-velocity Kalman filter (SORT, Bewley et al. 2016); assignment by the Hungarian method in
two rounds, sure detections before unsure ones (ByteTrack, Zhang et al. 2022); the cost joins motion, overlap and
the similarity of poses. A new track is tentative until it has been seen ``n_init`` times in a row: false people
flicker. Its first frames are filled in when it is confirmed, so the output lags by at most ``n_init - 1`` frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from stages.backends.blazepose.motion import F64, BoxMotion
from stages.records import FrameRecord, People, Track
from stages.results import decode_record, encode_record
from stages.wire import pack_value, unpack_value

IMPOSSIBLE = 1e6


@dataclass(frozen=True)
class TrackerSettings:
    """When people are taken for the same person."""

    n_init: int = 3
    """Sightings in a row after which a track is confirmed."""
    max_age: int = 45
    """Frames for which a lost person is remembered."""
    coast: int = 0
    """Frames for which a lost person is shown where the prediction puts them (``detected`` False)."""
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
class Held:
    """A frame whose record is not final: who stands in it, by person number, is decided later."""

    frame: int
    time: float
    entries: list[tuple[int, Track]] = field(default_factory=list)


class PersonTracker:
    """`stages.protocols.Tracker` for one video of ``width`` x ``height`` pixels."""

    def __init__(self, settings: TrackerSettings, width: int, height: int) -> None:
        self._settings = settings
        self._size = (width, height)
        self._people: list[Person] = []
        self._held: deque[Held] = deque()
        self._ids: dict[int, int] = {}
        """Identity of each confirmed person that a held frame may still name."""
        self._next_number = 1
        self._next_id = 1

    def update(self, frame: int, time: float, people: People) -> list[FrameRecord]:
        """Take the next frame's people; returns the records that have become final."""
        for person in self._people:
            person.motion.predict()
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
                    [h.frame, h.time, [number for number, _ in h.entries], _pack_tracks([t for _, t in h.entries])]
                    for h in self._held
                ],
            }
        )

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
            Held(frame, time, list(zip(numbers, _unpack_tracks(tracks), strict=True)))
            for frame, time, numbers, tracks in state["held"]
        )

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
        person.motion.update(people.boxes[index])
        person.joints = people.joints_2d[index].astype(np.float64)
        person.last = _track(people, index)
        person.hits += 1
        person.misses = 0
        if not person.id and person.hits >= self._settings.n_init:
            person.id = self._next_id
            self._ids[person.number] = person.id
            self._next_id += 1
        held.entries.append((person.number, person.last))

    def _age(self, held: Held) -> None:
        """Deal with those who were not seen in this frame."""
        seen = {number for number, _ in held.entries}
        kept = []
        for person in self._people:
            if person.number not in seen:
                person.misses += 1
                if not person.id or person.misses > self._settings.max_age:
                    continue  # tentative people must be seen without a gap
                if person.misses <= self._settings.coast and self._inside(person.motion.box):
                    held.entries.append((person.number, _moved(person)))
            kept.append(person)
        self._people = kept

    def _begin(self, people: People, index: int, held: Held) -> None:
        last = _track(people, index)
        person = Person(
            self._next_number, BoxMotion.of(people.boxes[index]), people.joints_2d[index].astype(np.float64), last
        )
        self._next_number += 1
        if self._settings.n_init <= 1:
            person.id = self._next_id
            self._ids[person.number] = person.id
            self._next_id += 1
        self._people.append(person)
        held.entries.append((person.number, last))

    def _inside(self, box: F64) -> bool:
        x, y = (box[:2] + box[2:]) / 2
        return bool(0 <= x <= self._size[0] and 0 <= y <= self._size[1])

    def _release(self, *, final: bool) -> list[FrameRecord]:
        """The held frames, from the oldest on, in which nobody is tentative any more."""
        undecided = set() if final else {person.number for person in self._people if not person.id}
        records = []
        while self._held and not any(number in undecided for number, _ in self._held[0].entries):
            held = self._held.popleft()
            tracks = []
            for number, track in held.entries:
                if (identity := self._ids.get(number)) is not None:
                    track.id = identity
                    tracks.append(track)
            records.append(FrameRecord(held.frame, held.time, sorted(tracks, key=lambda track: track.id)))
        living = {person.number for person in self._people}
        living.update(number for held in self._held for number, _ in held.entries)
        self._ids = {number: identity for number, identity in self._ids.items() if number in living}
        return records


def make_tracker(_options: Mapping[str, Any], width: int, height: int, fps: float) -> PersonTracker:
    """The tracker of one job. Times in the settings are frames at 30 frames/s and scale with ``fps``."""
    scale = fps / 30 if fps > 0 else 1.0
    if fps <= 0:
        return PersonTracker(TrackerSettings(n_init=1), width, height)  # one image: nothing to wait for
    return PersonTracker(TrackerSettings(max_age=max(5, round(45 * scale))), width, height)


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


def _moved(person: Person) -> Track:
    """The last sighting, put where the motion predicts the person."""
    last = person.last
    box = person.motion.box.astype(np.float32)
    centre = (box[:2] + box[2:]) / 2
    shift = centre - (last.box[:2] + last.box[2:]) / 2
    return Track(
        0, box, last.confidence / (1 + person.misses), last.camera, last.pose, last.betas, last.joints_3d,
        (last.joints_2d + shift).astype(np.float32), last.vertices, detected=False,
    )  # fmt: skip


def _pack_tracks(tracks: list[Track]) -> Any:
    return encode_record(FrameRecord(0, 0.0, tracks))["tracks"]


def _unpack_tracks(values: Any) -> list[Track]:
    return decode_record({"frame": 0, "time": 0.0, "tracks": values}).tracks
