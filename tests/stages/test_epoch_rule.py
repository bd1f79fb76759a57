"""The epoch rule: whatever is lost, doubled, late or dead, each frame is committed once and in order."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.owner.jobs import JobDone
from stages.results import read_results
from supervisor import events as ev
from tests.stages.epoch_world import World

JOBS = (9, 3, 1)
ACCIDENTS = 8
"""Fewer than the replays without progress after which a job is given up."""

Steps = list[tuple[int, int, int]]
STEP = st.tuples(st.integers(0, 99), st.integers(0, 2**10), st.integers(0, 2**10))


@functools.cache
def undisturbed(*, follows: bool = False) -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder, World(Path(folder), JOBS, replicas=1, follows=follows) as world:
        world.finish()
        return tuple(world.results(number).read_bytes() for number in range(len(JOBS)))


def play(world: World, steps: Steps) -> None:
    """Who takes the next turn, and what goes wrong meanwhile."""
    accidents = 0
    for what, which, how in steps:
        alive, startable = world.alive(), world.startable()
        every = list(world.processes.values())
        process = every[which % len(every)]
        if what < 45:
            for _ in range(1 + how % 6):
                if process.stage is not None:
                    process.step()
        elif what < 65:
            for _ in range(1 + how % 6):
                world.hear(process)
        elif what < 80:
            process.heard.extend(process.told)  # what the owner said arrives, perhaps long after a message
            process.told.clear()
        elif what < 95 and startable:
            startable[which % len(startable)].start()
        elif what == 95 and alive:
            victim = alive[which % len(alive)]
            if world.may_die(victim):
                world.bury(victim, how)
        elif what in (96, 97) and alive:
            alive[which % len(alive)].step(fuse=how % 8)
        elif what == 98 and which % 3 == 0:
            world.now += 30.0
        elif what == 99 and accidents < ACCIDENTS:
            accidents += 1
            world.meddle(list(world.pipes.values())[which % len(world.pipes)], how % 4, how // 4)


def check_order(world: World) -> None:
    for number, frames in enumerate(JOBS):
        assert world.journaled[f"job{number}"] == list(range(frames))


def check(steps: Steps, *, follows: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder, World(Path(folder), JOBS, follows=follows) as world:
        play(world, steps)
        world.finish()
        check_order(world)
        assert sum(isinstance(event, JobDone) for event in world.events) == len(JOBS), world.events[-3:]
        for number, expected in enumerate(undisturbed(follows=follows)):
            assert world.results(number).read_bytes() == expected
        assert world.kept() == {}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=300, max_size=900), st.booleans())
def test_any_interleaving_gives_the_results_of_an_undisturbed_run(steps: Steps, follows: bool) -> None:
    check(steps, follows=follows)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.booleans())
def test_long_schedules(seed: int, follows: bool) -> None:
    """What lists of steps seldom reach: jobs that end in the middle of it all."""
    chance = Random(seed)
    steps = [(chance.randrange(100), chance.randrange(1024), chance.randrange(1024)) for _ in range(1500)]
    check(steps, follows=follows)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=300, max_size=900), st.booleans())
def test_frames_that_keep_killing_are_failed_and_all_are_there_once(steps: Steps, follows: bool) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        World(Path(folder), JOBS, most_deaths=1000, follows=follows) as world,
    ):
        play(world, steps)
        world.finish()
        check_order(world)
        assert world.kept() == {}
        for number, frames in enumerate(JOBS):
            with read_results(world.results(number)) as results:
                records = list(results)
            assert [record.frame for record in records] == list(range(frames))
            for record in records:
                if record.failed is not None:
                    # Jobs are numbered from 1 in the order of their opening: the urgent one may come first.
                    deaths = [world.deaths[record.failed.stage, job, record.frame] for job in (1, 2, 3)]
                    assert max(deaths) >= 3, (record.frame, record.failed)


def test_a_late_request_for_a_finished_job_does_not_cut_its_results() -> None:
    """The owner asks track for a job again when decode opens it anew before track has answered."""
    with tempfile.TemporaryDirectory() as folder, World(Path(folder), JOBS) as world:
        track = world.processes["track"]
        requests = {}
        finished = None
        while finished is None:
            for process in world.processes.values():
                for _ in range(len(process.out)):
                    world.hear(process)
                requests |= {said["job"]: (kind, said) for kind, said in track.told if kind == "job"}
                process.heard.extend(process.told)
                process.told.clear()
                process.step()
            said = [event for event in track.out if isinstance(event, ev.Message) and event.kind == "finished"]
            finished = next((event.payload["job"] for event in said), None)
        track.heard.append(requests[finished])
        track.step()
        world.finish()
        assert [world.results(number).read_bytes() for number in range(len(JOBS))] == list(undisturbed())


def test_decode_s_death_at_the_end_of_a_job_leaves_no_slot_taken() -> None:
    """Nobody tells the dead that the job has ended, and its successor finds the frames in the ring."""
    with tempfile.TemporaryDirectory() as folder, World(Path(folder), (3,)) as world:
        decode, track = world.processes["decode"], world.processes["track"]
        for _ in range(100):
            for process in world.processes.values():
                for _ in range(len(process.out)):
                    world.hear(process)
                if process is not decode or not world.journaled:  # it hears of no commit
                    process.heard.extend(process.told)
                    process.told.clear()
                process.step()
            if any(isinstance(event, ev.Message) and event.kind == "finished" for event in track.out):
                break
        world.bury(decode)
        assert len(world.pipeline._ring.entries()) == 3
        world.finish()
        assert world.kept() == {}
