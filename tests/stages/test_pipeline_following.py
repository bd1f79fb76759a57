"""A backend whose bodies depend on all frames before: deaths, replays and replicas change nothing in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stages.owner.jobs import JobDone
from stages.process.chain import MOST_JOBS, Chain
from stages.results import read_results
from stages.settings import StageSettings
from stages.transport.wire import FrameMessage
from tests.stages.harness import FAST, Run, results_of, write_squares

FRAMES = 50
FOLLOWING = replace(FAST, backend="tests.stages.following_blocks")
SLOW = replace(FOLLOWING, faults=("mesh:slow=0.02%1.0/1",))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("clips") / "squares.mp4", FRAMES)


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    with Run(FOLLOWING) as run:
        run.work(clip, folder)
        assert isinstance(run.finish(), JobDone), run.story()
    return results_of(folder)


@pytest.mark.parametrize("stage", ["decode", "detect", "mesh", "track"])
def test_a_stage_killed_in_the_middle_changes_nothing(
    stage: str, clip: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    with Run(SLOW) as run:
        run.work(clip, tmp_path)
        for mark in (7, 31):
            run.until(lambda mark=mark: run.committed() >= mark and run.ready(stage), f"frame {mark}")  # type: ignore[misc]
            run.kill(stage)
            run.until(lambda: not run.ready(stage), "the death noticed")
        assert isinstance(run.finish(), JobDone), run.story()
    assert results_of(tmp_path) == undisturbed


@pytest.mark.parametrize("fault", ["mesh:raise@0", "mesh:corrupt@22", "decode:corrupt@0", "detect:corrupt@9"])
def test_a_fault_that_fires_once_changes_nothing(
    fault: str, clip: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    with Run(FOLLOWING, faults=(fault,)) as run:
        run.work(clip, tmp_path)
        assert isinstance(run.finish(), JobDone), run.story()
    assert results_of(tmp_path) == undisturbed


@pytest.mark.parametrize("stage", ["detect", "mesh"])
def test_a_poisonous_frame_is_passed_over_always_in_the_same_way(stage: str, clip: Path, tmp_path: Path) -> None:
    found = []
    for number in range(2):
        settings = FOLLOWING if number == 0 else SLOW
        with Run(settings, faults=(*settings.faults, f"{stage}:kill@23xalways")) as run:
            run.work(clip, tmp_path / str(number))
            if number:
                run.until(lambda: run.committed() >= 35, "frame 35")
                run.kill("track")
            assert isinstance(run.finish(), JobDone), run.story()
        found.append(results_of(tmp_path / str(number)))
    assert found[0] == found[1]
    with read_results(tmp_path / "0" / "frames.msgpack") as results:
        assert [record.frame for record in results if record.failed is not None] == [23]


def test_a_job_continues_from_its_journal_in_another_life(clip: Path, undisturbed: bytes, tmp_path: Path) -> None:
    for mark in (13, 20):  # just behind a snapshot is where nothing is left of the journal to fold
        with Run(SLOW) as run:
            run.work(clip, tmp_path)
            run.until(lambda mark=mark: run.committed() >= mark, f"frame {mark}")  # type: ignore[misc]
    with Run(FOLLOWING) as run:
        run.work(clip, tmp_path)
        assert isinstance(run.finish(), JobDone), run.story()
    assert results_of(tmp_path) == undisturbed


def test_replicas_change_nothing_and_those_that_would_idle_are_named(
    clip: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    many = replace(FOLLOWING, detect=StageSettings(batch=1, replicas=3), mesh=StageSettings(batch=3, replicas=2))
    with Run(many, faults=("detect:slow=0.01%0.5/3",)) as run:
        run.work(clip, tmp_path)
        run.until(lambda: run.committed() >= 9, "frame 9")
        run.kill("detect.1")
        assert isinstance(run.finish(), JobDone), run.story()
        assert "mesh.1" not in run.pipeline.status()["processes"]
    assert [event.stage for event in run.said("one process")] == ["mesh"]
    assert results_of(tmp_path) == undisturbed


def message(frame: int, state: bytes | None = None, job: int = 1) -> FrameMessage:
    return FrameMessage(1, job, frame, 0.0, state=state)


def put(chain: Chain, *messages: FrameMessage) -> list[list[int]]:
    return [[ready.frame for ready in chain.put(taken)] for taken in messages]


def test_frames_wait_for_the_first_of_their_epoch_and_for_each_other() -> None:
    chain = Chain()
    assert put(chain, message(6), message(8), message(5, b"five"), message(7)) == [[], [], [5, 6], [7, 8]]
    assert chain.before(1, 6) == b"five"
    chain.after(1, b"six")
    assert chain.before(1, 6) == b"six"


def test_what_comes_twice_is_dropped() -> None:
    chain = Chain()
    assert put(chain, message(5, b"five"), message(6), message(5, b"five"), message(6)) == [[5], [6], [], []]


def test_nothing_is_known_before_a_group() -> None:
    chain = Chain(group=4)
    put(chain, message(3, b"three"))
    chain.after(1, b"four")
    assert (chain.before(1, 4), chain.before(1, 5)) == (b"", b"four")


def test_a_new_epoch_begins_anew() -> None:
    chain = Chain()
    assert put(chain, message(5, b"five"), message(7)) == [[5], []]
    chain.clear()
    assert put(chain, message(6), message(5, b"again"), message(7)) == [[], [5, 6], [7]]


def test_what_comes_after_a_job_is_forgotten_is_bounded() -> None:
    chain = Chain()
    for job in range(2 * MOST_JOBS):
        put(chain, message(3, job=job))
    assert len(chain._links) <= MOST_JOBS
