"""Properties of the restart policy and of the batch controller."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from supervisor.batching import BatchController
from supervisor.policy import RestartTracker
from supervisor.spec import RestartPolicy

POLICIES = st.builds(
    RestartPolicy,
    base_delay=st.floats(0.001, 5),
    factor=st.floats(1, 4),
    max_delay=st.floats(5, 60),
    jitter=st.floats(0, 0.5),
    max_restarts=st.integers(0, 10),
    window=st.floats(1, 100),
    cooldown=st.floats(1, 100),
)
# What may happen to a process, and how many seconds after the event before it.
HISTORIES = st.lists(st.tuples(st.sampled_from(["death", "healthy", "reset"]), st.floats(0, 200)), max_size=60)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(POLICIES, HISTORIES, st.integers())
def test_delays_stay_in_bounds_and_the_circuit_opens_exactly_when_it_must(
    policy: RestartPolicy, history: list[tuple[str, float]], seed: int
) -> None:
    clock = Clock()
    tracker = RestartTracker(policy, clock, random.Random(seed))
    deaths: list[float] = []
    half_open = False
    for what, after in history:
        clock.now += after
        if what == "reset":
            tracker.reset()
            deaths, half_open = [], False
        elif what == "healthy":
            tracker.healthy()
            half_open = False
        else:
            decision = tracker.died()
            deaths = [time for time in deaths if clock.now - time <= policy.window] + [clock.now]
            must_open = half_open or len(deaths) > policy.max_restarts
            assert decision.opened is must_open
            if must_open:
                assert decision.delay == policy.cooldown
                assert tracker.open
                deaths, half_open = [], True
            else:
                assert decision.delay <= policy.max_delay * (1 + policy.jitter)
                assert decision.delay >= min(policy.base_delay, policy.max_delay) * (1 - policy.jitter)


@given(st.integers(1, 20))
def test_backoff_doubles_up_to_its_limit_and_starts_anew_after_a_healthy_life(deaths: int) -> None:
    policy = RestartPolicy(base_delay=0.1, factor=2, max_delay=5, jitter=0, max_restarts=1000)
    tracker = RestartTracker(policy, Clock(), random.Random(0))
    for number in range(deaths):
        assert tracker.died().delay == min(5, 0.1 * 2**number)
    tracker.healthy()
    assert tracker.died().delay == 0.1


def test_a_night_of_deaths_does_not_overflow() -> None:
    clock = Clock()
    tracker = RestartTracker(RestartPolicy(jitter=0), clock, random.Random(0))
    for _ in range(2000):
        clock.now += 31
        decision = tracker.died()
    assert decision.delay == RestartPolicy().max_delay


def test_the_circuit_closes_after_its_cooldown_and_one_more_death_opens_it_again() -> None:
    clock = Clock()
    tracker = RestartTracker(RestartPolicy(max_restarts=1, cooldown=60), clock, random.Random(0))
    assert [tracker.died().opened for _ in range(2)] == [False, True]
    clock.now += 60
    assert not tracker.open
    assert tracker.died().opened
    clock.now += 60
    tracker.healthy()
    assert not tracker.died().opened


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 40))
def test_the_batch_converges_below_what_fits(limit: int, fits: int, patience: int) -> None:
    controller = BatchController(limit, patience)
    overruns = 0
    for _ in range(10 * patience + 20):
        assert 1 <= controller.size <= limit
        if controller.size > fits:
            overruns += 1
            assert not controller.out_of_memory()
        else:
            controller.succeeded()
    # To come down takes a halving a time; after that, one overrun for each patient climb at most.
    assert overruns <= limit.bit_length() + 10 + 20 // patience


@given(st.integers(1, 64), st.lists(st.booleans(), max_size=300))
def test_only_at_one_does_out_of_memory_ask_for_a_restart(limit: int, outcomes: list[bool]) -> None:
    controller = BatchController(limit, patience=3)
    for fitted in outcomes:
        before = controller.size
        if fitted:
            controller.succeeded()
            assert before <= controller.size <= min(limit, before + 1)
        else:
            assert controller.out_of_memory() is (before == 1)
            assert controller.size == max(1, before // 2)
