"""People followed from frame to frame: who was there is looked for where he must be now, and others are searched for.

The landmark network says where it wants to look next (its auxiliary points, as in MediaPipe's own loop); the person's
motion and the camera's move that square on. The detector searches every few frames (in the detect stage), and here
when somebody has just been lost, when nobody is there and at a cut; what it finds and nobody explains is somebody new.
It also is the judge of those who are followed: whom it has not seen for long is let go.

A person keeps his ``tracklet`` number as long as he is followed. To find out that two tracklets are one person is the
tracker's task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stages.backends.blazepose.detector import PersonDetector
from stages.backends.blazepose.evidence import LEAST, belief, evidence, same_body
from stages.backends.blazepose.landmarks import NUMBER, LandmarkNetwork, Sighting, body_box
from stages.backends.blazepose.looks import SIZE, likeness, look
from stages.backends.blazepose.options import Options
from stages.backends.blazepose.roi import Roi
from stages.backends.blazepose.scene import Change, change, small
from stages.backends.blazepose.suppress import overlaps
from stages.protocols import Report
from stages.records import F32, U8, Detections, Frame, People
from stages.transport.wire import pack_value, unpack_value

EXPLAINED = 0.3
"""Overlap of a detection's box and a followed person's from which the one is of the other."""
TRIED = 0.6
"""Overlap with a box in which the landmark network saw nobody, from which it is not asked again soon."""
TRIED_FOR, SURE_TRIED_FOR = 20, 5
"""Frames for which it is not asked; fewer where the detector's score is at least `SURE`."""
SURE = 0.6
BEGINS = 0.45
"""Belief (`evidence.belief`) in somebody from which he is followed. In a picture that stands alone everybody counts."""
COASTS = 8
"""Frames for which somebody who is hidden is looked for where he must be."""
UNCONFIRMED = 50
"""Frames after which somebody is let go whom the detector does not see."""
SEEK = 30
"""Frames after a loss in which the detector searches often."""
OFTEN = 2
"""Frames between two such searches, and between two while nobody is there."""
SWELL = 1.6
"""Greatest change of a person's square from one frame to the next."""
ALIKE = 0.6
"""Least likeness of somebody who comes back to how he looked before."""
CALM = 0.5
"""Share of a new measurement in a person's motion; looks change more slowly, by `SLOW`."""
SLOW = 0.1
STRIDE = 0.3
"""Longest step from one frame to the next, as a share of the person's square."""


@dataclass
class Person:
    """Somebody who is followed: ``roi`` is where he is looked for next, had nothing moved; ``step`` (2,) the pixels
    by which he moves in a frame, the camera's motion taken out; ``appearance`` how he looks; ``score`` what the
    detector thinks of him; ``unseen`` the frames since it last saw him; ``misses`` those since he was last seen."""

    tracklet: int
    roi: Roi
    step: F32
    appearance: F32
    score: float
    unseen: int = 0
    misses: int = 0

    def expected(self, shift: F32) -> Roi:
        """Where he must be now."""
        away = self.step + shift
        return self.roi._replace(x=self.roi.x + float(away[0]), y=self.roi.y + float(away[1]))


@dataclass
class Seen:
    """A person in the present frame."""

    person: Person
    sighting: Sighting
    appearance: F32
    box: F32
    surprise: float = 0.0
    """How far from what was expected, in place and in looks."""


@dataclass
class Knowledge:
    """All that is known after a frame."""

    picture: U8 | None = None
    people: list[Person] = field(default_factory=list)
    next_tracklet: int = 1
    seek: int = 0
    tried: list[tuple[int, list[float]]] = field(default_factory=list)
    """Boxes of what looked like a person to the detector alone, and until which frame they are left alone."""

    def pack(self) -> bytes:
        people = [
            [p.tracklet, list(p.roi), p.step, p.appearance, p.score, p.unseen, p.misses] for p in self.people
        ]
        return pack_value([self.picture, people, self.next_tracklet, self.seek, self.tried])

    @classmethod
    def unpack(cls, state: bytes) -> Knowledge:
        if not state:
            return cls()
        picture, people, next_tracklet, seek, tried = unpack_value(state)
        followed = [
            Person(number, Roi(*roi), step, looks, score, unseen, misses)
            for number, roi, step, looks, score, unseen, misses in people
        ]
        return cls(picture, followed, next_tracklet, seek, [(frame, box) for frame, box in tried])


class LandmarkFollower:
    """`stages.protocols.Follower`, and a `stages.protocols.MeshRegressor` of frames that have nothing before them."""

    def __init__(
        self, alone: LandmarkNetwork, following: LandmarkNetwork, detector: PersonDetector, options: Options
    ) -> None:
        self._alone = alone
        self._following = following
        self._detector = detector
        self._options = options

    @classmethod
    def load(cls, options: Mapping[str, Any], report: Report) -> LandmarkFollower:
        """Load the networks from the model cache.

        Raises:
            ConfigurationError: an option is wrong, or a file is missing or damaged.
        """
        chosen = Options.from_mapping(options)
        detector = PersonDetector.load(options, report)
        names = ("heavy", "full") if chosen.landmarks == "auto" else (chosen.landmarks,)
        # Masks cost a quarter of a pass: they are for pictures that stand alone.
        networks = [LandmarkNetwork.load(name, chosen, report, masks=name == names[0]) for name in names]
        return cls(networks[0], networks[-1], detector, chosen)

    def follow(self, frame: Frame, found: Detections, state: bytes) -> tuple[People, bytes]:
        """The people of a frame, best first, without poses: those come from the landmarks of many frames.

        ``scores`` is what the detector thought of the person, times the network's presence. ``extra`` holds for each
        ``landmarks`` (N, 33, 3) float32 pixels, ``landmarks_world`` (N, 33, 3) float32 metres, ``visibility`` (N, 33)
        and ``presence`` (N,) float32, as in `stages.backends.blazepose.landmarks.Sighting`, ``tracklet`` (N,) int64
        and ``appearance`` (N, SIZE) float32 as in `stages.backends.blazepose.looks`; and of the whole picture
        ``shift``, the two pixels by which the background moved since the frame before, ``cut``, and ``begins``: nothing
        is known of the frame before, and tracklets are counted anew.
        """
        known = Knowledge.unpack(state)
        image = frame.image
        picture = small(image)
        first = known.picture is None
        happened = Change(np.zeros(2, np.float32), cut=False)
        if known.picture is not None:
            happened = change(known.picture, picture, image.shape[1])
        if happened.cut:
            known = replace(known, people=[], tried=[], seek=SEEK)
        known.tried = [(until, box) for until, box in known.tried if frame.index < until]
        expected = {person.tracklet: person.expected(happened.shift) for person in known.people}
        seen = self._distinct([s for p in known.people if (s := self._again(image, p, expected[p.tracklet]))])
        lost = [p for p in known.people if all(s.person is not p for s in seen)]
        if any(p.misses == 0 for p in lost):
            known.seek = SEEK
        often = (known.seek > 0 or not known.people) and frame.index % OFTEN == 0
        if not found.extra.get("searched", True) and (
            first or happened.cut or often or any(p.misses == 0 for p in lost)
        ):
            found = Detections(*self._detector.find(image, closer=first or happened.cut))
        elif not found.extra.get("searched", True):
            found = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), {"searched": False})
        known.seek = max(known.seek - 1, 0)
        seen, lost = self._judge(frame, found, seen, lost, expected, known, alone=first or happened.cut)
        for person in lost:
            roi = expected[person.tracklet]
            person.roi, person.step = roi, person.step * np.float32(0.8)
            person.misses += 1
        known.people = [s.person for s in seen] + [p for p in lost if p.misses <= COASTS and _inside(p.roi, image)]
        known.people = [p for p in known.people if p.unseen <= UNCONFIRMED]
        known.picture = picture
        kept = sorted(
            (s for s in seen if s.person.unseen <= UNCONFIRMED),
            key=lambda s: (-s.person.score * s.sighting.presence, s.person.tracklet),
        )
        return _people(kept, happened, begins=first), known.pack()

    def regress(self, frames: Sequence[Frame], detections: Sequence[Detections]) -> list[People]:
        """The people of each frame, from that frame alone."""
        return [self.follow(frame, found, b"")[0] for frame, found in zip(frames, detections, strict=True)]

    # -- those who are known -------------------------------------------------------------------------------

    def _again(self, image: U8, person: Person, roi: Roi) -> Seen | None:
        """Look for a person where he must be."""
        sighting = self._following.look(image, roi)
        if sighting.presence < self._options.min_presence:
            return None
        if not 1 / SWELL < sighting.next_roi.side / person.roi.side < SWELL:
            return None
        seen = self._seen(image, person, sighting)
        away = np.hypot(sighting.next_roi.x - roi.x, sighting.next_roi.y - roi.y) / roi.side
        alike = likeness(seen.appearance, person.appearance)
        seen.surprise = float(away) + 1 - alike
        if person.misses and alike < ALIKE:
            return None
        return seen

    def _seen(self, image: U8, person: Person, sighting: Sighting) -> Seen:
        return Seen(person, sighting, look(image, sighting.image), body_box(sighting.image, sighting.visibility))

    def _distinct(self, seen: Sequence[Seen]) -> list[Seen]:
        """Each body once: of two people in one, he who is less where and how he was expected is hidden."""
        kept: list[Seen] = []
        for one in sorted(seen, key=lambda s: (s.surprise + 0.2 * bool(s.person.misses), s.person.tracklet)):
            if not self._is_there(one.sighting, kept):
                kept.append(one)
        return sorted(kept, key=lambda s: s.person.tracklet)

    def _is_there(self, sighting: Sighting, others: Sequence[Seen]) -> bool:
        return any(same_body(sighting, other.sighting, self._options.max_similarity) for other in others)

    # -- what the detector has to say ----------------------------------------------------------------------

    def _judge(
        self,
        frame: Frame,
        found: Detections,
        seen: list[Seen],
        lost: list[Person],
        expected: Mapping[int, Roi],
        known: Knowledge,
        *,
        alone: bool,
    ) -> tuple[list[Seen], list[Person]]:
        """Take in a search: it confirms those who are followed, finds the lost again, and shows who is new."""
        searched = found.extra.get("searched", True)
        taken = _pairs(np.array([s.box for s in seen], np.float32).reshape(-1, 4), found.boxes)
        for index, one in enumerate(seen):
            person = one.person
            if index in taken:
                thought = belief(one.sighting, float(found.scores[taken[index]]))
                person.score += 0.3 * (thought - person.score)
                person.unseen = 0
            else:
                person.unseen += 1
                person.score *= 0.98 if searched else 1.0
        for person in lost:
            person.unseen += 1
        tried = np.array([box for _, box in known.tried], np.float32).reshape(-1, 4)
        left = [
            index
            for index, box in enumerate(found.boxes)
            if index not in taken.values() and not (len(tried) and overlaps(box, tried).max() > TRIED)
        ]
        network = self._alone if alone else self._following
        looked: dict[int, Sighting] = {}

        def sighting(index: int) -> Sighting:
            if index not in looked:
                looked[index] = network.sighting(frame.image, found.boxes[index], thorough=alone)
            return looked[index]

        still_lost = []
        for person in lost:
            roi = expected[person.tracklet]
            near = [index for index in left if _near(found.boxes[index], roi)]
            again, index = self._found_again(frame.image, person, near, sighting, seen)
            if again is None:
                still_lost.append(person)
                continue
            left.remove(index)
            person.unseen = 0
            seen.append(again)
        for one in seen:
            self._go_on(one, expected.get(one.person.tracklet))
        # Of several sightings of one person the best stays.
        for index in sorted(left, key=lambda i: -evidence(sighting(i), float(found.scores[i]))):
            score = float(found.scores[index])
            if len(seen) >= self._options.max_people:
                continue
            added = self._new(frame.image, sighting(index), score, seen, known, alone=alone)
            if added is None:
                lasts = SURE_TRIED_FOR if score >= SURE else TRIED_FOR
                known.tried.append((frame.index + lasts, [float(value) for value in found.boxes[index]]))
            else:
                seen.append(added)
        return seen, still_lost

    def _go_on(self, seen: Seen, expected: Roi | None) -> None:
        """A person is where he was seen, and goes on as he went."""
        person, roi = seen.person, seen.sighting.next_roi
        if expected is not None:
            away = np.array([roi.x - expected.x, roi.y - expected.y], np.float32)
            step = person.step + np.float32(CALM) * away
            length = float(np.hypot(*step))
            person.step = step * np.float32(min(1.0, STRIDE * roi.side / max(length, 1e-6)))
        person.appearance = _mixed(person.appearance, seen.appearance)
        person.roi = roi
        person.misses = 0

    def _found_again(
        self,
        image: U8,
        person: Person,
        near: Sequence[int],
        sighting: Callable[[int], Sighting],
        seen: Sequence[Seen],
    ) -> tuple[Seen | None, int]:
        """Of the detections near where a lost person must be, the first that is he."""
        for index in near:
            there = sighting(index)
            if there.presence < self._options.min_presence or self._is_there(there, seen):
                continue
            one = self._seen(image, person, there)
            if likeness(one.appearance, person.appearance) >= ALIKE:
                return one, index
        return None, -1

    def _new(
        self, image: U8, sighting: Sighting, score: float, seen: Sequence[Seen], known: Knowledge, *, alone: bool
    ) -> Seen | None:
        """Somebody whom nobody explains; None if there is nobody, or somebody who has been seen already."""
        believed = belief(sighting, score)
        if sighting.presence < self._options.min_presence or evidence(sighting, score) < LEAST:
            return None
        if (believed < BEGINS and not alone) or self._is_there(sighting, seen):
            return None
        # Below, he is in this picture, and in no other unless the detector sees him again.
        unseen = 0 if believed >= BEGINS else UNCONFIRMED
        still = np.zeros(2, np.float32)
        person = Person(
            known.next_tracklet, sighting.next_roi, still, np.zeros(SIZE, np.float32), believed, unseen
        )
        known.next_tracklet += 1
        one = self._seen(image, person, sighting)
        person.appearance = one.appearance
        return one


def _near(box: F32, roi: Roi) -> bool:
    """Whether a detection may be of somebody who is expected in a square."""
    there = Roi.of_box(box)
    away = np.hypot(there.x - roi.x, there.y - roi.y)
    return bool(away < 0.5 * roi.side and 1 / 2 < there.side / roi.side < 2)


def _inside(roi: Roi, image: U8) -> bool:
    height, width = image.shape[:2]
    return bool(0 <= roi.x < width and 0 <= roi.y < height)


def _mixed(before: F32, now: F32) -> F32:
    """A look that changes slowly, of the same length as both."""
    mixed: F32 = np.sqrt((1 - np.float32(SLOW)) * before**2 + np.float32(SLOW) * now**2)
    return mixed.astype(np.float32)


def _pairs(boxes: F32, others: F32) -> dict[int, int]:
    """Which of ``others`` each of ``boxes`` is, best overlaps first."""
    shared = [(float(share), i, j) for i, box in enumerate(boxes) for j, share in enumerate(overlaps(box, others))]
    found: dict[int, int] = {}
    for share, i, j in sorted(shared, key=lambda pair: (-pair[0], pair[1:])):
        if share >= EXPLAINED and i not in found and j not in found.values():
            found[i] = j
    return found


def _people(seen: Sequence[Seen], happened: Change, *, begins: bool) -> People:
    count = len(seen)

    def stacked(values: list[Any], *shape: int) -> F32:
        return np.array(values, np.float32).reshape(count, *shape)

    return People(
        boxes=stacked([s.box for s in seen], 4),
        scores=stacked([s.person.score * s.sighting.presence for s in seen]),
        camera=stacked([[0, 0, 0]] * count, 3),
        pose=np.broadcast_to(np.eye(3, dtype=np.float32), (count, 24, 3, 3)).copy(),
        betas=np.zeros((count, 10), np.float32),
        joints_3d=np.zeros((count, 24, 3), np.float32),
        joints_2d=np.zeros((count, 24, 2), np.float32),
        extra={
            "landmarks": stacked([s.sighting.image for s in seen], NUMBER, 3),
            "landmarks_world": stacked([s.sighting.world for s in seen], NUMBER, 3),
            "visibility": stacked([s.sighting.visibility for s in seen], NUMBER),
            "presence": stacked([s.sighting.presence for s in seen]),
            "tracklet": np.array([s.person.tracklet for s in seen], np.int64),
            "appearance": stacked([s.person.appearance for s in seen], SIZE),
            "shift": [float(value) for value in happened.shift],
            "cut": happened.cut,
            "begins": begins,
        },
    )
