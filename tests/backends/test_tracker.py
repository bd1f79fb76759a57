"""The embedded tracker: identities through crossings, gaps and flicker; a fold that can stop anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.backends.blazepose.smooth import Mender, gains
from stages.backends.blazepose.tracker import PersonTracker, TrackerSettings, make_tracker
from stages.body.skeleton import JOINT
from stages.protocols import ConfigurationError
from stages.records import F32, FrameRecord, People
from stages.results.stream import encode_record
from stages.transport.wire import pack_value

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


class Sticks:
    """A body whose joints show its rotations: joint n is the sum of the second columns up to n."""

    faces = np.zeros((0, 3), np.int32)

    def surface(self, pose: F32, betas: F32) -> tuple[F32, F32]:
        joints = np.cumsum(pose[..., 1], axis=1, dtype=np.float32)
        return joints[:, :5] + betas[:, None, :1], joints


def tracker(mend: bool = False, **changes: object) -> PersonTracker:
    mender = Mender(Sticks(), WIDTH, HEIGHT) if mend else None
    return PersonTracker(TrackerSettings(**changes), mender)  # type: ignore[arg-type]


def about_z(degrees: float) -> F32:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]], np.float32)


def turn(rotation: F32) -> float:
    return float(np.rad2deg(np.arctan2(rotation[1, 0], rotation[0, 0])))


def bending(knee: list[float], visibility: list[float] | None = None) -> list[People]:
    """One person at rest whose left knee turns as said, in degrees, its ankle seen as well as said."""
    frames = []
    for number, angle in enumerate(knee):
        found = people(standing(300))
        found.pose[0, JOINT["left_knee"]] = about_z(angle)
        found.camera[0] = (0, 0, 100)
        found.vertices = np.zeros((1, 5, 3), np.float32)
        found.extra["visibility"] = np.ones((1, 33), np.float32)
        if visibility is not None:
            found.extra["visibility"][0, 27] = visibility[number]
        frames.append(found)
    return frames


def knee_of(records: list[FrameRecord]) -> list[float]:
    return [turn(record.tracks[0].pose[JOINT["left_knee"]]) for record in records]


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


def test_a_short_occlusion_is_filled_in_when_it_is_over() -> None:
    frames = [people(standing(100 + 6 * n)) if not 20 <= n < 25 else people() for n in range(60)]
    for number, found in enumerate(frames):
        found.camera[:] = (number, 0, 100)
    records = fold(tracker(mend=True), frames)
    assert ids(records) == [[1]] * 60
    assert [n for n, record in enumerate(records) if not record.tracks[0].detected] == list(range(20, 25))
    assert [record.tracks[0].box[0] for record in records] == pytest.approx([70 + 6 * n for n in range(60)])
    assert [record.tracks[0].camera[0] for record in records] == pytest.approx(list(range(60)))
    assert records[22].tracks[0].confidence < 0.5


def test_nobody_is_shown_who_does_not_come_back() -> None:
    frames = [people(standing(100)) if n < 20 else people() for n in range(60)]
    assert ids(fold(tracker(mend=True), frames)) == [[1]] * 20 + [[]] * 40


def test_a_long_occlusion_is_not_filled_in() -> None:
    frames = [people(standing(100)) if not 20 <= n < 35 else people() for n in range(60)]
    assert ids(fold(tracker(mend=True), frames)) == [[1]] * 20 + [[]] * 15 + [[1]] * 25


def test_who_stops_behind_something_is_found_again() -> None:
    frames = [people(standing(100 + 16 * min(n, 20))) if not 20 <= n < 45 else people() for n in range(80)]
    assert ids(fold(tracker(), frames))[45:] == [[1]] * 35


def test_records_lag_by_no_more_than_what_is_undecided() -> None:
    followed = tracker(mend=True, fill=9)
    behind = []
    out = 0
    for n in range(60):
        found = people(standing(100)) if not 30 <= n < 50 else people()
        out += len(followed.update(n, n / 30, found))
        behind.append(n + 1 - out)
    assert max(behind[:2]) <= 2
    assert set(behind[2:31]) == {2}
    assert max(behind) == 9
    assert behind[40:] == [2] * 20


def test_a_joint_that_jumps_for_a_frame_is_mended() -> None:
    knee = [5.0 * n for n in range(20)]
    knee[10] = -80
    records = fold(tracker(mend=True), bending(knee))
    assert knee_of(records) == pytest.approx([5.0 * n for n in range(20)], abs=0.1)
    mended = records[10].tracks[0]
    vertices, joints = Sticks().surface(mended.pose[None], mended.betas[None])
    assert np.array_equal(mended.joints_3d, joints[0]), "joints fit the pose"
    assert mended.vertices is not None
    assert np.array_equal(mended.vertices, vertices[0]), "and so does the surface"
    placed = joints[0] + mended.camera
    focal = 5000 / 256 * WIDTH
    expected = focal * placed[:, :2] / placed[:, 2:] + (WIDTH / 2, HEIGHT / 2)
    assert mended.joints_2d == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    "knee",
    [
        [0, 0, 0, 45, 90, 135, 160, 135, 90, 45, 0, 0, 0],  # fast, and turns back
        [0, 0, 0, 0, 0, 90, 90, 90, 90, 90, 90],  # a step that stays
    ],
)
def test_what_is_merely_fast_stays_as_it_was_measured(knee: list[float]) -> None:
    assert knee_of(fold(tracker(mend=True), bending(knee))) == pytest.approx(knee, abs=0.01)


def test_a_hidden_limb_does_not_flap() -> None:
    knee = [0.0] * 10 + [0.0, 120.0] * 15 + [10.0] * 20
    visibility = [1.0] * 10 + [0.1] * 30 + [1.0] * 20
    found = knee_of(fold(tracker(mend=True), bending(knee, visibility)))
    assert max(abs(np.diff(found[:40]))) < 10
    assert found[45:] == pytest.approx([10.0] * 15, abs=0.1), "once it is seen it follows again"


def test_gains_tell_which_limb_is_hidden() -> None:
    visibility = np.ones(33, np.float32)
    visibility[15] = 0
    gain = gains(visibility)
    assert np.flatnonzero(gain < 1).tolist() == [JOINT["left_elbow"]]
    assert gain.min() > 0


def test_options_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="smoothing"):
        make_tracker({"smoothing": "yes"}, WIDTH, HEIGHT, 30.0)
    frames = bending([0.0] * 5 + [90.0] + [0.0] * 5)
    assert max(knee_of(fold(make_tracker({}, WIDTH, HEIGHT, 30.0), frames))) == pytest.approx(0, abs=0.1)
    raw = fold(make_tracker({"smoothing": False}, WIDTH, HEIGHT, 30.0), frames)
    assert max(knee_of(raw)) == pytest.approx(90, abs=0.1)


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


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(
        st.lists(st.tuples(st.integers(0, 600), st.integers(100, 300), st.floats(0.1, 1.0)), max_size=4),
        max_size=25,
    ),
    walking=st.booleans(),
    hidden=st.sets(st.integers(0, 24)),
    cuts=st.sets(st.integers(0, 24)),
)
def test_stopping_anywhere_changes_nothing(
    data: list[list[tuple[int, int, float]]], walking: bool, hidden: set[int], cuts: set[int]
) -> None:
    frames = [
        people(*(standing(x, y) for x, y, _ in found), scores=[score for *_, score in found], seed=number)
        for number, found in enumerate(data)
    ]
    if walking:  # somebody who is followed for certain, with gaps
        frames = [people(standing(100 + 5 * n)) if n not in hidden else people() for n in range(25)]
    for number, found in enumerate(frames):
        rng = np.random.default_rng(number)
        found.pose[:, 4] = [about_z(angle) for angle in rng.uniform(-90, 90, len(found))] or found.pose[:, 4]
        found.camera += np.float32(100)
        found.extra["visibility"] = rng.uniform(0, 1, (len(found), 33)).astype(np.float32)

    def exactly(records: list[FrameRecord]) -> list[bytes]:
        return [pack_value(encode_record(record)) for record in records]

    whole = fold(tracker(mend=True), frames)
    resumed = tracker(mend=True)
    records = []
    for number, found in enumerate(frames):
        if number in cuts:
            snapshot = resumed.snapshot()
            resumed = tracker(mend=True)
            resumed.restore(snapshot)
            assert resumed.snapshot() == snapshot
        records += resumed.update(number, number / 30, found)
    records += resumed.finish()
    assert [record.frame for record in records] == list(range(len(frames)))
    assert exactly(records) == exactly(whole)
