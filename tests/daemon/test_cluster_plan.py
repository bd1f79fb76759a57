"""Which segment goes where: nothing twice but what is slow, nothing lost, nothing far ahead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.cluster.plan import Plan, Segment, cut


@given(st.integers(1, 5000), st.integers(1, 700))
def test_segments_are_the_frames_each_once(frames: int, length: int) -> None:
    segments = cut("a", frames, length)
    assert [n for s in segments for n in range(s.first, s.stop)] == list(range(frames))
    assert all(0 < s.frames <= length for s in segments)


def test_jobs_go_by_priority_then_by_age() -> None:
    plan = Plan(ahead=8)
    plan.add("old", 2, 1)
    plan.add("new", 1, 1)
    plan.add("urgent", 1, 1, priority=5)
    assert [str(plan.assign(s).job) for s in "wxyz"] == ["urgent", "old", "old", "new"]  # type: ignore[union-attr]


def test_nothing_is_worked_on_far_beyond_what_is_missing() -> None:
    plan = Plan(ahead=3)
    plan.add("a", 10, 1)
    slow = plan.assign("slow")
    for _ in range(2):
        assert plan.assign("quick") is not None
        plan.finished("quick")
    again = plan.assign("quick")
    assert again == slow == Segment("a", 0, 1)  # there is room for nothing else: the slow one is done twice
    assert plan.finished("quick") == slow
    assert plan.finished("slow") is None  # the first answer counts
    assert plan.assign("slow") == Segment("a", 3, 4)


def test_no_more_than_two_work_on_one_segment() -> None:
    plan = Plan(ahead=3)
    plan.add("a", 1, 1)
    assert plan.assign("x") == plan.assign("y") is not None
    assert plan.assign("z") is None


@given(st.lists(st.tuples(st.sampled_from("wxyz"), st.sampled_from(["finish", "die"])), max_size=200))
def test_whoever_dies_every_segment_is_finished_once(events: list[tuple[str, str]]) -> None:
    plan = Plan(ahead=4)
    part = plan.add("a", 23, 3, done={3, 9})
    finished: list[Segment] = []
    idle = set("wxyz")
    for station, what in [*events, *((station, "finish") for _ in range(30) for station in "wxyz")]:
        for other in sorted(idle):
            if plan.assign(other) is not None:
                idle.discard(other)
        if station in idle:
            continue
        if what == "die":
            plan.lost(station)
        elif (done := plan.finished(station)) is not None:
            finished.append(done)
        idle.add(station)
    assert part.complete
    assert sorted(s.first for s in finished) == [first for first in range(0, 23, 3) if first not in (3, 9)]


def test_a_dropped_job_is_nobodys_work() -> None:
    plan = Plan(ahead=4)
    plan.add("a", 4, 1)
    plan.assign("x")
    assert plan.drop("a") == ["x"]
    assert plan.finished("x") is None and plan.assign("x") is None
