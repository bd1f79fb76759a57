"""GPU memory that has moved to host memory is noticed by what can be seen: full, and slow."""

from __future__ import annotations

import pytest

from daemon.telemetry.spilling import SpillWatch
from stages.settings import PipelineSettings, StageSettings
from tests.stages.harness import Run

GB = 1 << 30


class Card:
    """A pipeline whose mesh stage runs on one GPU, as far as the watch sees it."""

    def __init__(self, device: str = "cuda") -> None:
        self.watch = SpillWatch(PipelineSettings(mesh=StageSettings(device=device)))
        self.frames, self.seconds = 0, 0.0

    def work(self, pace: float, free: float, frames: int = 50) -> list[str]:
        self.frames += frames
        self.seconds += pace * frames
        worked = dict.fromkeys(("mesh", "detect"), (self.frames, self.seconds))
        device = {"index": 0, "name": "a laptop's GPU", "total": 8 * GB, "free": round(free * GB)}
        self.watch.look({"processes": {"mesh": None, "detect": None}, "worked": worked}, [device])
        return self.watch.problems


def test_full_and_slow_is_said_with_the_way_out() -> None:
    card = Card()
    for _ in range(4):
        assert not card.work(0.1, free=3.0)
    (problem,) = card.work(1.2, free=0.05)
    assert "mesh takes 12.0 times as long" in problem and "a laptop's GPU is full" in problem
    assert "stages.mesh.batch" in problem
    assert not card.work(0.1, free=3.0), "it is over"


@pytest.mark.parametrize(("pace", "free"), [(1.2, 3.0), (0.25, 0.05), (0.1, 0.05)])
def test_slow_alone_or_full_alone_is_no_problem(pace: float, free: float) -> None:
    card = Card()
    for _ in range(4):
        card.work(0.1, free=3.0)
    assert not card.work(pace, free=free)


def test_a_card_that_was_full_from_the_start_teaches_no_pace() -> None:
    card = Card()
    for _ in range(6):
        assert not card.work(1.2, free=0.05)


def test_the_first_frames_and_idle_times_say_nothing() -> None:
    card = Card()
    card.work(0.01, free=3.0, frames=10)
    assert not card.work(1.0, free=0.05, frames=60)
    for _ in range(4):
        card.work(0.1, free=3.0)
    assert not card.work(9.0, free=0.05, frames=2), "two frames are no pace"


def test_it_understands_what_the_pipeline_says() -> None:
    with Run() as run:
        SpillWatch(PipelineSettings(mesh=StageSettings(device="cuda"))).look(run.pipeline.status(), [])


def test_stages_on_the_cpu_are_left_alone() -> None:
    card = Card("cpu")
    for _ in range(4):
        card.work(0.1, free=3.0)
    assert not card.work(5.0, free=0.05)
