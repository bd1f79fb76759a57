"""The embedded tracker: identities through crossings, gaps and flicker; a fold that can stop anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.backends.blazepose.tracker import PersonTracker, TrackerSettings, make_tracker
from stages.records import FrameRecord, People

WIDTH, HEIGHT = 640, 480


def people(*boxes: tuple[float, float, float, float], scores: list[float] | None = None, seed: int = 1) -> People:
    count = len(boxes)
    rng = np.random.default_rng(seed)
    found = People.empty()
    found.boxes = np.array(boxes, np.float32).reshape(count, 4)
    found.scores = np.array(scores or [0.9] * count, np.float32)
    found.camera = np.zeros((count, 3), np.float32)
    found.pose = np.broadcast_to(np.eye(3, dtype=np.float32), (count, 24, 3, 3)).copy()
    found.betas = np.zeros((count, 10), np.float32)
    found.joints_3d = np.zeros((count, 24, 3), np.float32)
    offsets = rng.uniform(0, 1, (24, 2))
    sizes = found.boxes[:, None, 2:] - found.boxes[:, None, :2]
    found.joints_2d = (found.boxes[:, None, :2] + offsets * sizes).astype(np.float32)
    return found


def standing(x: float, y: float = 200.0) -> tuple[float, float, float, float]:
    return (x - 30, y - 90, x + 30, y + 90)


def fold(tracker: PersonTracker, frames: list[People]) -> list[FrameRecord]:
    records = []
    for number, found in enumerate(frames):
        records += tracker.update(number, number / 30, found)
    return records + tracker.finish()


def ids(records: list[FrameRecord]) -> list[list[int]]:
    return [[track.id for track in record.tracks] for record in records]


def tracker(**changes: object) -> PersonTracker:
    return PersonTracker(TrackerSettings(**changes), WIDTH, HEIGHT)  # type: ignore[arg-type]


def test_a_walker_is_one_person_from_the_first_frame_on() -> None:
    records = fold(tracker(), [people(standing(100 + 4 * n)) for n in range(40)])
    assert [record.frame for record in records] == list(range(40))
    assert ids(records) == [[1]] * 40


def test_people_who_cross_keep_their_identities() -> None:
    frames = [people(standing(100 + 8 * n), standing(500 - 8 * n, 230)) for n in range(50)]
    records = fold(tracker(), frames)
    assert ids(records) == [[1, 2]] * 50
    assert records[-1].tracks[0].box[0] > records[-1].tracks[1].box[0], "each went on in its own direction"


def test_a_short_occlusion_keeps_the_identity() -> None:
    frames = [people(standing(100 + 6 * n)) if not 20 <= n < 35 else people() for n in range(60)]
    records = fold(tracker(), frames)
    assert ids(records) == [[1]] * 20 + [[]] * 15 + [[1]] * 25


def test_a_lost_person_is_shown_at_the_prediction_if_asked() -> None:
    frames = [people(standing(100 + 6 * n)) if n < 20 else people() for n in range(30)]
    records = fold(tracker(coast=3), frames)
    shown = [track for record in records[20:] for track in record.tracks]
    assert [track.detected for track in shown] == [False] * 3
    assert [track.box[0] for track in shown] == pytest.approx([70 + 6 * n for n in (20, 21, 22)], abs=6)


def test_flicker_makes_no_person() -> None:
    frames = [people(standing(100), standing(500)) if n % 3 == 0 else people(standing(100)) for n in range(30)]
    assert ids(fold(tracker(), frames)) == [[1]] * 30


def test_an_unsure_detection_continues_but_does_not_begin() -> None:
    frames = [people(standing(100), scores=[0.9 if n < 10 else 0.2]) for n in range(20)]
    assert ids(fold(tracker(), frames)) == [[1]] * 20
    assert ids(fold(tracker(), [people(standing(100), scores=[0.2])] * 10)) == [[]] * 10


def test_somebody_new_far_away_is_somebody_new() -> None:
    frames = [people(standing(100)) if n < 10 else people(standing(550)) for n in range(20)]
    assert ids(fold(tracker(), frames)) == [[1]] * 10 + [[2]] * 10


def test_one_image_needs_no_confirmation() -> None:
    records = fold(make_tracker({}, WIDTH, HEIGHT, 0.0), [people(standing(100), standing(300))])
    assert ids(records) == [[1, 2]]


@settings(max_examples=40, deadline=None)
@given(
    data=st.lists(
        st.lists(st.tuples(st.integers(0, 600), st.integers(100, 300), st.floats(0.1, 1.0)), max_size=4),
        max_size=25,
    ),
    cuts=st.sets(st.integers(0, 24)),
)
def test_stopping_anywhere_changes_nothing(data: list[list[tuple[int, int, float]]], cuts: set[int]) -> None:
    frames = [
        people(*(standing(x, y) for x, y, _ in found), scores=[score for *_, score in found], seed=number)
        for number, found in enumerate(data)
    ]
    whole = fold(tracker(coast=2), frames)
    resumed = tracker(coast=2)
    records = []
    for number, found in enumerate(frames):
        if number in cuts:
            snapshot = resumed.snapshot()
            resumed = tracker(coast=2)
            resumed.restore(snapshot)
        records += resumed.update(number, number / 30, found)
    records += resumed.finish()
    assert [record.frame for record in records] == list(range(len(frames)))
    assert repr(records) == repr(whole)
