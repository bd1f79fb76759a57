"""Decoding that takes long is no hang; in a video without times a decoder dies only so often."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stages.owner.jobs import JobDone
from stages.process.decode import Decode
from stages.process.start import StageConfig
from stages.results import read_results
from stages.source import open_source
from stages.transport.ring import Ring
from stages.transport.wire import unpack
from tests.stages.clips import H264, write_clip
from tests.stages.harness import Run

needs_h264 = pytest.mark.skipif(H264 != "libx264", reason="PyAV's FFmpeg cannot encode H.264 here")
PIXELS = 320 * 240
FRAMES = 30


class Pipe:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, data: bytes, urgent: bool = False) -> bool:
        self.sent.append(unpack(data))
        return True


class Link:
    """Counts how often decode says that it goes on, within one piece of work."""

    stopping = False
    context = None

    def __init__(self) -> None:
        self.said: list[str] = []
        self.heard: deque[tuple[str, dict[str, Any]]] = deque()
        self.went_on = 0
        self.most = 0

    def receive(self, timeout: float) -> Any:
        return self.heard.popleft() if self.heard else None

    def send(self, kind: str, payload: dict[str, Any]) -> None:
        self.said.append(kind)

    @contextmanager
    def working(self, activity: dict[str, Any]) -> Any:
        self.went_on = 0
        yield
        self.most = max(self.most, self.went_on)

    def idle(self) -> None: ...

    def progress(self) -> None:
        self.went_on += 1


class Config(StageConfig):
    def sender(self, context: Any) -> Any:
        return PIPE


PIPE = Pipe()


@pytest.fixture
def decode() -> Any:
    """A decode stage without a process, its link and its ring."""
    ring = Ring.create(40, 192 * 96 * 3)
    PIPE.sent.clear()
    link: Any = Link()
    config = Config("decode", ring.fd, None, ("",), 2, "", {}, max_pixels=PIXELS)
    yield Decode(link, config, ring), link
    ring.close()


def turns(decode: Decode, link: Link, *heard: tuple[str, dict[str, Any]]) -> None:
    link.heard.extend(heard)
    while decode._loop.step(decode._turn):
        pass


@pytest.mark.parametrize("name", ["one-key-frame.mp4", pytest.param("counted.avi", marks=needs_h264)])
def test_what_takes_longer_in_a_longer_video_says_that_it_goes_on(name: str, decode: Any, tmp_path: Path) -> None:
    stage, link = decode
    path = write_clip(tmp_path / name, FRAMES, gop=1000)
    turns(stage, link, ("open", {"job": 1, "source": str(path), "urgent": False}))
    assert link.said == ["opened"]
    assert link.most >= FRAMES  # all packets are read
    link.most = 0
    turns(stage, link, ("go", {"job": 1, "start": FRAMES - 2, "stop": None, "state": None}))
    assert [message.frame for message in PIPE.sent[:-1]] == [FRAMES - 2, FRAMES - 1]
    assert link.most >= FRAMES - 5  # all frames before are decoded again


def test_a_long_folder_says_that_it_goes_on(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(b"damaged")
    went_on = 0

    def progress() -> None:
        nonlocal went_on
        went_on += 1

    with pytest.raises(Exception, match="not one image"):
        open_source(tmp_path, max_pixels=PIXELS, progress=progress)
    assert went_on >= 80


@needs_h264
def test_a_video_without_times_whose_decoder_keeps_dying_costs_six_deaths_and_the_rest(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "counted.avi", FRAMES)
    assert open_source(path, max_pixels=PIXELS).info.frames is None
    # Whatever is wanted behind frame 20, decoding has to go through what kills.
    with Run(faults=tuple(f"decode:kill@{frame}xalways" for frame in range(20, FRAMES + 5))) as run:
        run.work(path, tmp_path / "job")
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert len(done.outcome.restarts) == 6
    assert done.outcome.frames == FRAMES
    assert [frame for frame, _ in done.outcome.failed_frames] == list(range(20, FRAMES))
    assert "builds on frame 21: killed by signal" in done.outcome.failed_frames[-1][1].reason
    assert "whether anything is behind frame 30" in (done.outcome.truncated or "")
    with read_results(tmp_path / "job" / "frames.msgpack") as results:
        assert [record.frame for record in results] == list(range(FRAMES))


@pytest.mark.parametrize("name", ["timed.mp4", pytest.param("counted.avi", marks=needs_h264)])
def test_a_decoder_that_dies_behind_the_last_frame_makes_up_none(name: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / name, FRAMES)
    with Run(faults=(f"decode:kill@{FRAMES}xalways",)) as run:
        run.work(path, tmp_path / "job")
        done = run.finish()
    assert isinstance(done, JobDone), run.story()
    assert (done.outcome.frames, done.outcome.failed_frames) == (FRAMES, [])
    assert len(done.outcome.restarts) == 3
