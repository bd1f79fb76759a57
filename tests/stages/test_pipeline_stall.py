"""What counts as a standstill, by a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stages.owner import pipeline as module
from stages.owner.pipeline import STALL_AFTER, Pipeline


class Stand:
    """A pipeline of which only the watch over standstills is real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.busy = {"decode": 0.0, "detect": 0.0, "mesh": 0.0, "track": 0.0}
        self.replays = 0
        pipeline: Any = object.__new__(Pipeline)
        pipeline._active = {1: object()}
        pipeline._ready = set(self.busy)
        pipeline._last_commit = pipeline._last_work = self.now
        pipeline._supervisor = SimpleNamespace(
            states=lambda: {name: SimpleNamespace(busy_seconds=busy) for name, busy in self.busy.items()}
        )
        pipeline._tell = lambda *told: None
        pipeline._raise_epoch = self._replay
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.pipeline = pipeline

    def _replay(self, *, lost: bool) -> None:
        assert lost
        self.replays += 1
        self.pipeline._last_commit = self.now

    def run(self, seconds: float, **busy: float) -> int:
        """Let time pass; returns the replays meanwhile."""
        before = self.replays
        self.busy = {**dict.fromkeys(self.busy, 0.0), **busy}
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            self.pipeline._check_stall()
        return self.replays - before


def test_a_stage_at_work_on_a_long_frame_is_no_standstill(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    assert stand.run(79, detect=1.0) == 0
    # Its frame is on the way to the next stage, and the next one is idle still.
    assert stand.run(2) == 0
    assert stand.run(30, mesh=0.5) == 0
    assert stand.run(STALL_AFTER - 1) == 0
    # But then it has got lost.
    assert stand.run(2) == 1


def test_idle_stages_and_no_commit_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    assert stand.run(STALL_AFTER - 1) == 0
    assert stand.run(2) == 1
    assert stand.run(STALL_AFTER - 3) == 0
    stand.pipeline._ready.discard("mesh")  # it is being restarted, and takes its time
    assert stand.run(60) == 0
    stand.pipeline._ready.add("mesh")
    assert stand.run(STALL_AFTER - 1) == 0
    assert stand.run(2) == 1
