"""The worker of detect and mesh by itself: what it does with a batch that does not fit."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from stages.process.start import StageConfig
from stages.process.worker import Worker
from stages.transport.ring import Ring
from stages.transport.wire import FrameMessage, pack, unpack

BATCH = 4


class Pipe:
    def __init__(self) -> None:
        self.urgent: deque[bytes] = deque()
        self.inside: deque[bytes] = deque()
        self.full = False
        """The lane of what is not urgent."""

    def receive(self, urgent: bool = False) -> bytes | None:
        lane = self.urgent if urgent else self.inside
        return lane.popleft() if lane else None

    def send(self, data: bytes, urgent: bool = False) -> bool:
        if self.full and not urgent:
            return False
        (self.urgent if urgent else self.inside).append(data)
        return True


class Config(StageConfig):
    def sender(self, context: Any) -> Any:
        return OUT


class Link:
    stopping = False
    context = None

    def __init__(self) -> None:
        self.said: list[str] = []
        self.busy = False
        self.figures: dict[str, float] = {}
        self.control: deque[tuple[str, dict[str, Any]]] = deque()

    def receive(self, timeout: float) -> tuple[str, dict[str, Any]] | None:
        return self.control.popleft() if self.control else None

    def send(self, kind: str, payload: dict[str, Any]) -> None:
        self.said.append(kind)

    @contextmanager
    def working(self, activity: dict[str, Any]) -> Any:
        self.busy = True
        yield
        self.busy = False

    def idle(self) -> None:
        self.busy = False

    def metrics(self, **values: float) -> None:
        self.figures.update(values)


OUT = Pipe()


class Bench:
    def __init__(self, fits: int) -> None:
        OUT.inside.clear()
        OUT.urgent.clear()
        OUT.full = False
        self.link: Any = Link()
        self.into = Pipe()
        self.ring = Ring.create(8, 12)
        self.sizes: list[int] = []
        self.generations: dict[int, int] = {}
        self.fits = fits
        config = Config(
            stage="mesh",
            ring_fd=self.ring.fd,
            listens="",
            feeds=("",),
            depth=2,
            backend="",
            options={},
            batch=BATCH,
        )
        receiver: Any = self.into
        self.worker = Worker(self.link, config, receiver, self.ring, self.process)

    def process(self, frames: Any, messages: Any) -> None:
        self.sizes.append(len(frames))
        if len(frames) > self.fits:
            raise MemoryError(f"{len(frames)} frames")

    def put(self, frames: range, urgent: bool = False) -> None:
        for frame in frames:
            slot = frame % 8
            self.generations[frame] = self.ring.write(slot, 1, frame, 0.0, np.zeros((2, 2, 3), np.uint8))
            self.emit(range(frame, frame + 1), 0, urgent)

    def emit(self, frames: range, epoch: int, urgent: bool = False) -> None:
        """Frames that stand in the ring."""
        for frame in frames:
            message = FrameMessage(epoch, 1, frame, 0.0, frame % 8, self.generations[frame], 2, 2, urgent=urgent)
            self.into.send(pack(message), urgent)

    def work(self) -> None:
        while self.worker._loop.step(self.worker._turn):
            pass

    def passed_on(self, urgent: bool = False) -> list[int]:
        messages = [unpack(data) for data in (OUT.urgent if urgent else OUT.inside)]
        return [message.frame for message in messages if isinstance(message, FrameMessage)]


@pytest.mark.parametrize("fits", [1, 2, 3, 4])
def test_the_batch_comes_down_to_what_fits_and_no_frame_is_lost_or_doubled(fits: int) -> None:
    bench = Bench(fits)
    bench.put(range(8))
    bench.work()
    assert bench.passed_on() == list(range(8))
    overruns = [size for size in bench.sizes if size > fits]
    assert bench.link.said.count("shrunk") == len(overruns) <= 2
    bench.ring.close()


def test_at_one_frame_the_process_gives_up() -> None:
    bench = Bench(0)
    bench.put(range(4))
    with pytest.raises(MemoryError):
        bench.work()
    assert bench.sizes == [4, 2, 1]
    bench.ring.close()


def test_a_batch_that_a_new_epoch_takes_away_after_it_did_not_fit_leaves_nobody_busy() -> None:
    """Busy without work would be a hang, and its deadline would kill a healthy process."""
    bench = Bench(0)
    bench.put(range(4))
    assert bench.worker._loop.step(bench.worker._turn)
    assert bench.link.said == ["shrunk"]
    bench.link.control.append(("epoch", {"epoch": 1}))
    assert not bench.worker._loop.step(bench.worker._turn)
    assert not bench.link.busy
    bench.ring.close()


def test_only_full_batches_let_it_grow_again() -> None:
    bench = Bench(2)
    bench.put(range(4))
    bench.work()
    for frame in range(4, 80):
        bench.put(range(frame, frame + 1))
        bench.work()
    assert max(bench.sizes[3:]) == 1
    assert bench.link.figures["batch"] == 2
    bench.fits = 4
    for start in range(80, 80 + 2 * 40, 2):
        bench.put(range(start, start + 2))
        bench.work()
    assert bench.link.figures["batch"] == 3
    bench.ring.close()


def test_what_was_found_already_is_sent_again_without_work() -> None:
    bench = Bench(4)
    bench.put(range(6))
    bench.work()
    assert sum(bench.sizes) == 6
    OUT.inside.clear()
    bench.put(range(6, 7))
    bench.emit(range(7), epoch=1)
    bench.work()
    assert sum(bench.sizes) == 7  # only frame 6 was new
    assert bench.passed_on() == list(range(7))
    assert {unpack(data).epoch for data in OUT.inside} == {1}
    bench.ring.close()


def test_what_was_found_in_another_picture_of_that_number_is_not() -> None:
    """The slot was given away meanwhile, and decode has decoded the frame again."""
    bench = Bench(4)
    bench.put(range(2))
    bench.work()
    bench.put(range(2))
    bench.work()
    assert sum(bench.sizes) == 4
    bench.ring.close()


def test_what_is_kept_is_bounded_and_goes_with_its_job() -> None:
    bench = Bench(4)
    for start in range(0, 40, 4):
        bench.put(range(start, start + 4))
        bench.work()
    assert sorted(frame for _, frame in bench.worker._found) == list(range(32, 40))
    bench.link.control.append(("drop", {"job": 1}))
    bench.work()
    assert not bench.worker._found
    bench.ring.close()


def test_what_is_urgent_goes_first_and_in_a_batch_of_its_own() -> None:
    bench = Bench(BATCH)
    bench.put(range(3))
    assert bench.worker._loop.step(bench.worker._turn)
    bench.put(range(3, 5))
    bench.put(range(5, 7), urgent=True)
    bench.work()
    assert bench.sizes == [3, 2, 2]
    assert bench.passed_on(urgent=True) == [5, 6] and bench.passed_on() == [0, 1, 2, 3, 4]
    bench.ring.close()


def test_a_full_pipe_holds_up_what_is_urgent_no_more_than_what_is_in_work() -> None:
    bench = Bench(BATCH)
    OUT.full = True
    bench.put(range(4))
    bench.work()
    bench.put(range(4, 6))
    bench.work()
    assert bench.sizes == [4], "nothing more is begun while the pipe is full"
    bench.put(range(6, 7), urgent=True)
    bench.work()
    assert bench.sizes == [4, 1] and bench.passed_on(urgent=True) == [6] and bench.passed_on() == []
    OUT.full = False
    bench.work()
    assert bench.sizes == [4, 1, 2] and bench.passed_on() == list(range(6))
    bench.ring.close()


def test_a_new_epoch_takes_away_what_is_urgent_too() -> None:
    bench = Bench(BATCH)
    bench.put(range(1), urgent=True)
    bench.link.control.append(("epoch", {"epoch": 1}))
    bench.work()
    assert bench.sizes == [] and bench.passed_on(urgent=True) == []
    bench.emit(range(1), 1, urgent=True)
    bench.work()
    assert bench.passed_on(urgent=True) == [0]
    bench.ring.close()
