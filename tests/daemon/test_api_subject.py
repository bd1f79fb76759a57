"""The operation ``subject``: the main person of a job that is done, made when it is first asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from daemon.client import Client, ClientError
from daemon.exports import export
from daemon.motion.options import MotionOptions
from stages.records import Failure, FrameRecord
from stages.results import read_results
from tests.daemon.daemons import PATIENCE, Daemon
from tests.daemon.motion_clips import records, walking, write
from tests.stages.harness import write_squares

COUNT = 40


def clip(*, vertices: bool = True) -> list[FrameRecord]:
    """A walker whose identity changes after a gap, and somebody small beside him."""
    actor, small = walking(), walking(start=np.array([-3.0, 0.5, 200.0]), speed=0.05)
    found = []
    for frame in range(COUNT):
        t = frame / 30
        who = [] if 15 <= frame < 20 else [actor.track(1 if frame < 15 else 3, t, vertices=vertices)]
        found.append((t, sorted([*who, small.track(2, t, vertices=vertices)], key=lambda track: track.id)))
    return records(found)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A daemon's client, a job that is done, and its results folder, in which the clip above was found."""
    base = tmp_path_factory.mktemp("daemon")
    with Daemon(base) as daemon, daemon.client() as client:
        job = client.submit(write_squares(base / "clip.mp4", COUNT))["id"]
        ended = client.wait(job, PATIENCE)
        assert ended["state"] == "done", ended
        folder = Path(ended["results"])
        write(folder / "frames.msgpack", clip())
        yield client, job, folder


def test_the_subject_over_all_its_tracks(done: tuple[Client, str, Path]) -> None:
    client, job, folder = done
    found = list(client.subject(job))
    assert [record.frame for record in found] == list(range(COUNT))
    assert all([track.id for track in record.tracks] == [1] for record in found)
    sources = [record.tracks[0].extra["source"] for record in found]
    assert sources == [1] * 15 + [0] * 5 + [3] * 20
    assert [not record.tracks[0].detected for record in found] == [source == 0 for source in sources]
    assert found[17].tracks[0].extra["between"] == [14, 20]
    assert found[0].tracks[0].vertices is not None
    assert (folder / "subject.msgpack").is_file()
    again = list(client.subject(job, start=30, vertices=False))
    assert [record.frame for record in again] == list(range(30, COUNT)) and again[0].tracks[0].vertices is None


def test_somebody_else_and_everybody(done: tuple[Client, str, Path]) -> None:
    client, job, folder = done
    assert {track.id for record in client.subject(job, "2") for track in record.tracks} == {2}
    assert (folder / "person-2.msgpack").is_file()
    assert {track.id for record in client.subject(job, "all") for track in record.tracks} == {1, 2}
    spot = clip()[30].tracks[0].joints_2d[0]
    at = list(client.subject(job, f"{spot[0]:.0f},{spot[1]:.0f}@30", vertices=False))
    assert at[30].tracks[0].id == clip()[30].tracks[0].id


def test_who_is_not_there_is_named(done: tuple[Client, str, Path]) -> None:
    client, job, _ = done
    with pytest.raises(ClientError, match="there are 1, 3, 2") as refused:
        list(client.subject(job, "9"))
    assert refused.value.name == "no-such-subject"
    with pytest.raises(ClientError) as unknown:
        list(client.subject("nothing"))
    assert unknown.value.name == "no-such-job"


def test_results_of_a_backend_with_another_skeleton_have_a_subject_too(done: tuple[Client, str, Path]) -> None:
    client, _, folder = done
    second = write_squares(folder.parent.parent / "second.mp4", 12)
    job = client.submit(second, exports=["csv"])["id"]
    ended = client.wait(job, PATIENCE)
    assert ended["state"] == "done" and "the skeleton has no joint 'left_hip'" in ended["message"]
    assert [record.frame for record in client.subject(job)] == list(range(12))


def test_the_file_is_the_results_layout_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    found = clip(vertices=False)
    found[25] = FrameRecord(25, 25 / 30, [], Failure("mesh", "no"))
    results = write(tmp_path / "frames.msgpack", found)
    (path,) = export("subject", "clip.mp4", results, tmp_path)
    first = path.read_bytes()
    (path,) = export("subject", "clip.mp4", results, tmp_path)
    assert path.name == "subject.msgpack" and path.read_bytes() == first
    with read_results(path) as read:
        frames = list(read)
    assert len(frames) == COUNT and frames[25].failed is None and not frames[25].tracks[0].detected
    assert all(record.tracks[0].vertices is None for record in frames)
    # Raw tracks stay as they are.
    with read_results(results) as raw:
        assert [track.id for track in list(raw)[30].tracks] == [2, 3]


def test_joints_are_where_the_surface_is(tmp_path: Path) -> None:
    results = write(tmp_path / "frames.msgpack", clip())
    (path,) = export("subject", "clip.mp4", results, tmp_path, motion=MotionOptions(smooth=False))
    with read_results(results) as raw, read_results(path) as read:
        for before, after in zip(raw, read, strict=True):
            for track in before.tracks:
                if track.id != 2:
                    assert np.abs(after.tracks[0].joints_3d - track.joints_3d).max() < 1e-4
                    assert np.abs(after.tracks[0].joints_2d - track.joints_2d).max() < 0.05
                    assert np.abs(after.tracks[0].vertices - track.vertices).max() < 1e-4
