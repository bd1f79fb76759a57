"""The scheduler with a pipeline that only takes note: what real videos do too rarely to be tested with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.jobs.scheduler import Scheduler
from daemon.jobs.store import JobStore, State, StoreError, Submission
from daemon.settings.loading import load
from stages.owner.jobs import Job, JobFailed, JobOpened, JobOutcome, JobProgress
from tests.daemon.daemons import until


class Noting:
    """A pipeline that does nothing by itself."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.cancelled: list[str] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)


class Bench:
    def __init__(self, base: Path, *sets: str) -> None:
        self.base = base
        self.store = JobStore(base)
        self.pipeline = Noting()
        self.events: list[tuple[str, dict[str, Any]]] = []
        loaded = load(environ={}, sets=[f"results.folder={base / 'results'}", "results.exports=[]", *sets])
        self.scheduler = Scheduler(
            self.store, loaded, lambda *event: self.events.append(event), lambda *_: base / "none", lambda: None
        )
        self.scheduler.start(self.pipeline)

    def submit(self, name: str) -> str:
        (self.base / name).write_text(name)
        return self.store.add(Submission(str(self.base / name), name, "api"))[0].id

    def begun(self, count: int) -> list[str]:
        def there() -> bool:
            self.scheduler.turn()
            return len(self.pipeline.jobs) >= count

        until(there, f"{count} jobs in the pipeline")
        return [job.id for job in self.pipeline.jobs]

    def turns_until(self, condition: Callable[[], bool]) -> None:
        def reached() -> bool:
            self.scheduler.turn()
            return condition()

        until(reached, seconds=10.0)

    def state(self, job: str) -> State:
        found = self.store.get(job)
        assert found is not None
        return found.state


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, "api.max_duration=10")
    yield made
    made.scheduler.stop()
    made.store.close()


def test_a_stream_of_unknown_length_is_ended_when_it_has_become_too_long(bench: Bench) -> None:
    job = bench.submit("endless.mjpeg")
    bench.begun(1)
    bench.scheduler.on_event(JobOpened(job, 160, 120, 30.0, None))
    bench.scheduler.on_event(JobProgress(job, 300, 300, 300, 300))
    assert bench.state(job) is State.RUNNING
    bench.scheduler.on_event(JobProgress(job, 301, 300, 300, 300))
    found = bench.store.get(job)
    assert found is not None and (found.state, found.error) == (State.FAILED, "too-long")
    assert bench.pipeline.cancelled == [job] and "max_duration" in found.message


def test_no_more_than_two_are_begun_and_the_next_one_follows(bench: Bench) -> None:
    jobs = [bench.submit(f"{number}.mp4") for number in range(4)]
    assert bench.begun(2) == jobs[:2]
    bench.scheduler.turn()
    assert len(bench.pipeline.jobs) == 2
    bench.scheduler.on_event(JobFailed(jobs[0], "unreadable-video", "no", JobOutcome()))
    assert bench.begun(3) == jobs[:3]
    bench.scheduler.draining = True
    bench.scheduler.on_event(JobFailed(jobs[1], "unreadable-video", "no", JobOutcome()))
    for _ in range(20):
        bench.scheduler.turn()
    assert bench.state(jobs[3]) is State.QUEUED


def test_what_the_pipeline_says_of_a_cancelled_job_counts_no_more(bench: Bench) -> None:
    job = bench.submit("clip.mp4")
    bench.begun(1)
    bench.scheduler.cancel(job)
    bench.scheduler.on_event(JobFailed(job, "unreadable-video", "no", JobOutcome()))
    assert bench.state(job) is State.CANCELLED and not bench.scheduler.running()


def test_a_store_that_cannot_be_written_stops_new_jobs_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit("clip.mp4")

    def full(*args: object, **more: object) -> None:
        raise StoreError("disk-full", "no room on this disk")

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "move", full)
        for _ in range(3):
            bench.scheduler.turn()
        assert bench.scheduler.problem == "no room on this disk" and not bench.pipeline.jobs
    assert bench.begun(1) == [job] and bench.scheduler.problem is None
