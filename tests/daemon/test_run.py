"""``poseward run``: where results go, what a crash leaves, exit codes; with a scripted and with the real pipeline."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from daemon.cli.progress import PlainView, Rate, RichView, clock_text
from daemon.cli.run import execute, losses
from daemon.jobs import places, summary
from daemon.run import Interrupted, Options, Runner
from daemon.settings.loading import Loaded, load
from daemon.telemetry import logs
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, JobOpened, JobOutcome, JobProgress, StageEvent
from stages.records import Failure
from stages.settings import PipelineSettings
from tests.paths import ROOT
from tests.stages.harness import write_squares

PATIENCE = 120.0


class ScriptedPipeline:
    """Finishes a job a step. What a source holds decides how: ``bad`` fails, ``half`` fails halfway, and
    ``stuck`` never ends."""

    def __init__(
        self, settings: PipelineSettings, on_event: Callable[[JobEvent], None], runtime: Path | None = None
    ) -> None:
        self.settings = settings
        self.on_event = on_event
        self.jobs: list[Job] = []
        self.seen: list[Job] = []
        self.closed = False
        self.stuck = 0

    def start(self) -> None:
        self.on_event(StageEvent("", "mesh", "loading", "blocks"))

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self.seen.append(job)

    def step(self, timeout: float) -> None:
        if not self.jobs:
            time.sleep(0.001)
            return
        content = Path(self.jobs[0].source).read_text()
        if content.startswith("stuck"):
            self.stuck += 1
            time.sleep(0.001)
            return
        job = self.jobs.pop(0)
        outcome = JobOutcome(
            2, 3, 1, [(1, Failure("mesh", "poison"))], source={"codec": "none"}, seconds={"mesh": 1.0}
        )
        if content.startswith("bad"):
            self.on_event(JobFailed(job.id, "unreadable-video", "not a video", JobOutcome()))
            return
        self.on_event(JobOpened(job.id, 64, 48, 30.0, 2))
        self.on_event(JobProgress(job.id, 2, 2, 1, 1))
        if content.startswith("half"):
            (Path(job.folder) / "journal").write_text("precious")
            self.on_event(JobFailed(job.id, "stage-keeps-failing", "mesh", outcome))
            return
        before = Path(job.folder) / "journal"
        told = before.read_text() if before.exists() else ""
        (Path(job.folder) / "frames.msgpack").write_text(f"frames of {content}{told}")
        self.on_event(JobDone(job.id, outcome))

    def close(self) -> None:
        self.closed = True


class Bench:
    """A folder with videos in it and runs over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        self.lines: list[str] = []
        self.pipeline: ScriptedPipeline | None = None
        self.exported: list[tuple[str, str]] = []

    def video(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def factory(
        self, settings: PipelineSettings, on_event: Callable[[JobEvent], None], runtime: Path | None
    ) -> ScriptedPipeline:
        self.pipeline = ScriptedPipeline(settings, on_event)
        return self.pipeline

    def export(self, name: str, source: Path, folder: Path, progress: Callable[[int], None]) -> list[Path]:
        progress(1)
        if name == "broken":
            raise ValueError("no such luck")
        assert (folder / "frames.msgpack").is_file()
        self.exported.append((name, folder.name))
        made = folder / f"{name}.mp4"
        made.write_text(name)
        return [made]

    def runner(self, loaded: Loaded | None = None, exports: tuple[str, ...] = (), **options: bool) -> Runner:
        logs.silence()
        self.view = PlainView(self)  # type: ignore[arg-type]
        return Runner(
            loaded or load(environ={"XDG_CONFIG_HOME": "/nonexistent"}),
            Options(self.results, exports, **options),
            self.view,
            factory=self.factory,
            exporter=self.export,
        )

    def write(self, text: str) -> int:
        self.lines.append(text)
        return len(text)

    def flush(self) -> None: ...

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def frames(self, name: str) -> str:
        return (self.results / name / "frames.msgpack").read_text()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.results.iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_results_and_summary_are_in_place_and_nothing_else(bench: Bench) -> None:
    [result] = bench.runner(exports=("overlay",)).run([bench.video("clip.mp4", "a")])
    assert result.ok
    assert bench.pipeline is not None
    assert bench.pipeline.closed
    assert bench.names() == ["clip"]
    assert sorted(p.name for p in (bench.results / "clip").iterdir()) == [
        "frames.msgpack",
        "overlay.mp4",
        "summary.json",
    ]
    found = summary.read_summary(bench.results / "clip")
    assert found["input"]["name"] == "clip.mp4"
    assert found["input"]["bytes"] == 1
    assert found["input"]["codec"] == "none"
    assert (found["frames"], found["people"], found["tracks"]) == (2, 3, 1)
    assert found["failed_frames"] == [{"frame": 1, "stage": "mesh", "reason": "poison"}]
    assert found["exports"]["overlay"]["files"] == ["overlay.mp4"]
    assert found["versions"]["numpy"]


def test_bad_and_missing_files_do_not_stop_the_others(bench: Bench) -> None:
    bad = bench.video("bad.mp4", "bad")
    good = bench.video("good.mp4", "good")
    none = bench.folder / "none.mp4"
    results = bench.runner().run([bad, none, good])
    assert [result.error for result in results] == ["unreadable-video", "no-such-file", None]
    assert [result.video for result in results] == [bad, none, good]
    assert bench.names() == ["good"]


def test_what_is_no_file_is_refused_before_it_is_opened(bench: Bench, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    results = bench.runner().run([tmp_path / "fifo", Path("/dev/zero"), tmp_path / "empty"])
    assert [result.error for result in results] == ["unsupported", "unsupported", "no-images"]
    assert "a pipe (FIFO)" in results[0].message


def test_lost_and_damaged_frames_are_told_in_a_line_each() -> None:
    failed = [{"frame": 7, "stage": "decode", "reason": "the file is damaged here"}] * 3
    damaged = [
        {"first": 8, "last": 11, "reason": "built on it"},
        {"first": 20, "last": 20, "reason": "built on it"},
    ]
    assert losses({"failed_frames": failed, "damaged_frames": damaged}) == [
        "frame 7 failed in decode: the file is damaged here; 2 more in summary.json",
        "5 frames were used though the file is damaged there, from frame 8 on",
    ]
    assert losses({"failed_frames": [], "damaged_frames": []}) == []


def test_a_name_that_is_not_utf8(bench: Bench) -> None:
    video = bench.folder / os.fsdecode(b"cl\xff\xfep.mp4")
    video.write_text("a")
    [result] = bench.runner(exports=("overlay",)).run([video])
    assert result.ok and bench.names() == ["cl\ufffd\ufffdp"]
    assert summary.read_summary(bench.results / bench.names()[0])["input"]["name"] == "cl\ufffd\ufffdp.mp4"


def test_no_pipeline_is_started_when_there_is_nothing_to_do(bench: Bench) -> None:
    bench.runner().run([bench.folder / "none.mp4"])
    assert bench.pipeline is None


def test_same_stem_gets_folders_of_its_own(bench: Bench) -> None:
    videos = [bench.video("a/clip.mp4", "a"), bench.video("b/clip.mp4", "b"), bench.video("b/clip.mov", "c")]
    bench.runner().run(videos)
    assert bench.names() == ["clip", "clip-2", "clip-3"]
    assert [bench.frames(name) for name in bench.names()] == ["frames of a", "frames of b", "frames of c"]


def test_a_video_given_twice_is_done_once(bench: Bench) -> None:
    video = bench.video("clip.mp4", "a")
    link = bench.folder / "link.mp4"
    link.symlink_to(video)
    assert len(bench.runner().run([video, video, link])) == 1
    assert "given twice" in bench.said


def test_earlier_results_are_never_overwritten_silently(bench: Bench) -> None:
    video = bench.video("clip.mp4", "a")
    bench.runner().run([video])
    marker = bench.results / "clip" / "notes.txt"
    marker.write_text("mine")
    bench.runner().run([video])
    assert bench.names() == ["clip", "clip-2"]
    assert "--fresh replaces" in bench.said
    bench.runner(fresh=True).run([video])
    assert bench.names() == ["clip", "clip-2"]
    assert not marker.exists()


def test_fresh_does_not_replace_results_of_another_video(bench: Bench) -> None:
    bench.runner().run([bench.video("clip.mp4", "a")])
    bench.runner(fresh=True).run([bench.video("clip.mp4", "b")])
    assert [bench.frames(name) for name in bench.names()] == ["frames of a", "frames of b"]


def test_a_folder_that_is_not_ours_is_left_alone(bench: Bench) -> None:
    (bench.results / "clip").mkdir(parents=True)
    (bench.results / "clip" / "thesis.txt").write_text("mine")
    (bench.results / "clip-2").write_text("a file")
    bench.runner(fresh=True).run([bench.video("clip.mp4", "a")])
    assert bench.names() == ["clip", "clip-2", "clip-3"]


def test_finished_work_of_a_failed_run_is_kept_and_resumed(bench: Bench) -> None:
    video = bench.video("clip.mp4", "half")
    [result] = bench.runner().run([video])
    assert result.resumable
    assert bench.names() == ["clip.poseward-work"]
    # The same content, as far as the hash goes; the script now lets it end.
    owner = bench.results / "clip.poseward-work" / "owner.json"
    video.write_text("good")
    changed = {**json.loads(owner.read_text()), **summary.identify(video)}
    owner.write_text(json.dumps(changed))
    [result] = bench.runner(resume=True).run([video])
    assert result.ok
    assert bench.frames("clip") == "frames of goodprecious"
    assert result.summary["resumed"] is True
    assert bench.names() == ["clip"]


def test_without_resume_what_is_left_is_named_first_and_kept_unless_fresh(bench: Bench) -> None:
    video = bench.video("clip.mp4", "half")
    bench.runner().run([video])
    journal = bench.results / "clip.poseward-work" / "job" / "journal"
    bench.lines.clear()
    bench.runner().run([video])
    assert "left from an interrupted run and is kept" in bench.said
    assert bench.said.index("--resume") < bench.said.index("64x48")  # before the work began
    assert journal.read_text() == "precious"
    assert bench.names() == ["clip-2.poseward-work", "clip.poseward-work"]
    journal.write_text("older")
    bench.runner(fresh=True).run([video])
    assert journal.read_text() == "precious"


def test_each_argument_has_an_outcome_of_its_own(bench: Bench) -> None:
    circle, gone, long = bench.folder / "a.mp4", bench.folder / "gone.mp4", bench.folder / ("x" * 300 + ".mp4")
    circle.symlink_to("b.mp4")
    (bench.folder / "b.mp4").symlink_to("a.mp4")
    gone.symlink_to("nowhere.mp4")
    good = bench.video("good.mp4", "good")
    below = good / "clip.mp4"
    results = bench.runner().run([circle, gone, long, below, good])
    assert [result.error for result in results] == [
        "unreadable-file", "no-such-file", "unreadable-file", "no-such-file", None,
    ]  # fmt: skip
    assert "symbolic links" in results[0].message and "nowhere.mp4" in results[1].message
    assert bench.names() == ["good"]


def test_what_may_not_be_read_loses_no_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, good = bench.video("closed.mp4", "a"), bench.video("good.mp4", "good")
    real = os.stat

    def stat(path: Any, *rest: Any, **named: Any) -> os.stat_result:
        if path == closed:  # as in a folder that may not be entered; permissions do not stop root
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "stat", stat)
    first, second = bench.runner().run([closed, good])
    assert (first.error, second.error) == ("unreadable-file", None)
    assert "Permission denied" in first.message


def test_a_defect_in_reading_one_video_is_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    identify = summary.identify

    def failing(source: Path, *rest: Any) -> dict[str, Any]:
        if source.name == "odd.mp4":
            raise RuntimeError("what nobody has thought of")
        return identify(source, *rest)

    monkeypatch.setattr(summary, "identify", failing)
    odd, good = bench.runner().run([bench.video("odd.mp4", "a"), bench.video("good.mp4", "good")])
    assert (odd.error, good.error) == ("internal", None)
    assert "what nobody has thought of" in odd.message


@pytest.mark.parametrize("change", [{"frames": None}, {"restarts": 3}, {"seconds": []}, {"exports": "x"}])
def test_a_damaged_summary_of_earlier_results_is_one_videos_outcome(bench: Bench, change: dict[str, Any]) -> None:
    first = bench.video("clip.mp4", "a")
    bench.runner().run([first])
    found = summary.read_summary(bench.results / "clip")
    summary.write_summary(bench.results / "clip", {**found, **change})
    code = execute(
        [first, bench.video("other.mp4", "b")],
        load(environ={"XDG_CONFIG_HOME": "/nonexistent"}),
        Options(bench.results, resume=True),
        factory=bench.factory,
        exporter=bench.export,
    )
    assert code == 1
    assert bench.names() == ["clip", "other"]


def test_resume_refuses_other_settings(bench: Bench) -> None:
    video = bench.video("clip.mp4", "half")
    bench.runner().run([video])
    other = load(environ={"XDG_CONFIG_HOME": "/nonexistent"}, sets=["stages.vertices=false"])
    [result] = bench.runner(other, resume=True).run([video])
    assert result.error == "cannot-resume"
    assert "stages.vertices was True and is False" in result.message
    assert (bench.results / "clip.poseward-work" / "job" / "journal").read_text() == "precious"


def test_resume_leaves_finished_results_alone(bench: Bench) -> None:
    videos = [bench.video("a.mp4", "a"), bench.video("b.mp4", "b")]
    bench.runner().run(videos[:1])
    before = (bench.results / "a" / "summary.json").stat().st_mtime_ns
    first, second = bench.runner(resume=True).run(videos)
    assert (first.earlier, second.earlier) == (True, False)
    assert (bench.results / "a" / "summary.json").stat().st_mtime_ns == before
    assert bench.names() == ["a", "b"]


def test_work_of_another_video_of_that_name_is_left_alone(bench: Bench) -> None:
    bench.runner().run([bench.video("a/clip.mp4", "half")])
    bench.runner().run([bench.video("b/clip.mp4", "b")])
    assert bench.names() == ["clip-2", "clip.poseward-work"]


def test_two_runs_at_once_do_not_share_a_folder(bench: Bench) -> None:
    video = bench.video("clip.mp4", "a")
    identity = summary.identify(video)
    first = places.choose(bench.results, video, identity, {})
    second = places.choose(bench.results, video, identity, {}, resume=True)
    assert (first.name, second.name) == ("clip", "clip-2")
    first.release()
    third = places.choose(bench.results, video, identity, {}, resume=True)
    assert (third.name, third.resumed) == ("clip", True)


def test_killed_between_moving_frames_and_placing_the_folder(bench: Bench) -> None:
    video = bench.video("clip.mp4", "a")
    identity = summary.identify(video)
    place = places.choose(bench.results, video, identity, {})
    (place.work / "finished").mkdir()
    (place.work / "finished" / "frames.msgpack").write_text("frames")
    place.release()
    again = places.choose(bench.results, video, identity, {}, resume=True)
    assert (again.job / "frames.msgpack").read_text() == "frames"
    assert not (again.work / "finished").exists()


def finished(place: places.Place, made_by: str) -> Path:
    """Bring results into place that hold a text."""
    (place.job / "frames.msgpack").write_text(made_by)
    return place.finish({"poseward": 1, "input": dict(place.identity), "made_by": made_by})


def test_what_has_come_to_stand_there_meanwhile_is_not_removed(bench: Bench) -> None:
    video = bench.video("clip.mp4", "a")
    identity = summary.identify(video)
    place = places.choose(bench.results, video, identity, {})
    (bench.results / "clip").mkdir()
    (bench.results / "clip" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="move it away, and resume"):
        finished(place, "a")
    place.release()
    assert (bench.results / "clip" / "notes.txt").read_text() == "mine"
    (bench.results / "clip").rename(bench.results / "elsewhere")
    again = places.choose(bench.results, video, identity, {}, resume=True)
    assert (again.job / "frames.msgpack").read_text() == "a"
    assert again.finish({"poseward": 1, "input": identity}) == bench.results / "clip"


def test_results_that_came_while_a_run_waited_for_its_folder_are_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking whether a name is free and having its lock, another run may finish."""
    video, other = bench.video("a/clip.mp4", "a"), bench.video("b/clip.mp4", "b")
    first = places.choose(bench.results, video, summary.identify(video), {})
    look = places._lock

    def late(place: places.Place) -> bool:
        if first.lock >= 0:
            finished(first, "a")
        return look(place)

    monkeypatch.setattr(places, "_lock", late)
    second = places.choose(bench.results, other, summary.identify(other), {})
    assert second.name == "clip-2" and finished(second, "b").name == "clip-2"
    assert bench.frames("clip") == "a" and bench.frames("clip-2") == "b"
    assert bench.names() == ["clip", "clip-2"]


def test_a_work_folder_is_not_removed_under_who_has_just_locked_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = bench.video("clip.mp4", "a")
    identity = summary.identify(video)
    first = places.choose(bench.results, video, identity, {})
    came: list[places.Place] = []
    release = places.Place.release

    def and_next(place: places.Place) -> None:
        release(place)
        if not came:
            came.append(places.choose(bench.results, video, identity, {}, fresh=True))

    monkeypatch.setattr(places.Place, "release", and_next)
    finished(first, "a")
    assert came[0].name == "clip" and came[0].job.is_dir() and (came[0].work / "owner.json").is_file()


def test_a_lock_file_that_was_removed_guards_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    video = bench.video("clip.mp4", "a")
    flock, removed = fcntl.flock, []

    def and_removed(descriptor: int, how: int) -> None:
        if not removed:
            removed.append((bench.results / "clip.poseward-work" / "lock").unlink())
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", and_removed)
    place = places.choose(bench.results, video, summary.identify(video), {})
    assert os.path.samestat(os.fstat(place.lock), os.stat(place.work / "lock"))


def test_what_an_interrupted_replacing_left_hinders_no_later_one(bench: Bench) -> None:
    video = bench.video("clip.mp4", "a")
    bench.runner().run([video])
    (bench.results / ".clip.poseward-old").mkdir()
    (bench.results / ".clip.poseward-old" / "frames.msgpack").write_text("old")
    [result] = bench.runner(fresh=True).run([video])
    assert result.error is None and sorted(p.name for p in bench.results.iterdir()) == ["clip"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_link_where_results_belong_is_left_alone(bench: Bench, fresh: bool, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    bench.results.mkdir(parents=True, exist_ok=True)
    (bench.results / "clip").symlink_to(tmp_path / "disk")
    [result] = bench.runner(fresh=fresh).run([bench.video("clip.mp4", "a")])
    assert result.error is None and result.folder == bench.results / "clip-2"
    assert (bench.results / "clip").is_symlink() and not list((tmp_path / "disk").iterdir())


def test_a_disk_that_fills_with_an_export_fails_the_export_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = bench.runner(exports=("overlay",))
    video = bench.video("clip.mp4", "a")
    write = summary.write_summary

    def full(folder: Path, content: Any) -> Path:
        if content.get("exports"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, content)

    monkeypatch.setattr(summary, "write_summary", full)
    [result] = runner.run([video])
    assert result.error is None and "No space left" in result.export_errors["overlay"]


def test_killed_in_the_middle_of_replacing_results(bench: Bench) -> None:
    video = bench.video("clip.mp4", "a")
    bench.runner().run([video])
    (bench.results / "clip").rename(bench.results / ".clip.poseward-old")
    [result] = bench.runner(resume=True).run([video])
    assert result.earlier
    assert bench.frames("clip") == "frames of a"


def test_ctrl_c_stops_in_order_and_keeps_the_work(bench: Bench) -> None:
    runner = bench.runner()
    original = bench.factory

    class Stopping(ScriptedPipeline):
        def step(self, timeout: float) -> None:
            super().step(timeout)
            if self.stuck > 3:
                runner.stop(signal.SIGINT)

    def factory(
        settings: PipelineSettings, on_event: Callable[[JobEvent], None], runtime: Path | None
    ) -> ScriptedPipeline:
        bench.pipeline = Stopping(settings, on_event)
        return bench.pipeline

    bench.factory = factory  # type: ignore[method-assign]
    runner._factory = factory
    with pytest.raises(Interrupted) as caught:
        runner.run([bench.video("done.mp4", "a"), bench.video("clip.mp4", "stuck")])
    assert caught.value.exit_code == 130
    assert bench.pipeline is not None
    assert bench.pipeline.closed
    assert bench.names() == ["clip.poseward-work", "done"]
    assert [result.name for result in runner.results] == ["done"]
    bench.factory = original  # type: ignore[method-assign]


def test_an_export_that_fails_does_not_take_the_results_with_it(bench: Bench) -> None:
    [result] = bench.runner(exports=("broken", "overlay")).run([bench.video("clip.mp4", "a")])
    assert result.error is None
    assert not result.ok
    assert result.export_errors == {"broken": "no such luck"}
    assert bench.exported == [("overlay", "clip")]


def test_a_full_disk_at_the_end_keeps_the_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, content: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(places, "write_summary", full)
    [result] = bench.runner().run([bench.video("clip.mp4", "a")])
    assert result.error == "cannot-write-results"
    assert "No space left" in result.message
    monkeypatch.undo()
    [result] = bench.runner(resume=True).run([bench.folder / "clip.mp4"])
    assert result.ok
    assert bench.names() == ["clip"]


def test_an_output_folder_that_cannot_be_made_is_named(bench: Bench) -> None:
    bench.results.write_text("a file")
    [result] = bench.runner().run([bench.video("clip.mp4", "a")])
    assert result.error == "folder-or-file-unusable"
    assert str(bench.results) in result.message


def test_keep_work(bench: Bench) -> None:
    bench.runner(keep_work=True).run([bench.video("clip.mp4", "a")])
    assert bench.names() == ["clip", "clip.poseward-work"]
    assert bench.frames("clip") == (bench.results / "clip.poseward-work/job/frames.msgpack").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run.v2.final.mp4", "run.v2.final"),
        ("-rf.mp4", "rf"),
        (".mp4", "mp4"),
        ("a\nb.mp4", "a_b"),
        ("łyżwy ⛸.mp4", "łyżwy ⛸"),
        ("é" * 120 + ".mp4", "é" * 75),
        ("..", "video"),
    ],
)
def test_folder_names(name: str, expected: str) -> None:
    assert places.folder_name(Path("/nonexistent") / name) == expected


def test_identity_of_a_folder_of_images_depends_on_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"one")
    (tmp_path / "2.png").write_bytes(b"two")
    first = summary.identify(tmp_path)
    assert first["bytes"] == 6
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    assert summary.identify(tmp_path)["sha256"] != first["sha256"]


def test_place_copies_over_a_file_systems_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("frames")
    rename = Path.rename

    def renames(self: Path, other: Path) -> Path:
        if self == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", renames)
    summary.place(source, target)
    assert target.read_text() == "frames"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_rates_and_remaining_time() -> None:
    now = 0.0
    rate = Rate(lambda: now)
    assert rate.per_second is None
    assert clock_text(rate.remaining(100)) == "-:--"
    for now in (0.0, 1.0, 2.0):
        rate.update(int(now * 10))
    assert rate.per_second == pytest.approx(10.0)
    assert rate.remaining(100) == pytest.approx(8.0)
    rate.update(5)
    assert rate.per_second is None
    assert clock_text(3723) == "1:02:03"


def test_the_live_view_shows_stages_and_takes_names_as_they_are(bench: Bench) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, highlight=False, markup=False, emoji=False)
    bench.runner()
    with RichView(console) as view:
        runner = Runner(
            load(environ={"XDG_CONFIG_HOME": "/nonexistent"}),
            Options(bench.results, ("overlay",)),
            view,
            factory=bench.factory,
            exporter=bench.export,
        )
        view.stage(StageEvent("", "mesh", "died", "killed by SIGKILL; again in 0.1 s"))
        view.stage(StageEvent("", "mesh", "output", "chatter"))
        view.opened("[red]x", JobOpened("[red]x", 64, 48, 30.0, 9))
        view.progress("[red]x", JobProgress("[red]x", 4, 3, 2, 1))
        runner.run([bench.video("[bold]a:100:.mp4", "a"), bench.video("bad.mp4", "bad")])
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "mesh: died: killed by SIGKILL; again in 0.1 s" in shown
    assert "chatter" not in shown
    assert "[bold]a:100:: done, 2 frames" in shown
    assert "failed: unreadable-video" in shown
    for stage, done in (("decode", 4), ("detect", 3), ("mesh", 2), ("track", 1)):
        assert re.search(rf"\[red\]x +{stage} .* {done}/9", shown), shown


def test_exit_codes_and_json(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(environ={"XDG_CONFIG_HOME": "/nonexistent"})
    videos = [bench.video("clip.mp4", "a"), bench.video("bad.mp4", "bad")]
    options = Options(bench.results)
    code = execute(videos, loaded, options, json_output=True, factory=bench.factory, exporter=bench.export)
    assert code == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert good["ok"] is True
    assert good["summary"]["frames"] == 2
    assert bad["error"] == "unreadable-video"
    assert execute(videos[:1], loaded, options, factory=bench.factory, exporter=bench.export) == 0
    out = capsys.readouterr().out
    assert "clip.mp4" in out
    assert str(bench.results / "clip-2") in out


@pytest.mark.parametrize("json_output", [True, False])
def test_a_reader_that_has_gone_changes_no_exit_code(
    bench: Bench, json_output: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    loaded = load(environ={"XDG_CONFIG_HOME": "/nonexistent"})
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        videos = [bench.video("clip.mp4", "a")]
        code = execute(
            videos, loaded, Options(bench.results), json_output=json_output, factory=bench.factory,
            exporter=bench.export,
        )  # fmt: skip
        gone.flush()  # nothing is left that Python would complain of at its end
    assert code == 0
    assert bench.names() == ["clip"]


def test_log_lines_are_json_in_a_file(bench: Bench) -> None:
    file = bench.folder / "log.jsonl"
    loaded = load(environ={"XDG_CONFIG_HOME": "/nonexistent"}, sets=[f"daemon.log_file={file}"])
    execute(
        [bench.video("clip.mp4", "a")],
        loaded,
        Options(bench.results),
        factory=bench.factory,
        exporter=bench.export,
    )
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["stage", "job", "done"]
    assert all(line["level"] == "info" and line["component"] == "run" and line["timestamp"] for line in lines)


# -- the real program ------------------------------------------------------------------------------

SLOW = ("--set", "stages.faults=mesh:slow=0.05%1.0/1xalways")


class Program:
    """``poseward run`` in a process of its own, on the tests' own backend."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [
            sys.executable, "-c", "from daemon.cli import main; main()", "run", str(folder / "clip.mp4"),
            "-o", str(folder / "results"), "--no-exports", "--set", "stages.backend=tests.stages.blocks",
            "--set", "stages.snapshot_every=10", "--set", f"daemon.runtime={folder}", *arguments,
        ]  # fmt: skip
        self.log = (folder / "log.txt").open("w+")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": "/nonexistent"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log)

    @property
    def said(self) -> str:
        return Path(self.log.name).read_text()

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)


@pytest.fixture
def clip() -> Iterator[Path]:
    """A folder with a clip; its path is short enough for the sockets that it will hold."""
    with tempfile.TemporaryDirectory(prefix="pw-") as name:
        folder = Path(name)
        write_squares(folder / "clip.mp4", 60)
        yield folder
        left = [p.pid for p in psutil.process_iter(["cmdline"]) if name in " ".join(p.info["cmdline"] or ())]
        assert left == []


def journaled(folder: Path) -> bool:
    """Whether the interrupted job has committed something."""
    return any(path.stat().st_size > 0 for path in (folder / "results").glob("clip.poseward-work/job/journal*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_is_resumed_to_the_same_bytes(clip: Path, number: int) -> None:
    reference = Program(clip, "--set", "results.folder=unused")
    assert reference.process.wait(PATIENCE) == 0, reference.said
    expected = (clip / "results" / "clip" / "frames.msgpack").read_bytes()
    (clip / "results" / "clip").rename(clip / "expected")

    program = Program(clip, *SLOW)
    program.wait(lambda: journaled(clip))
    children = psutil.Process(program.process.pid).children(recursive=True)
    program.process.send_signal(number)
    code = program.process.wait(PATIENCE)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number), program.said
    program.wait(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    if number != signal.SIGKILL:
        assert "--resume" in program.said
        assert not list(clip.glob("poseward-*"))
    assert not (clip / "results" / "clip").exists()

    again = Program(clip, "--resume")
    assert again.process.wait(PATIENCE) == 0, again.said
    assert "continuing the interrupted run" in again.said
    assert (clip / "results" / "clip" / "frames.msgpack").read_bytes() == expected
    assert not list(clip.glob("poseward-*"))
    assert [path.name for path in (clip / "results").iterdir()] == ["clip"]


def test_a_second_ctrl_c_kills_a_stage_that_does_not_stop(clip: Path) -> None:
    program = Program(
        clip, "--set", "stages.faults=mesh:hang-gil@20", "--set", "stages.deadlines.grace=600",
        "--set", "stages.deadlines.working=600", "--set", "stages.deadlines.heartbeat=600",
    )  # fmt: skip
    program.wait(lambda: journaled(clip))
    program.process.send_signal(signal.SIGINT)
    program.wait(lambda: "once more kills" in program.said)
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(PATIENCE) == 130, program.said
    assert "Traceback" not in program.said
