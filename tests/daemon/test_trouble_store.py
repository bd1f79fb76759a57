"""What happens to jobs when the store refuses for a while, or is told what SQLite does not take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.jobs.store import JobStore, State, StoreError, Submission
from stages.owner.jobs import JobDone, JobFailed, JobOutcome
from tests.daemon.daemons import PATIENCE, Daemon
from tests.daemon.disks import disk_at
from tests.daemon.test_scheduler import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.scheduler.stop()
    made.store.close()


class Refusing:
    """Has a store's writes refused while `on`, as on a full disk."""

    def __init__(self, store: JobStore | type[JobStore], monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        for name in ("move", "note"):
            monkeypatch.setattr(store, name, self._unless_full(getattr(store, name)))

    def _unless_full(self, method: object) -> object:
        def do(*args: object, **more: object) -> object:
            if self.on:
                raise StoreError("disk-full", "no room on this disk")
            return method(*args, **more)  # type: ignore[operator]

        return do


def test_a_failure_that_cannot_be_written_down_is_written_down_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit("clip.mp4")
    bench.begun(1)
    refusing = Refusing(bench.store, monkeypatch)
    refusing.on = True
    bench.scheduler.on_event(JobFailed(job, "unreadable-video", "no", JobOutcome()))
    for _ in range(3):
        bench.scheduler.turn()
    assert bench.state(job) is State.RUNNING and bench.scheduler.problem == "no room on this disk"
    refusing.on = False
    bench.turns_until(lambda: bench.state(job) is State.FAILED)
    found = bench.store.get(job)
    assert found is not None and found.error == "unreadable-video"
    assert not bench.scheduler.running() and bench.scheduler.problem is None


def test_results_that_cannot_be_written_down_are_written_down_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit("clip.mp4")
    bench.begun(1)
    (Path(bench.pipeline.jobs[0].folder) / "frames.msgpack").touch()
    refusing = Refusing(bench.store, monkeypatch)
    refusing.on = True
    bench.scheduler.on_event(JobDone(job, JobOutcome()))
    bench.turns_until(lambda: bench.scheduler.problem is not None)
    refusing.on = False
    bench.turns_until(lambda: bench.state(job) is State.DONE)
    assert not bench.scheduler.running()


@pytest.mark.parametrize("refused", ["folder", "sha256"])
def test_a_job_whose_place_cannot_be_written_down_is_begun_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Without holding up the daemon: two jobs that never leave their preparation would be all it ever begins."""
    refusing = Refusing(bench.store, monkeypatch)
    note = bench.store.note

    def from_then_on(job: str, **changes: object) -> None:
        refusing.on = refusing.on or (refused in changes and not bench.pipeline.jobs)
        note(job, **changes)

    monkeypatch.setattr(bench.store, "note", from_then_on)
    jobs = [bench.submit(f"{number}.mp4") for number in range(3)]
    bench.turns_until(lambda: bench.scheduler.problem is not None)
    monkeypatch.setattr(bench.store, "note", note)
    refusing.on = False
    begun = bench.begun(2)
    assert sorted(begun) == sorted(jobs[:2])


def test_messages_about_names_that_are_not_utf8_are_stored(bench: Bench) -> None:
    odd = os.path.join(os.fsencode(bench.base), b"odd\xff.mp4")
    Path(os.fsdecode(odd)).touch()
    job = bench.store.add(Submission(os.fsdecode(odd), "odd", "drop"))[0].id
    bench.turns_until(lambda: bench.state(job) is State.FAILED)
    found = bench.store.get(job)
    assert found is not None and found.error == "empty-file" and "odd" in found.message


def test_no_results_are_put_where_another_video_is_worked_on(bench: Bench) -> None:
    """`a.poseward-work.mp4` would have its results in `a.poseward-work`."""
    other = bench.submit("a.poseward-work.mp4")
    (folder,) = [Path(bench.pipeline.jobs[0].folder) for _ in bench.begun(1)]
    bench.submit("a.mp4")
    bench.begun(2)
    worked_on = Path(bench.pipeline.jobs[1].folder)
    (worked_on / "journal").write_bytes(b"hours of work")
    (folder / "frames.msgpack").touch()
    bench.scheduler.on_event(JobDone(other, JobOutcome()))
    bench.turns_until(lambda: bench.state(other) is State.DONE)
    assert (worked_on / "journal").read_bytes() == b"hours of work"


def test_a_daemon_that_begins_on_a_full_disk_takes_up_its_jobs_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = JobStore(tmp_path)
    (tmp_path / "clip.mp4").write_text("clip")
    job = before.add(Submission(str(tmp_path / "clip.mp4"), "clip.mp4", "api"))[0].id
    before.move(job, [State.QUEUED], State.RUNNING)
    before.close()
    refusing = Refusing(JobStore, monkeypatch)
    refusing.on = True
    bench = Bench(tmp_path)
    try:
        bench.scheduler.turn()
        assert bench.scheduler.problem == "no room on this disk" and bench.state(job) is State.RUNNING
        refusing.on = False
        assert bench.begun(1) == [job] and bench.scheduler.problem is None
    finally:
        bench.scheduler.stop()
        bench.store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_start_on_a_full_disk_is_one_that_systemd_tries_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with disk_at(state, "2m"):
        JobStore(state).close()
        with (state / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        daemon = Daemon(tmp_path).start(wait=False)
        assert daemon.process is not None and daemon.process.wait(PATIENCE) == 1, daemon.story()
        assert "disk-full" in daemon.story() and "make room" in daemon.story()
