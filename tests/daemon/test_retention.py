"""Retention: nothing in use, unfetched or foreign ever goes; what is old or too much does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.api.uploads import ABANDONED_AFTER, Uploads
from daemon.cli import cli
from daemon.jobs import places, summary
from daemon.jobs.store import JobStore, State, StoredJob, Submission
from daemon.retention.clock import CredibleClock
from daemon.retention.pruning import DAY, GIGABYTE, IDLE, Standing, decide
from daemon.retention.retention import REMOVED, Daemon, Retention, measure
from daemon.settings.schema import RetentionSettings
from daemon.telemetry.logs import RotatingFile
from stages.owner.jobs import JobOutcome
from tests.daemon.daemons import PATIENCE, until
from tests.daemon.daemons import Daemon as RealDaemon
from tests.stages.harness import write_squares

NOW = 1_800_000_000.0


def job(number: int, **more: Any) -> StoredJob:
    values: dict[str, Any] = {
        "id": f"j{number}", "number": number, "state": State.DONE, "priority": 0, "source": "/x", "name": "x",
        "origin": "api", "client_key": None, "options": {}, "attempts": 1, "sha256": "0" * 64, "bytes": 1,
        "folder": None, "results": None, "same_as": None, "frames": 1, "summary": None, "error": None, "message": "",
        "created": 0.0, "started": 0.0, "ended": 0.0, "fetched": None,
    }  # fmt: skip
    return StoredJob(**{**values, **more})


# -- what is decided, for any set of jobs and settings -----------------------------------------------------------

ages = st.floats(0.0, 100.0).map(lambda days: NOW - days * DAY)
limits = st.sampled_from([0.0, 0.001, 1.0, 30.0])


@st.composite
def worlds(draw: Any) -> tuple[list[StoredJob], dict[str, Standing], dict[str, Standing], set[str]]:
    jobs: list[StoredJob] = []
    results: dict[str, Standing] = {}
    works: dict[str, Standing] = {}
    for number in range(draw(st.integers(0, 8))):
        state = draw(st.sampled_from(list(State)))
        ended = draw(ages) if state.final else None
        fetched = draw(st.none() | ages) if state is State.DONE else None
        earlier = [other for other in jobs if other.state is State.DONE and other.same_as is None]
        if earlier and draw(st.booleans()):
            of = draw(st.sampled_from(earlier))
            path = of.results if state is State.DONE else None
            jobs.append(job(number, state=state, ended=ended, fetched=fetched, same_as=of.id, results=path))
            continue
        path = f"/results/{number}" if state is State.DONE else None
        jobs.append(job(number, state=state, ended=ended, fetched=fetched, results=path, folder=str(number)))
        if path is not None and draw(st.booleans()):
            owner = draw(st.sampled_from([f"j{number}", f"j{number}", "foreign", None]))
            results[path] = Standing(Path(path), draw(st.integers(0, 10**9)), draw(ages), owner)
        elif state in (State.FAILED, State.CANCELLED) and draw(st.booleans()):
            works[f"j{number}"] = Standing(Path(f"/results/{number}.poseward-work"), 5, draw(ages))
    reading = set(draw(st.lists(st.sampled_from([one.id for one in jobs]), max_size=2))) if jobs else set()
    return jobs, results, works, reading


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.builds(RetentionSettings, limits, limits, st.booleans(), limits, limits))
def test_nothing_in_use_unfetched_or_foreign_goes(world: Any, wanted: RetentionSettings) -> None:
    jobs, results, works, reading = world
    by_id = {one.id: one for one in jobs}
    removals = decide(jobs, results, works, wanted, NOW, reading)
    gone_jobs = {removal.job for removal in removals if removal.kind == "job"}
    for removal in removals:
        assert removal.job in by_id
        of = by_id[removal.job]
        assert of.state.final and of.ended is not None
        if removal.kind == "results":
            assert removal.path is not None
            standing = results[str(removal.path)]
            assert standing.owner == of.id and NOW - standing.touched >= IDLE
            for other in jobs:
                if other.results == str(removal.path) or other.same_as == of.id:
                    assert other.state.final, "a job that is not done yet needs it"
                    assert other.id not in reading
                    assert other.fetched is None or NOW - other.fetched >= IDLE
                if other.results == str(removal.path) and other.state is State.DONE:
                    assert wanted.unfetched or other.fetched is not None, (
                        "the only copy of what nobody has fetched"
                    )
            total = sum(one.size for one in results.values())
            old = wanted.results_days and NOW - of.ended > wanted.results_days * DAY
            assert old or (wanted.results_gb and total > wanted.results_gb * GIGABYTE)
        elif removal.kind == "work":
            assert of.state in (State.FAILED, State.CANCELLED) and wanted.work_days
            assert NOW - of.ended > wanted.work_days * DAY and NOW - works[of.id].touched >= IDLE
        else:
            assert wanted.jobs_days and NOW - of.ended > wanted.jobs_days * DAY
            assert of.id not in works and of.results not in results and of.id not in reading
            assert not [one for one in jobs if one.same_as == of.id], "its results are another's too"
    assert len({(removal.kind, removal.job) for removal in removals}) == len(removals)
    if wanted == RetentionSettings(work_days=0.0):
        assert not removals
    if not wanted.jobs_days:
        assert not gone_jobs


def test_the_oldest_go_until_the_rest_fits() -> None:
    jobs = [job(n, results=f"/r/{n}", ended=NOW - (9 - n) * DAY, fetched=NOW - DAY) for n in range(5)]
    results = {f"/r/{n}": Standing(Path(f"/r/{n}"), 10**9, 0.0, f"j{n}") for n in range(5)}
    found = decide(jobs, results, {}, RetentionSettings(results_gb=3.0), NOW)
    assert [removal.job for removal in found] == ["j0", "j1"]
    assert "retention.results_gb" in found[0].reason
    assert [r.job for r in decide(jobs, results, {}, RetentionSettings(results_days=6.5), NOW)] == [
        "j0",
        "j1",
        "j2",
    ]


# -- with a store and folders on disk ----------------------------------------------------------------------------


@dataclass
class World:
    """A store and folders, and a retention whose loop is this thread."""

    base: Path
    settings: RetentionSettings
    now: float = field(default_factory=lambda: time.time() + 50 * DAY)
    running: dict[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    before_loop: Callable[[], None] = lambda: None
    loops: int = 0

    def __post_init__(self) -> None:
        self.results = self.base / "results"
        self.results.mkdir()
        self.store = JobStore(self.base, clock=lambda: time.time())
        self.removed: list[tuple[str, int]] = []

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        self.before_loop()
        self.loops += 1
        future: Future[Any] = Future()
        future.set_result(work())
        return future

    def retention(self, **more: Any) -> Retention:
        around = Daemon(
            self.call, self.running.keys, lambda job: {"phase": self.running[job]}, lambda _: self.read,
            lambda kind, size: self.removed.append((kind, size)),
        )  # fmt: skip
        more = {"clock": lambda: self.now, **more}
        return Retention(self.store, self.settings, self.results, around, **more)

    def done(self, name: str, *, fetched: bool = True, same_as: StoredJob | None = None) -> StoredJob:
        made, _ = self.store.add(Submission(f"/in/{name}.mp4", f"{name}.mp4", "api"))
        self.store.move(made.id, [State.QUEUED], State.RUNNING)
        if same_as is None:
            folder = self.results / name
            folder.mkdir()
            content = summary.summarise(
                Path(made.source), {"sha256": "a" * 64}, JobOutcome(), backend="b", settings={}
            )
            summary.write_summary(folder, {**content, "job": made.id})
            (folder / "frames.msgpack").write_bytes(b"x" * 1000)
            self.store.move(made.id, [State.RUNNING], State.DONE, folder=name, results=str(folder))
        else:
            self.store.move(made.id, [State.RUNNING], State.DONE, same_as=same_as.id, results=same_as.results)
        if fetched:
            self.store.fetched(made.id)
        found = self.store.get(made.id)
        assert found is not None
        return found

    def failed(self, name: str, state: State = State.FAILED, digest: str = "b" * 64) -> tuple[StoredJob, Path]:
        made, _ = self.store.add(Submission(f"/in/{name}.mp4", f"{name}.mp4", "api"))
        self.store.move(made.id, [State.QUEUED], State.RUNNING, folder=name, sha256="b" * 64)
        place = places.claim(self.results, name, {"sha256": digest}, {})
        assert place is not None
        place.release()
        (place.job).mkdir(exist_ok=True)
        (place.job / "journal").write_bytes(b"y" * 500)
        found = self.store.move(made.id, [State.RUNNING], state)
        assert found is not None
        return found, place.work


def made_old(store: JobStore, job: str, at: float) -> None:
    """As if the job had been submitted and done then."""
    store.note(job, ended=at)
    with contextlib.closing(sqlite3.connect(store.path)) as database, database:
        database.execute("UPDATE jobs SET created = ? WHERE id = ?", (at, job))


def kinds(removals: Any) -> list[tuple[str, str | None]]:
    return [(removal.kind, removal.job) for removal in removals]


def test_old_results_go_and_a_plan_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(results_days=10))
    old, unfetched = world.done("old"), world.done("unfetched", fetched=False)
    shared, other = world.done("shared"), None
    other = world.done("other", fetched=False, same_as=shared)
    retention = world.retention()
    planned = retention.plan()
    assert kinds(planned) == [("results", old.id)] and planned[0].size > 1000
    assert (world.results / "old").is_dir() and not world.removed
    assert retention.round() == planned and world.removed == [("results", planned[0].size)]
    assert {path.name for path in world.results.iterdir()} == {"unfetched", "shared"}
    assert world.store.get(old.id) is not None, "the entry stays, and says that the results are gone"
    world.store.fetched(other.id)
    assert kinds(retention.round()) == [("results", shared.id)]
    assert (world.results / "unfetched").is_dir() and unfetched.fetched is None
    world.settings = RetentionSettings(results_days=10, unfetched=True)
    assert kinds(world.retention().round()) == [("results", unfetched.id)]


def test_foreign_folders_stay(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(results_days=10, unfetched=True))
    (world.results / "mine").mkdir()
    (world.results / "mine" / "thesis.txt").write_text("years of work")
    replaced, linked, gone = world.done("replaced"), world.done("linked"), world.done("gone")
    path = world.results / "replaced" / summary.SUMMARY
    path.write_text(json.dumps({**json.loads(path.read_text()), "job": "another store's"}))
    (world.results / "linked").rename(tmp_path / "elsewhere")
    (world.results / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("summary.json", "frames.msgpack"):
        (world.results / "gone" / name).unlink()
    assert world.retention().round() == []
    assert {path.name for path in world.results.iterdir()} == {"mine", "replaced", "linked", "gone"}
    assert (tmp_path / "elsewhere" / "frames.msgpack").is_file()
    assert len({replaced.id, linked.id, gone.id}) == 3


@pytest.mark.parametrize("trouble", ["reading", "pointed", "touched", "replaced", "retried"])
def test_what_comes_into_use_between_plan_and_removal_stays(tmp_path: Path, trouble: str) -> None:
    world = World(tmp_path, RetentionSettings(results_days=10, work_days=10))
    old = world.done("old")
    failed, work = world.failed("failed")

    def interfere() -> None:
        world.before_loop = lambda: None
        if trouble == "reading":
            world.read.add(old.id)
        elif trouble == "pointed":
            made, _ = world.store.add(Submission("/in/b", "b", "api"))
            world.store.move(made.id, [State.QUEUED], State.RUNNING)
            world.store.note(made.id, same_as=old.id)
        elif trouble == "touched":
            os.utime(world.results / "old", (world.now, world.now))
        elif trouble == "replaced":
            summary.write_summary(world.results / "old", {"poseward": 1, "job": "another"})
        elif trouble == "retried":
            world.store.move(failed.id, [State.FAILED], State.QUEUED)

    world.before_loop = interfere
    world.retention().round()
    assert (world.results / "old").is_dir() == (trouble != "retried")
    assert work.is_dir() == (trouble == "retried")


def test_a_job_that_is_being_compared_is_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(results_days=10))
    world.done("old")
    world.running["new"] = "preparing"

    def ends() -> None:
        if world.loops == 1:
            world.running["new"] = "working"

    world.before_loop = ends
    assert len(world.retention().round()) == 1 and world.loops == 2


def test_work_of_failed_and_cancelled_jobs(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(work_days=10))
    failed, work = world.failed("failed")
    cancelled, left = world.failed("cancelled", State.CANCELLED)
    _, others = world.failed("others", digest="c" * 64)
    locked, held = world.failed("locked")
    place = places.claim(world.results, "locked", {"sha256": "b" * 64}, {})
    assert place is not None  # `poseward run --resume` works there
    leaving, still = world.failed("leaving", State.CANCELLED)
    world.running[leaving.id] = "working"
    gone = world.retention().round()
    assert sorted(kinds(gone)) == sorted([("work", failed.id), ("work", cancelled.id)])
    assert not work.exists() and not left.exists() and others.is_dir() and held.is_dir() and still.is_dir()
    place.release()
    world.running.clear()
    assert sorted(kinds(world.retention().round())) == sorted([("work", locked.id), ("work", leaving.id)])
    assert {path.name for path in world.results.iterdir()} == {"others.poseward-work"}


def test_young_work_and_everything_by_default_stays(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings())
    world.now = time.time() + 29 * DAY
    _, work = world.failed("failed")
    world.done("done")
    assert world.retention().round() == [] and work.is_dir()


def test_entries_leave_when_their_folders_are_gone(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(results_days=10, work_days=10, jobs_days=20))
    first = world.done("first")
    second = world.done("second", same_as=first)
    unfetched = world.done("unfetched", fetched=False)
    failed, _ = world.failed("failed")
    waiting, _ = world.store.add(Submission("/in/w", "w", "api"))
    retention = world.retention()
    assert set(kinds(retention.round())) == {("results", first.id), ("work", failed.id)}
    assert set(kinds(retention.round())) == {("job", second.id), ("job", failed.id)}
    assert kinds(retention.round()) == [("job", first.id)]
    assert retention.round() == []
    assert {one.id for one in world.store.jobs()} == {unfetched.id, waiting.id}


def test_entries_stay_while_the_disk_of_their_results_is_away(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(results_days=10, jobs_days=20))
    away = world.done("away")
    world.results.rename(tmp_path / "unplugged")
    assert world.retention().round() == [] and world.store.get(away.id) is not None
    (tmp_path / "unplugged").rename(world.results)
    assert kinds(world.retention().round()) == [("results", away.id)]


def test_entries_of_failed_jobs_stay_while_the_disk_of_their_work_is_away(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(work_days=1000, jobs_days=20))
    failed, work = world.failed("failed")
    world.results.rename(tmp_path / "unplugged")
    world.results.mkdir()
    assert world.retention(away=lambda: "mount it").round() == []
    world.results.rmdir()
    assert world.retention().round() == [] and world.store.get(failed.id) is not None
    (tmp_path / "unplugged").rename(world.results)
    assert world.retention().round() == [] and work.is_dir()


def test_what_was_done_by_a_clock_years_behind_is_not_old(tmp_path: Path) -> None:
    """A machine without a battery begins in 1970, until it has asked for the time."""
    world = World(tmp_path, RetentionSettings(results_days=10, work_days=10))
    world.now = time.time() + 2 * IDLE
    before, young = world.done("before"), world.done("young")
    failed, work = world.failed("failed")
    made_old(world.store, before.id, time.time() - 9 * DAY)
    for job in (young, failed):
        made_old(world.store, job.id, 1000.0)
    assert world.retention().round() == []
    assert (world.results / "young").is_dir() and work.is_dir()
    world.now += 2 * DAY
    gone = {("results", before.id), ("results", young.id), ("work", failed.id)}
    assert set(kinds(world.retention().round())) == gone


def test_a_clock_that_jumps_years_ahead_makes_nothing_old(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(results_days=10, work_days=10, logs_days=5))
    world.now = time.time() + 2 * IDLE
    old, young = world.done("old"), world.done("young")
    made_old(world.store, old.id, world.now - 11 * DAY)
    _, work = world.failed("failed")
    uploads = Uploads(tmp_path / "uploads", 1000, clock=lambda: clock())
    upload = uploads.begin("a.mp4", 3, "0" * 64)
    clock = CredibleClock(tmp_path / "clock.json", world.store.newest(), clock=lambda: world.now)
    clock()
    world.now += 5 * 365 * DAY
    retention = world.retention(uploads=uploads, clock=clock)
    assert kinds(retention.round()) == [("results", old.id)], "what was old before is old"
    assert (world.results / "young").is_dir() and work.is_dir() and upload.path.is_file()
    assert clock.doubt is not None and "1825 days ahead" in clock.doubt
    world.now -= 5 * 365 * DAY
    assert retention.round() == [] and clock.doubt is None
    world.now += 11 * DAY
    retention.round()
    assert clock.doubt is not None, "as after three weeks without power: for a day it is not believed"
    for _ in range(25):
        world.now += 3600
        retention.round()
    assert clock.doubt is None and not work.exists() and not (world.results / "young").exists()
    assert young.id and not upload.path.exists()


def test_what_a_killed_daemon_left_half_removed_is_removed(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings())
    left = world.results / f"{REMOVED}j1.clip"
    left.mkdir()
    (left / "frames.msgpack").write_bytes(b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (world.results / f"{REMOVED}j2.link").symlink_to(outside)
    world.retention().round()
    assert not left.exists() and outside.is_dir()


def test_old_logs_and_abandoned_uploads(tmp_path: Path) -> None:
    world = World(tmp_path, RetentionSettings(logs_days=60, work_days=10))
    log = tmp_path / "logs" / "x.jsonl"
    file = RotatingFile(log, 800)
    for _ in range(9):
        file.write("x" * 60 + "\n")
    file.close()
    old = log.with_name("x.jsonl.7")
    os.utime(old, (world.now - 61 * DAY,) * 2)
    uploads = Uploads(tmp_path / "uploads", 1000, clock=lambda: world.now)
    kept = []
    for number in range(4):
        state = uploads.begin(f"{number}.mp4", 3, f"{number}" * 64)
        os.utime(state.path, (world.now - ABANDONED_AFTER - 1,) * 2)
        kept.append(state.path)
    world.store.add(Submission(str(kept[0]), "a", "upload"))  # waits
    for number, days in ((1, 0), (2, 11)):
        made, _ = world.store.add(Submission(str(kept[number]), "b", "upload"))
        world.store.move(made.id, [State.QUEUED], State.FAILED, ended=world.now - days * DAY)
    gone = world.retention(log=log, uploads=uploads).round()
    assert [(removal.kind, removal.path) for removal in gone] == [("log", old)] and not old.exists()
    assert log.is_file() and log.with_name("x.jsonl.6").is_file()
    assert [path.exists() for path in kept] == [True, True, False, False]


def test_many_jobs_are_read_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.retention.retention.PAGE", 3)
    world = World(tmp_path, RetentionSettings(results_days=10))
    made = {world.done(f"r{number}").id for number in range(7)}
    assert {removal.job for removal in world.retention().plan()} == made


def test_a_folder_is_renamed_whole_before_anything_in_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, RetentionSettings(results_days=10, work_days=10))
    done = world.done("done")
    failed, work = world.failed("failed")
    removing: dict[str, set[str]] = {}
    remove = shutil.rmtree

    def watched(path: Path, **more: Any) -> None:
        removing[path.name] = set(os.listdir(path))
        assert not (world.results / "done").exists() or not work.exists(), (
            "removed under the name that readers know"
        )
        remove(path, **more)

    monkeypatch.setattr("daemon.retention.retention.shutil.rmtree", watched)
    world.retention().round()
    assert removing == {
        f"{REMOVED}{done.id}.done": {"summary.json", "frames.msgpack"},
        f"{REMOVED}{failed.id}.failed.poseward-work": {"owner.json", "lock", "job"},
    }


def test_measure_follows_no_links_and_survives_what_vanishes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 10)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    size, touched = measure(tmp_path / "a")
    assert 10 <= size < 1000 and touched > 0
    assert measure(tmp_path / "nothing") == (0, float("inf"))


# -- in a real daemon ----------------------------------------------------------------------------------------------


def test_a_daemon_prunes_at_its_start_what_was_fetched(tmp_path: Path) -> None:
    clips = [write_squares(tmp_path / f"{name}.mp4", 5 + at) for at, name in enumerate(("fetched", "unfetched"))]
    daemon = RealDaemon(tmp_path)
    with daemon, daemon.client() as client:
        jobs = [client.wait(client.submit(clip)["id"], PATIENCE) for clip in clips]
        assert all(one["state"] == "done" for one in jobs)
        client.download(jobs[0]["id"], "frames.msgpack", tmp_path / "copy.msgpack")
        daemon.stop()
        long_ago = time.time() - 10 * DAY
        store = JobStore(tmp_path / "state")
        for one in jobs:
            made_old(store, one["id"], long_ago)
        store.note(jobs[0]["id"], fetched=long_ago)
        store.close()
        for path in daemon.results.rglob("*"):
            os.utime(path, (long_ago, long_ago))
        daemon.sets.append("retention.results_days=7")
        daemon.start()
        until(lambda: not Path(jobs[0]["results"]).exists(), "the old results' end")
        assert Path(jobs[1]["results"]).is_dir()
        with pytest.raises(Exception, match="results-gone"):
            client.results(jobs[0]["id"])
        again = client.wait(client.submit(clips[0])["id"], PATIENCE)
        assert again["state"] == "done" and again["same_as"] is None, "computed anew"
        log = (tmp_path / "state" / "logs" / "poseward.jsonl").read_text()
        assert '"event": "removed"' in log and "retention.results_days = 7" in log


def test_the_command_shows_and_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    arguments = ["--set", f"daemon.state={tmp_path / 'state'}", "--set", "retention.results_days=0.5"]
    nothing = CliRunner().invoke(cli, ["retention", *arguments])
    assert nothing.exit_code == 1 and "no job store" in nothing.output
    assert not list((tmp_path / "state").iterdir())
    world = World(tmp_path / "state", RetentionSettings())
    old = world.done("old")
    made_old(world.store, old.id, time.time() - 3 * DAY)
    world.store.note(old.id, fetched=time.time() - DAY)
    world.store.close()
    for path in (world.results / "old", *(world.results / "old").iterdir()):
        os.utime(path, (time.time() - DAY,) * 2)
    shown = CliRunner().invoke(cli, ["retention", *arguments])
    assert shown.exit_code == 0 and str(world.results / "old") in shown.output, shown.output
    assert "retention.results_days = 0.5" in shown.output and "1 to remove" in shown.output
    (found,) = json.loads(CliRunner().invoke(cli, ["retention", "--json", *arguments]).stdout)
    assert found["job"] == old.id and found["kind"] == "results" and found["size"] > 1000
    assert (world.results / "old" / "frames.msgpack").is_file()
