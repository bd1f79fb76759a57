"""Identities over time: a deterministic fold with a serialisable state.

The follower says which sightings hang together (tracklets); what is left is to say which tracklets are one person.
Somebody who is lost for a while is expected where a constant-velocity Kalman filter (SORT, Bewley et al. 2016) says,
the camera's motion taken out; who appears is taken for him if place, size and looks agree (Hungarian method). After a
cut, and after long, looks alone decide. A new person is tentative until there is enough evidence for him; his first
frames are held back until then, and are there when he is confirmed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from stages.backends.blazepose.bodies import Bodies, Body, Observation, pack_tracks, unpack_tracks
from stages.backends.blazepose.looks import likeness
from stages.backends.blazepose.motion import BoxMotion
from stages.backends.blazepose.options import Options
from stages.body.model import load_body
from stages.records import F32, FrameRecord, People, Track
from stages.transport.wire import pack_value, unpack_value

IMPOSSIBLE = 1e6
INERTIA = 0.9
"""Velocity that somebody who is not seen keeps from frame to frame: who was hidden may have stopped."""
FEW = 2
"""A video of so few frames is taken like an image: everybody counts who was found."""
MOST_REMEMBERED = 64
"""People who are remembered, seen or not; the one who was not seen for longest is forgotten first."""
LOOKS_CHANGE = 0.05
"""Share of a new look in what is remembered of somebody."""


@dataclass(frozen=True)
class TrackerSettings:
    """When people are taken for the same person, and when for people at all."""

    n_init: int = 6
    """Sightings from which the evidence for somebody counts."""
    evidence: float = 0.45
    """Least mean score of somebody's sightings for him to be shown."""
    patience: int = 30
    """Frames for which a tentative person's first frames are held back."""
    max_age: int = 45
    """Frames for which somebody lost is expected where he must be; afterwards only looks count."""
    memory: int = 600
    """Frames for which he is remembered."""
    gate: float = 0.5
    """Largest distance from where he must be, as a share of his height; grows by `growth` a frame."""
    growth: float = 0.05
    alike: float = 0.55
    """Least likeness of looks where place and size agree; `very_alike` where nothing else speaks for it."""
    very_alike: float = 0.86


@dataclass
class Person:
    """Somebody seen. ``id`` is 0 until confirmed; ``by_looks``: there was a cut since, so that his place means
    nothing; ``total`` is the sum of his sightings' scores."""

    number: int
    tracklet: int
    motion: BoxMotion
    appearance: F32
    id: int = 0
    hits: int = 0
    total: float = 0.0
    age: int = 0
    misses: int = 0
    by_looks: bool = False

    @property
    def mean(self) -> float:
        return self.total / max(self.hits, 1)


@dataclass
class Held:
    """A frame in which it is not decided yet who stands in it, by person number."""

    frame: int
    time: float
    entries: list[tuple[int, Observation]] = field(default_factory=list)
    cut: bool = False


@dataclass
class Posing:
    """A frame in which that is decided, and whose bodies are on their way."""

    frame: int
    time: float
    tracks: list[Track] = field(default_factory=list)


class PersonTracker:
    """`stages.protocols.Tracker` for one video."""

    def __init__(self, settings: TrackerSettings, bodies: Bodies) -> None:
        self._settings = settings
        self._shared = bodies
        self._people: list[Person] = []
        self._bodies: dict[int, Body] = {}
        self._held: deque[Held] = deque()
        self._posing: deque[Posing] = deque()
        self._ids: dict[int, int] = {}
        """Identity of each confirmed person that a frame may still name."""
        self._next_number = 1
        self._next_id = 1

    def update(self, frame: int, time: float, people: People) -> list[FrameRecord]:
        """Take the next frame's people; returns the records that have become final."""
        held = Held(frame, time)
        self._held.append(held)
        if "tracklet" in people.extra:
            self._see(people, held)
        else:
            self._end_of_evidence()  # a frame that has failed says nothing about anybody
        return self._settle(final=False)

    def finish(self) -> list[FrameRecord]:
        """The records that were still held back."""
        few = bool(self._held) and self._held[-1].frame < FEW
        self._end_of_evidence(least=0.0 if few else self._settings.evidence)
        return self._settle(final=True)

    def snapshot(self) -> bytes:
        """The whole state, as a msgpack map."""
        return pack_value(
            {
                "next": [self._next_number, self._next_id],
                "ids": [[number, identity] for number, identity in self._ids.items()],
                "people": [
                    [[p.number, p.tracklet, p.id, p.hits, p.age, p.misses], p.motion.save(), p.appearance, p.total,
                     p.by_looks]
                    for p in self._people
                ],
                "bodies": [[number, body.save()] for number, body in self._bodies.items()],
                "held": [[h.frame, h.time, [[n, seen.save()] for n, seen in h.entries], h.cut] for h in self._held],
                "posing": [[p.frame, p.time, pack_tracks(p.tracks)] for p in self._posing],
            }
        )  # fmt: skip

    def restore(self, data: bytes) -> None:
        """Become what `snapshot` described."""
        state = unpack_value(data)
        self._next_number, self._next_id = state["next"]
        self._ids = {int(number): int(identity) for number, identity in state["ids"]}
        self._people = []
        for (number, tracklet, identity, hits, age, misses), motion, looks, total, by_looks in state["people"]:
            self._people.append(
                Person(
                    number,
                    tracklet,
                    BoxMotion.restore(motion),
                    looks,
                    identity,
                    hits,
                    total,
                    age,
                    misses,
                    by_looks,
                )
            )
        self._bodies = {number: Body.restore(self._shared, saved) for number, saved in state["bodies"]}
        self._held = deque(
            Held(frame, time, [(number, Observation(*seen)) for number, seen in entries], cut)
            for frame, time, entries, cut in state["held"]
        )
        self._posing = deque(Posing(frame, time, unpack_tracks(tracks)) for frame, time, tracks in state["posing"])

    # -- one frame -----------------------------------------------------------------------------------------

    def _see(self, people: People, held: Held) -> None:
        shift = np.asarray(people.extra["shift"], np.float64)
        if people.extra["cut"]:
            held.cut = True
            self._end_of_evidence()
            for person in self._people:
                person.by_looks = True
        for person in self._people:
            if people.extra["begins"]:
                person.tracklet = 0
            person.age += 1
            person.motion.predict(INERTIA if person.misses else 1.0)
            person.motion.shift(shift)
        sightings = [Observation.of(people, index) for index in range(len(people))]
        tracklets = [int(number) for number in people.extra["tracklet"]]
        owners = {person.tracklet: person for person in self._people}
        new = []
        for index, tracklet in enumerate(tracklets):
            if tracklet in owners:
                self._take(owners[tracklet], sightings[index], held)
            else:
                new.append(index)
        present = {number for number, _ in held.entries}
        lost = [person for person in self._people if person.number not in present]
        back = self._match(lost, [sightings[index] for index in new])
        for place, index in enumerate(new):
            person = back[place] if place in back else self._begin(sightings[index])
            person.tracklet = tracklets[index]
            if person.misses or person.by_looks:  # where he was says little about where he goes
                person.motion = BoxMotion.of(sightings[index].box)
            self._take(person, sightings[index], held)
        self._age({number for number, _ in held.entries})

    def _match(self, lost: list[Person], sightings: list[Observation]) -> dict[int, Person]:
        """Who of the lost has come back: person by the sighting's place."""
        if not lost or not sightings:
            return {}
        cost = np.array([[self._cost(person, seen) for seen in sightings] for person in lost])
        rows, columns = linear_sum_assignment(cost)
        pairs = zip(rows, columns, strict=True)
        return {int(column): lost[row] for row, column in pairs if cost[row, column] < IMPOSSIBLE}

    def _cost(self, person: Person, seen: Observation) -> float:
        """Of taking a sighting for a lost person; the less, the better."""
        settings = self._settings
        alike = likeness(person.appearance, seen.appearance)
        if person.by_looks or person.misses > settings.max_age:
            return 2.0 - alike if alike >= settings.very_alike and person.id else IMPOSSIBLE
        expected, box = person.motion.box, seen.box.astype(np.float64)
        height = max(expected[3] - expected[1], expected[2] - expected[0], 1.0)
        now = max(box[3] - box[1], box[2] - box[0], 1.0)
        away = float(np.linalg.norm((expected[:2] + expected[2:] - box[:2] - box[2:]) / 2)) / max(height, now)
        gate = settings.gate + settings.growth * person.misses
        if away > gate or alike < settings.alike or not 1 / 2.5 < now / height < 2.5:
            return 2.0 - alike if alike >= settings.very_alike and person.id else IMPOSSIBLE
        return float(0.5 * away / gate + (1 - alike) - 0.2 * bool(person.id))

    def _take(self, person: Person, seen: Observation, held: Held) -> None:
        person.motion.update(seen.box)
        if person.hits:
            mixed = (1 - LOOKS_CHANGE) * person.appearance**2 + LOOKS_CHANGE * seen.appearance**2
            person.appearance = np.sqrt(mixed).astype(np.float32)
        person.hits += 1
        person.total += seen.score
        person.misses = 0
        person.by_looks = False
        held.entries.append((person.number, seen))
        if not person.id and person.hits >= self._settings.n_init and person.mean >= self._settings.evidence:
            self._confirm(person)

    def _begin(self, seen: Observation) -> Person:
        person = Person(self._next_number, 0, BoxMotion.of(seen.box), seen.appearance)
        self._next_number += 1
        self._people.append(person)
        return person

    def _confirm(self, person: Person) -> None:
        person.id = self._next_id
        self._ids[person.number] = person.id
        self._next_id += 1

    def _end_of_evidence(self, least: float | None = None) -> None:
        """Nothing more will be known of the tentative people of this moment: what there is has to do."""
        least = self._settings.evidence if least is None else least
        for person in self._people:
            if not person.id and not person.misses and person.mean >= least:
                self._confirm(person)

    def _age(self, present: set[int]) -> None:
        """Deal with those who were not seen in this frame."""
        kept = []
        for person in self._people:
            if person.number not in present:
                person.misses += 1
                most = self._settings.memory if person.id else self._settings.patience
                if person.misses > most:
                    continue
            kept.append(person)
        if len(kept) > MOST_REMEMBERED:
            gone = sorted(kept, key=lambda p: (-p.misses, p.number))[: len(kept) - MOST_REMEMBERED]
            kept = [person for person in kept if all(person is not other for other in gone)]
        self._people = kept

    # -- what is decided -----------------------------------------------------------------------------------

    def _settle(self, *, final: bool) -> list[FrameRecord]:
        """Pass on the held frames, from the oldest on, of which nothing is undecided any more, to the people's bodies;
        returns the frames whose bodies have all come back."""
        undecided = set()
        if not final:
            undecided = {p.number for p in self._people if not p.id and p.age < self._settings.patience}
        decided = -1
        while self._held and not any(number in undecided for number, _ in self._held[0].entries):
            held = self._held.popleft()
            decided = held.frame
            self._posing.append(Posing(held.frame, held.time))
            seen = {number: entry for number, entry in held.entries if number in self._ids}
            for number in seen:
                if number not in self._bodies:
                    self._bodies[number] = Body(self._shared)
            for number, body in self._bodies.items():
                self._collect(number, body.push(held.frame, held.time, seen.get(number), cut=held.cut))
        if final:
            for number, body in self._bodies.items():
                self._collect(number, body.finish())
        self._forget()
        last = self._posing[-1].frame - self._shared.lag if self._posing else decided
        records = []
        while self._posing and (final or self._posing[0].frame <= last):
            done = self._posing.popleft()
            records.append(FrameRecord(done.frame, done.time, sorted(done.tracks, key=lambda track: track.id)))
        return records

    def _collect(self, number: int, tracks: list[tuple[int, Track]]) -> None:
        if tracks:
            places = {posing.frame: posing for posing in self._posing}
            for frame, track in tracks:
                track.id = self._ids[number]
                places[frame].tracks.append(track)

    def _forget(self) -> None:
        """Let go of the bodies of people who are not remembered, once nothing of them is held back."""
        living = {person.number for person in self._people}
        living.update(number for held in self._held for number, _ in held.entries)
        self._bodies = {n: body for n, body in self._bodies.items() if n in living or not body.idle}
        self._ids = {n: identity for n, identity in self._ids.items() if n in living or n in self._bodies}


def make_tracker(options: Mapping[str, Any], width: int, height: int, fps: float) -> PersonTracker:
    """The tracker of one job. Times in the settings are frames at 30 frames/s and scale with ``fps``.

    Raises:
        ConfigurationError: an option is wrong, or the body model cannot be read.
    """
    chosen = Options.from_mapping(options)
    model = load_body({"smpl_model": chosen.smpl_model})
    scale = fps / 30
    bodies = Bodies(model, width, height, fps, smoothing=chosen.smoothing)
    if fps <= 0:
        return PersonTracker(TrackerSettings(n_init=1, evidence=0.0), bodies)  # one image: nothing to wait for
    settings = TrackerSettings(
        n_init=max(3, round(6 * scale)), patience=max(6, round(30 * scale)), max_age=max(5, round(45 * scale)),
        memory=max(30, round(600 * scale)), growth=0.05 / scale,
    )  # fmt: skip
    return PersonTracker(settings, bodies)
