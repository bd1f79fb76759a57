"""The short form of the chaos run: `poseward run` under fire from outside and inside, killed itself and resumed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.memory import repeat
from tests.chaos import Storm, rage
from tests.paths import SHARED
from tests.stages.harness import write_squares

pytestmark = pytest.mark.alone

VIDEO = SHARED / "runner.mp4"
SHORT = ("deadlines.working=4", "deadlines.grace=1", "snapshot_every=20")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short, for sockets
        yield Path(folder)


def check(storm: Storm, faults: int) -> None:
    assert not storm.differs
    assert not storm.left
    assert storm.table.total() >= faults


@pytest.mark.parametrize("seed", [5])
def test_the_command_under_fire(seed: int, base: Path, tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "squares.mp4", 240)
    storm = rage(clip, base, "tests.stages.blocks", seed, 9, 9, 2, SHORT)
    check(storm, 9)
    assert any(name == "the command itself" for name, _ in storm.table), storm.table


@pytest.mark.video
@pytest.mark.skipif(not VIDEO.exists(), reason="runner.mp4 is not there")
def test_the_command_under_fire_on_real_video(base: Path, tmp_path: Path) -> None:
    clip = tmp_path / "runner.mp4"
    repeat(VIDEO, clip, 45)
    check(rage(clip, base, "blazepose", 2, 2, 2, 1, SHORT), 2)
