"""The fold over the journal: what it counts, and what it does with snapshots that it cannot use."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.process.fold import RESULTS_NAME, Fold
from stages.process.start import StageConfig
from stages.records import Failure, FrameRecord, People, Track
from stages.results import read_results
from stages.results.journal import JournalError
from stages.transport.wire import FrameMessage, pack_value, unpack_value
from tests.stages.blocks import BACKEND, Chain

INFO = {"width": 8, "height": 8, "fps": 30.0}


def fold_in(folder: Path, backend: Any = BACKEND, skipped: dict[int, str] | None = None) -> Fold:
    config = StageConfig("track", -1, None, (), 1, "tests.stages.blocks", {}, snapshot_every=10)
    return Fold(folder, backend, config, INFO, skipped or {}, lambda frame: nullcontext())


def people(count: int, value: float) -> People:
    empty = People.empty()
    arrays = {
        name: np.full((count, *getattr(empty, name).shape[1:]), value, np.float32)
        for name in ("boxes", "scores", "camera", "pose", "betas", "joints_3d", "joints_2d")
    }
    return People(**arrays)


def commit(fold: Fold, first: int, last: int, failed: tuple[int, ...] = ()) -> None:
    for frame in range(first, last):
        message = FrameMessage(1, 1, frame, frame / 30, -1, 0, 8, 8)
        if frame in failed:
            message.failed = Failure("mesh", "too hard")
        else:
            message.people = people(2, frame)
        fold.commit(message)


def whole(folder: Path, frames: int, **how: Any) -> bytes:
    fold = fold_in(folder)
    commit(fold, 0, frames, **how)
    fold.finish()
    return (folder / RESULTS_NAME).read_bytes()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], *frames: int) -> None:
    """Change snapshots as another version would have written them: whole, with the right checksum."""
    for frame in frames:
        path = folder / f"snapshot-{frame:012d}"
        state = unpack_value(path.read_bytes()[4:])
        change(state)
        data = pack_value(state)
        path.write_bytes(zlib.crc32(data).to_bytes(4, "little") + data)


def other_layout(state: dict[str, Any]) -> None:
    state["layout"] = 999
    state["tracker"] = b"something else entirely"


def before_there_were_layouts(state: dict[str, Any]) -> None:
    del state["layout"]


def other_backend(state: dict[str, Any]) -> None:
    state["backend"] = "humans4d"


def strange_tracker(state: dict[str, Any]) -> None:
    state["tracker"] = b"not what this tracker writes"


@pytest.mark.parametrize("frames", [(10,), (0, 10)])
@pytest.mark.parametrize("change", [other_layout, before_there_were_layouts, other_backend, strange_tracker])
def test_a_snapshot_of_another_version_is_left_out_and_folded_again(
    change: Callable[[dict[str, Any]], None], frames: tuple[int, ...], tmp_path: Path, capfd: Any
) -> None:
    expected = whole(tmp_path / "calm", 30)
    fold = fold_in(tmp_path / "job")
    commit(fold, 0, 16)
    fold.close()
    rewrite(tmp_path / "job", change, *frames)
    fold = fold_in(tmp_path / "job")
    assert fold.next_frame == 16
    assert "the snapshot at frame 10 is left out" in capfd.readouterr().err
    commit(fold, 16, 30)
    assert fold.finish().people == 60
    assert (tmp_path / "job" / RESULTS_NAME).read_bytes() == expected


def test_without_any_usable_snapshot_and_without_the_first_frames_the_job_fails_by_name(tmp_path: Path) -> None:
    fold = fold_in(tmp_path)
    commit(fold, 0, 35)
    fold.close()
    rewrite(tmp_path, other_layout, 20, 30)
    for _ in range(2):  # the first refusal leaves no lock behind
        with pytest.raises(JournalError, match=r"layout 999.*begin anew"):
            fold_in(tmp_path)


def test_a_results_file_that_was_tampered_with_is_written_again(tmp_path: Path) -> None:
    expected = whole(tmp_path / "calm", 20)
    for number, damage in enumerate([lambda path: path.unlink(), lambda path: path.write_bytes(b"short")]):
        folder = tmp_path / f"job{number}"
        fold = fold_in(folder)
        commit(fold, 0, 15)
        fold.close()
        damage(folder / RESULTS_NAME)
        fold = fold_in(folder)
        commit(fold, 15, 20)
        fold.finish()
        assert (folder / RESULTS_NAME).read_bytes() == expected


SOMEBODY = people(1, 0.0)


class Guessing(Chain):
    """Shows somebody in every frame, failed ones too, as a tracker does that fills in what it did not see."""

    def update(self, frame: int, time: float, people: People) -> list[FrameRecord]:
        guess = Track(
            frame + 7,
            SOMEBODY.boxes[0],
            1.0,
            SOMEBODY.camera[0],
            SOMEBODY.pose[0],
            SOMEBODY.betas[0],
            SOMEBODY.joints_3d[0],
            SOMEBODY.joints_2d[0],
        )
        return [FrameRecord(frame, time, [guess])]


def test_the_counts_are_those_of_the_file(tmp_path: Path) -> None:
    backend = replace(BACKEND, tracker=lambda options, width, height, fps: Guessing())
    fold = fold_in(tmp_path, backend, {5: "the tracker dies of it"})
    commit(fold, 0, 12, failed=(3, 4))
    tally = fold.finish()
    with read_results(tmp_path / RESULTS_NAME) as results:
        records = list(results)
    assert tally.people == sum(len(record.tracks) for record in records) == 9
    assert tally.ids == {track.id for record in records for track in record.tracks}
    assert [record.frame for record in records if record.failed] == sorted(tally.failures) == [3, 4, 5]
