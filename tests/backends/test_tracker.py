"""The embedded tracker: which tracklets are one person, and who is one at all; a fold that can stop anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.backends.blazepose.bodies import Bodies
from stages.backends.blazepose.looks import HUE, LIGHT, SIZE
from stages.backends.blazepose.tracker import PersonTracker, TrackerSettings, make_tracker
from stages.body.fit import Fitted
from stages.body.model import load_body
from stages.body.window import Sighting
from stages.protocols import ConfigurationError
from stages.records import F32, FrameRecord, People
from stages.results.stream import encode_record
from stages.transport.wire import pack_value

WIDTH, HEIGHT = 640, 480
Box = tuple[float, float, float, float]


def colour(number: int) -> F32:
    """A look unlike those of other numbers."""
    look = np.zeros((2, SIZE // 2), np.float32)
    look[:, LIGHT - 1] = look[:, LIGHT + number % (HUE * HUE)] = 1
    return look.ravel()


def standing(x: float, y: float = 200.0) -> Box:
    return (x - 30, y - 90, x + 30, y + 90)


def people(
    *boxes: Box,
    tracklets: Sequence[int] | None = None,
    looks: Sequence[int] | None = None,
    score: float = 0.8,
    cut: bool = False,
    shift: tuple[float, float] = (0.0, 0.0),
) -> People:
    """By default the tracklets are 1, 2, …, and so are the looks."""
    count = len(boxes)
    tracklets = range(1, count + 1) if tracklets is None else tracklets
    found = People.empty()
    found.boxes = np.array(boxes, np.float32).reshape(count, 4)
    found.scores = np.full(count, score, np.float32)
    found.extra = {
        "landmarks": np.zeros((count, 33, 3), np.float32),
        "landmarks_world": np.zeros((count, 33, 3), np.float32),
        "visibility": np.ones((count, 33), np.float32),
        "presence": np.ones(count, np.float32),
        "tracklet": np.array(tracklets, np.int64).reshape(count),
        "appearance": np.array([colour(n) for n in looks or tracklets], np.float32).reshape(count, SIZE),
        "shift": list(shift),
        "cut": cut,
        "begins": False,
    }
    found.extra["landmarks"][:, :, :2] = found.boxes[:, None, :2]
    return found


class Fit:
    """Bodies at rest, as far to the right as the landmarks."""

    def fit(self, seen: Sighting, betas: Any) -> Fitted:
        pose = np.broadcast_to(np.eye(3, dtype=np.float32), (24, 3, 3)).copy()
        zeros = np.zeros((24, 3), np.float32)
        camera = np.array([seen.image[0, 0], 0, 100], np.float32)
        return Fitted(pose, betas.astype(np.float32), camera, zeros, zeros[:, :2], np.zeros((5, 3), np.float32))


BODIES = {fill: Bodies(load_body({}), WIDTH, HEIGHT, 30.0, smoothing=fill) for fill in (False, True)}
for shared in BODIES.values():
    shared.fit = Fit()  # type: ignore[assignment]
FILL = BODIES[True].lag


def tracker(*, fill: bool = False, **changes: object) -> PersonTracker:
    return PersonTracker(TrackerSettings(**changes), BODIES[fill])  # type: ignore[arg-type]


def fold(followed: PersonTracker, frames: list[People]) -> list[FrameRecord]:
    records = []
    for number, found in enumerate(frames):
        records += followed.update(number, number / 30, found)
    records += followed.finish()
    assert [record.frame for record in records] == list(range(len(frames)))
    return records


def ids(records: list[FrameRecord]) -> list[list[int]]:
    return [[track.id for track in record.tracks] for record in records]


def test_a_walker_is_one_person_from_the_first_frame_on() -> None:
    assert ids(fold(tracker(), [people(standing(100 + 4 * n)) for n in range(40)])) == [[1]] * 40


def test_who_comes_back_where_he_must_be_is_who_he_was() -> None:
    frames = [people(standing(100 + 6 * n), tracklets=[1 + (n > 30)], looks=[1]) for n in range(60)]
    frames[20:35] = [people()] * 15
    assert ids(fold(tracker(), frames)) == [[1]] * 20 + [[]] * 15 + [[1]] * 25


def test_the_camera_s_motion_is_taken_out_of_where_he_must_be() -> None:
    frames = [people(standing(100), tracklets=[1], looks=[1]) for _ in range(20)]
    frames += [people(shift=(30, 0)) for _ in range(12)]
    frames += [people(standing(460), tracklets=[2], looks=[1]) for _ in range(10)]
    assert ids(fold(tracker(gate=0.3, growth=0.0, very_alike=1.1), frames))[32:] == [[1]] * 10


def test_two_who_were_hidden_behind_each_other_are_told_apart_by_looks() -> None:
    frames = [people(standing(100 + 6 * n), standing(400 - 6 * n)) for n in range(24)]
    frames += [people(standing(250), tracklets=[1])] * 4
    frames += [
        people(standing(400 - 6 * n), standing(100 + 6 * n), tracklets=[8, 9], looks=[2, 1]) for n in range(28, 50)
    ]
    records = fold(tracker(), frames)
    for record in records[28:]:
        assert [track.id for track in record.tracks] == [1, 2]
        assert record.tracks[0].box[0] > record.tracks[1].box[0]


def test_over_a_cut_only_looks_make_somebody_the_same() -> None:
    def scene(cut: bool, tracklet: int, look: int) -> list[People]:
        shown = [people(standing(100), tracklets=[tracklet], looks=[look]) for _ in range(12)]
        shown[0].extra["cut"] = cut
        return shown

    frames = scene(False, 1, 1) + scene(True, 2, 5) + scene(True, 3, 1)
    assert ids(fold(tracker(), frames)) == [[1]] * 12 + [[2]] * 12 + [[1]] * 12


def test_a_short_occlusion_is_filled_in_when_it_is_over() -> None:
    frames = [people(standing(100 + 6 * n)) if not 20 <= n < 25 else people() for n in range(60)]
    records = fold(tracker(fill=True), frames)
    assert ids(records) == [[1]] * 60
    assert [n for n, record in enumerate(records) if not record.tracks[0].detected] == list(range(20, 25))
    assert [record.tracks[0].box[0] for record in records] == pytest.approx([70 + 6 * n for n in range(60)])
    assert [record.tracks[0].camera[0] for record in records] == pytest.approx(
        [70 + 6 * n for n in range(60)], abs=2
    )


def test_nobody_is_shown_who_does_not_come_back_or_not_soon() -> None:
    frames = [people(standing(100)) if n < 20 or 20 + FILL < n < 50 else people() for n in range(60)]
    expected = [[1]] * 20 + [[]] * (FILL + 1) + [[1]] * (29 - FILL) + [[]] * 10
    assert ids(fold(tracker(fill=True), frames)) == expected


def test_records_lag_by_no_more_than_what_is_undecided() -> None:
    followed = tracker(fill=True)
    behind = []
    out = 0
    for n in range(80):
        weak = [standing(400)] if n >= 30 else []
        found = people(standing(100), *weak)
        found.scores[1:] = 0.2
        out += len(followed.update(n, n / 30, found))
        behind.append(n + 1 - out)
    assert max(behind) <= FILL + TrackerSettings().patience
    assert behind[-1] == FILL


def test_weak_evidence_makes_nobody_however_long_it_lasts() -> None:
    assert ids(fold(tracker(), [people(standing(100), score=0.3)] * 60)) == [[]] * 60


def test_a_flicker_makes_nobody() -> None:
    frames = [people(standing(100)) for _ in range(60)]
    for n in range(10, 60, 20):
        frames[n] = people(standing(100), standing(500), tracklets=[1, n + 10], score=0.6)
    assert ids(fold(tracker(), frames)) == [[1]] * 60


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_video_shorter_than_the_evidence_takes_has_its_people(frames: int) -> None:
    assert ids(fold(tracker(fill=True), [people(standing(100), standing(300))] * frames)) == [[1, 2]] * frames
    weak = [[1]] * frames if frames <= 2 else [[]] * frames  # one or two frames are like an image
    assert ids(fold(tracker(), [people(standing(100), score=0.3)] * frames)) == weak


def test_good_frames_between_failed_ones_and_cuts_have_their_people() -> None:
    failed = People.empty()
    frames = [failed, people(standing(100)), failed, people(standing(300), tracklets=[2], looks=[2], cut=True)]
    frames += [people(standing(300), tracklets=[3], looks=[3], cut=True)]
    assert ids(fold(tracker(), frames)) == [[], [1], [], [2], [3]]


def test_where_tracklets_are_counted_anew_people_stay_who_they_are() -> None:
    frames = [people(standing(100 + 4 * n), standing(400)) for n in range(20)]
    frames += [people(standing(400), standing(100 + 4 * n), looks=[2, 1]) for n in range(20, 40)]
    frames[20].extra["begins"] = True
    records = fold(tracker(), frames)
    assert ids(records) == [[1, 2]] * 40
    assert all(record.tracks[1].box[0] == 370 for record in records)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="smoothing"):
        make_tracker({"smoothing": "yes"}, WIDTH, HEIGHT, 30.0)


def test_one_image_needs_no_confirmation() -> None:
    records = fold(make_tracker({}, WIDTH, HEIGHT, 0.0), [people(standing(100), standing(300), score=0.4)])
    assert ids(records) == [[1, 2]]


SCENES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 600), st.integers(1, 5), st.integers(0, 2)), max_size=3),
        st.integers(0, 9),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(SCENES, st.sets(st.integers(0, 30)))
def test_stopping_anywhere_changes_nothing(
    scenes: list[tuple[list[tuple[int, int, int]], int]], stops: set[int]
) -> None:
    frames = []
    for found, what in scenes:
        found = list({tracklet: (x, tracklet, look) for x, tracklet, look in found}.values())
        boxes = [standing(x) for x, *_ in found]
        looks = [look for *_, look in found]
        frames.append(
            people(*boxes, tracklets=[t for _, t, _ in found], looks=looks, cut=what == 0, shift=(what, 1))
        )
        if what == 1:
            frames[-1] = People.empty()

    def exactly(records: list[FrameRecord]) -> list[bytes]:
        return [pack_value(encode_record(record)) for record in records]

    whole = fold(tracker(fill=True), frames)
    resumed = tracker(fill=True)
    records = []
    for number, shown in enumerate(frames):
        if number in stops:
            snapshot = resumed.snapshot()
            resumed = tracker(fill=True)
            resumed.restore(snapshot)
            assert resumed.snapshot() == snapshot
        records += resumed.update(number, number / 30, shown)
    records += resumed.finish()
    assert exactly(records) == exactly(whole)
