"""Following by itself: networks are played, so that a test says who stands where and what they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from stages.backends.blazepose.follower import COASTS, SURE_TRIED_FOR, UNCONFIRMED, Knowledge, LandmarkFollower
from stages.backends.blazepose.landmarks import Sighting
from stages.backends.blazepose.options import Options
from stages.backends.blazepose.roi import Roi
from stages.records import F32, Detections, Frame, People
from tests.backends.test_scene import scenery

SIZE = 60.0
"""Half a person's height in pixels."""
PICTURE = scenery(1, (360, 640))
COLOURS = ((20, 20, 200), (20, 200, 20), (200, 20, 20))
SHAPE = np.random.default_rng(7).uniform(-0.5, 0.5, (33, 2)).astype(np.float32)
for part, (x, y) in {
    11: (-0.2, -0.5),
    12: (0.2, -0.5),
    23: (-0.2, 0.0),
    24: (0.2, 0.0),
    25: (-0.2, 0.5),
    26: (0.2, 0.5),
}.items():
    SHAPE[part] = x, y


@dataclass
class Stage:
    """Who stands where: number and the x of the middle; with ``seen`` False only the landmark network sees him."""

    people: dict[int, float] = field(default_factory=dict)
    seen: bool = True
    phantom: bool = False
    searches: int = 0
    looks: int = 0

    def picture(self) -> Any:
        image = PICTURE.copy()
        for number, x in sorted(self.people.items(), reverse=True):  # the first stands before the others
            image[180 - 60 : 180 + 60, max(int(x) - 25, 0) : int(x) + 25] = COLOURS[number]
        return image

    def find(self, image: Any, *, closer: bool = False) -> tuple[F32, F32]:
        self.searches += 1
        found = [[x - 30, 120, x + 30, 240] for x in self.people.values()] if self.seen else []
        found += [[20, 120, 60, 200]] * self.phantom
        return np.array(found, np.float32).reshape(-1, 4), np.full(len(found), 0.8, np.float32)

    def look(self, image: Any, roi: Roi) -> Sighting:
        self.looks += 1
        near = [n for n, x in sorted(self.people.items()) if np.hypot(x - roi.x, 180 - roi.y) < 0.3 * roi.side]
        x = self.people[near[0]] if near else roi.x
        places = np.zeros((33, 3), np.float32)
        places[:, :2] = np.array([x, 180], np.float32) + SHAPE * 2 * SIZE
        wanted = Roi(x, 180.0, 2.5 * SIZE, 1.0, 0.0)
        flat = np.zeros((256, 256), np.float32)
        return Sighting(places, places, np.ones(33, np.float32), 0.9 if near else 0.1, flat, roi, wanted, 0.6)

    def sighting(self, image: Any, box: F32, *, thorough: bool) -> Sighting:
        return self.look(image, Roi.of_box(box))


NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), {"searched": False})


class Played:
    def __init__(self) -> None:
        self.stage = Stage()
        networks: Any = self.stage
        self.follower = LandmarkFollower(networks, networks, networks, Options())
        self.state = b""
        self.frame = 0

    def next(self, people: dict[int, float], found: Detections | None = NOTHING) -> People:
        self.stage.people = people
        if found is None:
            found = Detections(*self.stage.find(None))
        shown, self.state = self.follower.follow(Frame(self.stage.picture(), self.frame, 0.0), found, self.state)
        self.frame += 1
        return shown


def tracklets(shown: People) -> list[int]:
    return sorted(int(number) for number in shown.extra["tracklet"])


def places(shown: People) -> dict[int, float]:
    middle = shown.boxes[:, [0, 2]].mean(axis=1)
    return {int(n): float(x) for n, x in zip(shown.extra["tracklet"], middle, strict=True)}


def test_who_was_there_is_found_again_without_a_search() -> None:
    played = Played()
    for number in range(20):
        assert tracklets(played.next({0: 100.0 + 15 * number})) == [1]
    assert played.stage.searches == 1, "in the first frame, of which nothing is known"
    assert played.stage.looks == 20


def test_who_is_lost_is_searched_for_at_once_and_often() -> None:
    played = Played()
    for _ in range(5):
        played.next({0: 100.0})
    before = played.stage.searches
    assert tracklets(played.next({})) == []
    assert played.stage.searches == before + 1
    for _ in range(6):
        played.next({})
    assert played.stage.searches == before + 4
    assert tracklets(played.next({0: 100.0})) == [1], "he has not been away for long"


def test_who_was_away_for_long_is_somebody_new_to_the_follower() -> None:
    played = Played()
    for _ in range(5):
        played.next({0: 100.0})
    for _ in range(COASTS + 2):
        played.next({})
    for _ in range(2):
        shown = played.next({0: 100.0})
    assert tracklets(shown) == [2]


def test_of_two_who_cross_the_hidden_one_is_nobody_else_meanwhile() -> None:
    played = Played()
    for number in range(30):
        shown = played.next({0: 100.0 + 12 * number, 1: 460.0 - 12 * number}, None if number % 6 == 0 else NOTHING)
        assert len(set(tracklets(shown))) == len(shown)
        for tracklet, x in places(shown).items():
            if tracklet in (1, 2):
                assert x == pytest.approx((100 + 12 * number, 460 - 12 * number)[tracklet - 1], abs=8)
    assert tracklets(shown) == [1, 2]


def test_whom_the_detector_never_sees_again_is_let_go() -> None:
    played = Played()
    played.next({0: 100.0})
    played.stage.seen = False
    for number in range(UNCONFIRMED + 2):
        shown = played.next({0: 100.0}, None if number % 6 == 0 else NOTHING)
    assert tracklets(shown) == []


def test_what_only_the_detector_takes_for_somebody_is_not_looked_at_again_soon() -> None:
    played = Played()
    played.stage.phantom = True
    for _ in range(SURE_TRIED_FOR):
        assert len(played.next({}, None)) == 0
    assert played.stage.looks == 1
    for _ in range(2):
        played.next({}, None)
    assert played.stage.looks == 2


def test_nobody_is_carried_over_a_cut() -> None:
    played = Played()
    for _ in range(3):
        played.next({0: 100.0})
    black = np.zeros_like(PICTURE)
    black[:, 320:] = 255
    shown, state = played.follower.follow(Frame(black, 3, 0.0), NOTHING, played.state)
    assert shown.extra["cut"] and tracklets(shown) == [2], "he is found anew, and has another number"
    assert Knowledge.unpack(state).people[0].tracklet == 2


def test_a_frame_by_itself_needs_no_more_than_itself() -> None:
    played = Played()
    played.stage.people = {0: 100.0, 1: 300.0}
    frame = Frame(played.stage.picture(), 0, 0.0)
    (shown,) = played.follower.regress([frame], [Detections(*played.stage.find(None))])
    assert tracklets(shown) == [1, 2]
    assert shown.extra["begins"]


def test_what_is_known_comes_back_from_its_bytes() -> None:
    played = Played()
    for number in range(8):
        played.next({0: 100.0 + number, 1: 300.0} if number < 5 else {0: 100.0 + number})
    assert Knowledge.unpack(played.state).pack() == played.state


def _sequence(played: Played, people: Sequence[dict[int, float]]) -> list[bytes]:
    return [played.next(who).boxes.tobytes() for who in people]


def test_the_same_state_and_pixels_give_the_same_people() -> None:
    first, second = Played(), Played()
    people = [{0: 100.0 + 9 * n, 1: 400.0 - 9 * n} for n in range(20)]
    whole = _sequence(first, people)
    parts = _sequence(second, people[:7])
    third = Played()
    third.state, third.frame = second.state, 7
    assert whole == parts + _sequence(third, people[7:])
    assert first.state == third.state
