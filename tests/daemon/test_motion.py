"""The motion pass: who is the same person, who is the subject, gaps filled, movement smooth and its peaks kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from daemon.motion.clip import collect
from daemon.motion.options import MotionOptions
from daemon.motion.people import Motion, find_motion
from daemon.motion.subject import SubjectError
from stages.body.skeleton import JOINT
from stages.records import Failure, FrameRecord
from tests.daemon.motion_clips import (
    DISTANCE,
    F64,
    FACING_LEFT,
    Actor,
    header,
    make_track,
    noisy,
    records,
    swinging,
    walking,
)  # fmt: skip

FPS = 30.0


def motion(found: list[FrameRecord], **options: object) -> Motion:
    return find_motion(collect(header(FPS), found), MotionOptions(**options))  # type: ignore[arg-type]


def times(count: int) -> F64:
    return np.arange(count) / FPS


def test_a_walk_that_is_cut_and_goes_on_under_another_identity_is_one_person() -> None:
    actor, random = walking(), np.random.default_rng(1)
    cut = range(50, 86)
    found = records(
        (t, [] if frame in cut else [noisy(actor.track(1 if frame < 50 else 7, t), random)])
        for frame, t in enumerate(times(150))
    )
    (person,) = motion(found).people
    assert person.tracks == (1, 7) and len(person.frames) == 150
    assert np.flatnonzero(person.filled).tolist() == list(cut)
    assert set(person.source[:50]) == {1} and set(person.source[86:]) == {7} and not person.source[50:86].any()
    truth = np.stack([actor.place(t) for t in times(150)])[50:86]
    frozen = np.linalg.norm(truth - actor.place(49 / FPS), axis=1).mean()
    assert np.linalg.norm((person.camera[50:86] - truth)[:, :2], axis=1).mean() < frozen / 2
    assert np.linalg.norm(person.camera[50:86] - truth, axis=1).mean() < frozen / 2


def test_a_gap_longer_than_asked_stays_a_gap() -> None:
    actor = walking()
    found = records(
        (t, [] if 50 <= frame < 86 else [actor.track(1 if frame < 50 else 7, t)])
        for frame, t in enumerate(times(150))
    )
    two = motion(found, gap=1.0).people
    assert [person.tracks for person in two] == [(1,), (7,)]
    same = records((t, [] if 50 <= frame < 86 else [actor.track(1, t)]) for frame, t in enumerate(times(150)))
    (person,) = motion(same, gap=1.0).people
    assert len(person.frames) == 150 - 36 and not person.filled.any() and len(person.spans()) == 2


@pytest.mark.parametrize("lost", [4, 15, 30, 45])
def test_people_who_cross_are_never_joined(lost: int) -> None:
    """Two walk towards each other; around the crossing both are lost, and come back under new identities."""
    right = walking(start=np.array([-1.3 * 1.5, 0, DISTANCE]))
    left = walking(FACING_LEFT, np.array([1.3 * 1.5, 0, DISTANCE + 0.3]))
    gone = range(45 - lost // 2, 45 + lost // 2)
    random = np.random.default_rng(lost)
    found = []
    for frame, t in enumerate(times(90)):
        after = frame >= gone.stop
        pair = [noisy(right.track(3 if after else 1, t), random), noisy(left.track(4 if after else 2, t), random)]
        found.append((t, [] if frame in gone else pair))
    for person in motion(records(found)).people:
        assert person.tracks in ((1,), (2,), (3,), (4,), (1, 3), (2, 4))


@pytest.mark.parametrize("lost", [3, 12, 30])
def test_one_who_leaves_where_another_comes_is_not_that_one(lost: int) -> None:
    right = walking(start=np.array([-1.3 * 1.5, 0, DISTANCE]))
    left = walking(FACING_LEFT, np.array([1.3 * 1.5, 0, DISTANCE]))
    found = []
    for frame, t in enumerate(times(90)):
        first, second = [right.track(1, t)], [left.track(2, t)]
        found.append((t, first if frame < 45 - lost // 2 else second if frame >= 45 + lost // 2 else []))
    assert [person.tracks for person in motion(records(found)).people] == [(1,), (2,)]


def test_two_who_are_visible_at_once_are_never_joined() -> None:
    actor = walking()
    found = records(
        (t, [actor.track(1, t)] * (frame < 52) + [actor.track(2, t)] * (frame >= 50))
        for frame, t in enumerate(times(100))
    )
    assert [person.tracks for person in motion(found).people] == [(1,), (2,)]


def test_repeated_last_poses_are_not_seen() -> None:
    """PHALP keeps a lost person's last pose for up to 50 frames, as if it were there."""
    actor = walking()
    still = actor.track(1, 39 / FPS)
    found = records((t, [actor.track(1, t) if f < 40 or f >= 80 else still]) for f, t in enumerate(times(120)))
    clip = collect(header(FPS), found)
    assert np.flatnonzero(~clip.tracks[0].seen).tolist() == list(range(40, 80))
    (person,) = motion(found).people
    assert np.flatnonzero(person.filled).tolist() == list(range(40, 80))
    # At its end nothing says where it went: it is gone.
    ended = motion(found[:80]).people[0]
    assert ended.frames[-1] == 39
    # And while somebody else is there under another identity, the repeated one is no reason not to join them.
    beside = [replace(record) for record in found]
    for frame in range(60, 120):
        beside[frame].tracks = (
            [still, actor.track(2, frame / FPS)] if frame < 80 else [actor.track(2, frame / FPS)]
        )
    (joined,) = motion(beside).people
    assert joined.tracks == (1, 2)


def test_a_picture_that_stands_still_shows_who_is_in_it() -> None:
    track = walking().track(1, 0.0)
    (person,) = motion(records((t, [track]) for t in times(120))).people
    assert len(person.frames) == 120 and not person.filled.any()


def test_what_the_tracker_predicts_and_failed_frames_are_filled() -> None:
    actor = walking()
    found = records((t, [actor.track(1, t, detected=not 20 <= f < 25)]) for f, t in enumerate(times(60)))
    found[40] = FrameRecord(40, 40 / FPS, [], Failure("mesh", "no"))
    (person,) = motion(found).people
    assert np.flatnonzero(person.filled).tolist() == [*range(20, 25), 40]


def acceleration(joints: F64) -> float:
    return float(np.linalg.norm(np.diff(joints, 2, axis=0), axis=2).mean()) * FPS**2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_slow_motion_comes_to_rest(seed: int) -> None:
    actor, random = swinging(0.3, 15), np.random.default_rng(seed)
    found = records((t, [noisy(actor.track(1, t), random)]) for t in times(150))
    rough, smooth = motion(found, smooth=False).people[0], motion(found).people[0]
    before = acceleration(rough.joints + rough.camera[:, None])
    assert acceleration(smooth.joints + smooth.camera[:, None]) < before / 2
    assert acceleration(smooth.joints) < acceleration(rough.joints) / 2
    truth = np.stack([actor.track(1, t).joints_3d for t in times(150)])
    errors = [np.linalg.norm(one.joints - truth, axis=2).mean() for one in (rough, smooth)]
    assert errors[1] < errors[0] * 0.7


@pytest.mark.parametrize("rate", [1.0, 2.0, 3.0])
def test_fast_motion_keeps_its_peaks(rate: float) -> None:
    actor = swinging(rate, 70)
    found = records((t, [actor.track(1, t)]) for t in times(120))
    smooth = motion(found).people[0]
    fine = np.stack([actor.track(1, t).joints_3d for t in times(120)])
    for joint in ("left_wrist", "right_wrist", "left_knee", "right_knee"):
        peaks = [
            np.linalg.norm(np.diff(joints[:, JOINT[joint]], axis=0), axis=1).max()
            for joints in (fine, smooth.joints)
        ]
        assert peaks[1] > 0.95 * peaks[0], joint


def test_smoothing_adds_no_delay() -> None:
    """A turn about its middle is turned about the same middle afterwards."""
    actor = swinging(0.5, 40)
    found = records((t, [actor.track(1, t)]) for t in times(121))
    forward, backward = (
        motion(found).people[0],
        motion(
            [replace(record, frame=120 - record.frame, time=4 - record.time) for record in reversed(found)]
        ).people[0],
    )
    assert np.abs(forward.pose - backward.pose[::-1]).max() < 1e-6


def test_the_same_results_give_the_same_bits() -> None:
    random = np.random.default_rng(3)
    found = records((t, [noisy(walking().track(1, t), random)]) for t in times(60))
    first, second = motion(found).people[0], motion(found).people[0]
    assert first.pose.tobytes() == second.pose.tobytes() and first.camera.tobytes() == second.camera.tobytes()


# -- the subject -------------------------------------------------------------------------------------------


def scene() -> list[FrameRecord]:
    """A small spectator who stands in a corner all the time (1), and a large athlete who moves (2), later."""
    spectator = Actor(walking().pose, lambda t: np.array([-3.0, 1.2, 140.0]))
    athlete = walking()
    still = spectator.pose(0.0)
    random = np.random.default_rng(5)
    found = []
    for frame, t in enumerate(times(90)):
        tracks = [noisy(make_track(1, still, spectator.place(t)), random, 0.5, 0.001)]
        if frame >= 20:
            tracks.append(noisy(athlete.track(2, t), random))
        found.append((t, tracks))
    return records(found)


def test_the_subject_is_who_is_large_and_moves() -> None:
    assert motion(scene()).subject == 2


def test_somebody_else_can_be_meant() -> None:
    found = scene()
    spot = found[30].tracks[0].joints_2d[0]
    assert motion(found, subject="1").subject == 1
    assert motion(found, subject=f"{spot[0]:.0f},{spot[1]:.0f}@30").subject == 1
    everybody = motion(found, subject="all")
    assert everybody.subject is None and [person.id for person in everybody.wanted()] == [1, 2]


def test_a_joined_track_s_own_identity_means_the_person() -> None:
    actor = walking()
    found = records((t, [actor.track(1 if f < 40 else 9, t)]) for f, t in enumerate(times(80)))
    assert motion(found, subject="9").subject == 1


@pytest.mark.parametrize(
    ("choice", "what"),
    [("7", "there are 1, 2"), ("639,1@30", "nobody is near"), ("1,1@900", "beyond the last"), ("me", "x,y@frame")],
)
def test_a_choice_that_means_nobody_is_named(choice: str, what: str) -> None:
    with pytest.raises(SubjectError, match=what):
        motion(scene(), subject=choice)


def test_nobody_is_no_error() -> None:
    empty = motion(records((t, []) for t in times(5)))
    assert empty.subject is None and empty.people == ()


def test_numbers_that_are_none_are_survived() -> None:
    """A backend that gives no pose, no depth, or what is no number, for some frames or for all."""
    actor, found = walking(), []
    for frame, t in enumerate(times(40)):
        track = actor.track(1, t)
        if frame % 3 == 0:
            track.pose, track.camera = track.pose * 0, track.camera * 0
        if frame % 7 == 0:
            track.joints_3d = np.full((24, 3), np.nan, np.float32)
            track.camera = np.full(3, np.inf, np.float32)
        found.append((t, [track]))
    (person,) = motion(records(found)).people
    assert np.isfinite(person.pose).all() and np.isfinite(person.camera).all() and np.isfinite(person.joints).all()
    bare = [(t, [replace(actor.track(2, t), joints_3d=np.zeros((24, 3), np.float32))]) for t in times(10)]
    assert len(motion(records(bare)).people[0].frames) == 10
