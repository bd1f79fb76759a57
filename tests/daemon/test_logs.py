"""Logs: rotation, what a line holds, the story of one job across processes that die."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog

from daemon.telemetry import logs, story
from daemon.telemetry.log_lines import is_problem, stage_line
from daemon.telemetry.logs import PARTS, RotatingFile
from stages.owner.jobs import StageEvent
from tests.daemon.daemons import PATIENCE, Daemon, ended, until
from tests.paths import ROOT
from tests.stages.harness import write_squares

POSEWARD = [sys.executable, "-c", "from daemon.cli import main; main()"]


def run_logs(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    sets = [part for item in daemon.sets for part in ("--set", item)]
    return subprocess.run(
        [*POSEWARD, "logs", *sets, *arguments], capture_output=True, text=True, timeout=PATIENCE,
        cwd=ROOT,
    )  # fmt: skip


def lines_of(daemon: Daemon) -> list[dict[str, Any]]:
    return list(story.read(daemon.base / "state" / "logs" / logs.FILE))


# -- files -----------------------------------------------------------------------------------------------


def test_rotation_keeps_the_latest_lines_whole_and_within_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "x.jsonl"
    file = RotatingFile(path, 8000)
    for number in range(1000):
        file.write(json.dumps({"event": "line", "number": number, "fill": "x" * (number % 60)}) + "\n")
    file.close()
    found = [line["number"] for line in story.read(path)]
    assert found == list(range(found[0], 1000)) and 50 < len(found) < 1000
    assert sum(part.stat().st_size for part in path.parent.iterdir()) <= 8000
    assert len(list(path.parent.iterdir())) == PARTS
    assert path.stat().st_mode & 0o007 == 0, "names of files are nobody else's business"


def test_the_bound_holds_where_nothing_can_be_renamed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    (tmp_path / "log.1" / "in the way").mkdir(parents=True)
    file = RotatingFile(path, 8000)
    for number in range(400):
        file.write(f"line {number:06} {'x' * 80}\n")
    assert path.stat().st_size <= 8000 and path.read_text().endswith(f"line 000399 {'x' * 80}\n")


def test_several_writers_lose_nothing_while_files_rotate(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    files = [RotatingFile(path, 400_000) for _ in range(4)]

    def work(number: int) -> None:
        for count in range(400):
            files[number].write(json.dumps({"event": "x", "who": number, "count": count, "fill": "y" * 60}) + "\n")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(logs.files(path)) > 1
    seen = [(line["who"], line["count"]) for line in story.read(path)]
    assert sorted(seen) == [(who, count) for who in range(4) for count in range(400)]
    for file in files:
        file.close()
        file.close()
        file.write("after the end: no error\n")


def test_a_full_disk_costs_lines_and_says_how_many(tmp_path: Path) -> None:
    code = f"""
import json, resource, signal
from daemon.telemetry.logs import RotatingFile
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = RotatingFile(Path({str(tmp_path / "x.jsonl")!r}), 0)
file.write(json.dumps({{"event": "first", "fill": "x" * 900}}) + "\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.RLIM_INFINITY}))
for number in range(3):
    file.write(json.dumps({{"event": "lost", "fill": "x" * 400}}) + "\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
file.write(json.dumps({{"event": "last"}}) + "\\n")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE, cwd=ROOT)
    found = list(story.read(tmp_path / "x.jsonl"))
    assert [line["event"] for line in found] == ["first", "log lines lost", "last"]
    assert found[1]["count"] == 3


def test_lines_that_are_cut_or_foreign_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    whole = [{"event": f"e{number}", "timestamp": "2026-01-01T00:00:00Z"} for number in range(3)]
    texts = [json.dumps(line).encode() for line in whole]
    path.with_name("x.jsonl.1").write_bytes(texts[0][5:] + b"\n" + texts[0] + b"\n\xff\xfe\n[1]\n{}\nnull\n")
    path.write_bytes(texts[1] + b"\n" + texts[2][:10] + b"\n" + texts[2])
    assert [line["event"] for line in story.read(path)] == ["e0", "e1", "e2"]


def test_configure_keeps_json_beside_what_a_person_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = RotatingFile(tmp_path / "x.jsonl")
    try:
        logs.configure("info", False, keep=kept)
        try:
            raise ValueError("wrong")
        except ValueError:
            logs.get("part").exception("defect", job="j", path="a\udcffb")
        logs.get("part").debug("too little")
    finally:
        structlog.reset_defaults()
        kept.close()
    (line,) = story.read(tmp_path / "x.jsonl")
    assert line["component"] == "part" and line["level"] == "error" and "ValueError: wrong" in line["exception"]
    said = capsys.readouterr().err
    assert "defect" in said and not said.startswith("{")


def test_a_native_crash_is_told_by_the_next_process(tmp_path: Path) -> None:
    code = "import sys, ctypes; from pathlib import Path; from daemon.telemetry import logs\n"
    watch = f"left = logs.watch_crashes(Path({str(tmp_path)!r}))\n"
    run = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": PATIENCE}
    first = subprocess.run([sys.executable, "-c", code + watch + "ctypes.string_at(0)"], **run)  # type: ignore[call-overload]
    assert first.returncode < 0
    second = subprocess.run([sys.executable, "-c", code + watch + "print(left)"], **run)  # type: ignore[call-overload]
    assert "Segmentation fault" in second.stdout and "string_at" in second.stdout
    third = subprocess.run([sys.executable, "-c", code + watch + "print(repr(left))"], **run)  # type: ignore[call-overload]
    assert third.stdout.strip() == "''"


# -- stories -----------------------------------------------------------------------------------------------

AT = "2026-01-01T00:00:{:02d}Z"


def told(*items: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"event": e, "level": "info", "timestamp": AT.format(n), **more} for n, (e, more) in enumerate(items)]


def test_a_story_has_the_job_and_what_befell_the_stages_meanwhile() -> None:
    lines = told(
        ("stage", {"stage": "mesh", "state": "died", "n": 0}),
        ("submitted", {"job": "a", "name": "clip.mp4", "n": 1}),
        ("taken", {"job": "b", "n": 2}),
        ("taken", {"job": "a", "n": 3}),
        ("stage", {"stage": "mesh", "state": "died", "job": "b", "n": 4}),
        ("stage", {"stage": "mesh", "state": "skipping", "job": "b", "frame": 3, "n": 5}),
        ("stage", {"stage": "mesh", "state": "died", "job": "a", "frame": 7, "n": 6}),
        ("done", {"job": "b", "n": 7}),
        ("starting", {"n": 8}),
        ("stage", {"stage": "decode", "state": "ready", "n": 9}),
        ("queued again after a restart", {"job": "a", "n": 10}),
        ("taken", {"job": "a", "n": 11}),
        ("output", {"stage": "detect", "line": "x", "n": 12}),
        ("done", {"job": "a", "n": 13}),
        ("stage", {"stage": "mesh", "state": "died", "n": 14}),
    )
    chosen = story.Story(story.Wanted(job="a"))
    assert [line["n"] for line in lines if line in chosen] == [1, 3, 4, 6, 8, 10, 11, 12, 13]
    mesh = story.Story(story.Wanted(job="a", stage="mesh"))
    assert [line["n"] for line in lines if line in mesh] == [4, 6]
    late = story.Story(story.Wanted(since=story.since(AT.format(12), 0)))
    assert [line["n"] for line in lines if line in late] == [12, 13, 14]


def test_levels_times_and_jobs_by_prefix_or_name() -> None:
    lines = told(
        ("submitted", {"job": "20260101-aa", "name": "clip.mp4", "source": "/x/clip.mp4"}),
        ("submitted", {"job": "20260101-bb", "name": "clip.mp4", "source": "/y/clip.mp4"}),
        ("failed", {"job": "20260102-cc", "level": "error"}),
    )
    assert [line["job"] for line in lines if line in story.Story(story.Wanted(level="warning"))] == ["20260102-cc"]
    assert story.find_job(lines, "20260102") == "20260102-cc" == story.find_job(lines, "cc")
    assert story.find_job(lines, "clip.mp4") == "20260101-bb", "the latest of that name"
    assert story.find_job(lines, "/x/clip.mp4") == "20260101-aa"
    with pytest.raises(story.StoryError, match="write more of one"):
        story.find_job(lines, "20260101")
    with pytest.raises(story.StoryError, match="20260102-cc"):
        story.find_job(lines, "nothing")
    assert story.since("90s", 100.0) == 10.0 and story.since("2h", 7200.0) == 0.0
    with pytest.raises(story.StoryError, match="30m"):
        story.since("soon", 0.0)


def test_what_a_person_sees_has_no_control_characters() -> None:
    shown = story.show(
        {"event": "submitted", "timestamp": AT.format(1), "level": "warning", "name": "a\x1b[31mb\udcff.mp4",
         "stack_dump": "Fatal\n  File x"}
    )  # fmt: skip
    assert "\x1b" not in shown and "\\x1b[31m" in shown and shown.splitlines()[0][20:22] == "! "
    assert shown.splitlines()[1:] == ["      stack dump:", "        Fatal", "          File x"]
    shown.encode()


def test_the_line_of_a_death() -> None:
    report = {
        "kind": "killed by signal",
        "work": [("j", 4)],
        "stderr": ["x" * 5000],
        "traceback": None,
        "code": None,
    }
    event = StageEvent("", "mesh.1", "died", "killed", report=report)
    line = stage_line(event)
    assert (line["process"], line["stage"], line["job"], line["frame"]) == ("mesh.1", "mesh", "j", 4)
    assert len(line["stderr"][0]) == 2000 and "traceback" not in line and "work" not in line
    assert is_problem(event)
    assert not is_problem(StageEvent("", "mesh", "died", "reload", report={"kind": "recycled"}))
    several = StageEvent("", "mesh", "died", "x", report={"kind": "x", "work": [("j", 4), ("j", 5)]})
    assert stage_line(several)["frames"] == [4, 5]


def test_follow_goes_on_through_rotations(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = RotatingFile(path, 4000)
    written = 0

    def add() -> None:
        nonlocal written
        file.write(json.dumps({"event": "x", "n": written, "fill": "y" * 100}) + "\n")
        written += 1

    add()
    seen = []
    for line in story.follow(path, again=lambda: written < 60, sleep=lambda _: add()):
        seen.append(line["n"])
    file.close()
    assert seen == list(range(seen[0], seen[0] + len(seen))) and seen[0] == 0 and len(seen) >= 59
    assert len(logs.files(path)) > 2


# -- a real daemon ---------------------------------------------------------------------------------------------


def test_the_story_of_a_job_whose_stages_die_and_whose_daemon_is_killed(tmp_path: Path) -> None:
    faults = 'stages.faults=["mesh:segv@5","detect:raise@9","mesh:slow=0.02%1/1"]'
    clip = write_squares(tmp_path / "clip.mp4", 60)
    write_squares(tmp_path / "other.mp4", 5)
    with Daemon(tmp_path, faults) as daemon, daemon.client() as client:
        job = client.submit(clip)["id"]
        until(lambda: client.status(job).get("progress", {}).get("committed", 0) > 15, "fifteen frames")
        daemon.kill()
        daemon.start()
        other = client.submit(tmp_path / "other.mp4")["id"]
        assert [done["state"] for done in ended(client, [job, other])] == ["done", "done"]
        found = lines_of(daemon)
        starts = [line for line in found if line["event"] == "starting"]
        assert len(starts) == 2 and found[0]["event"] == "starting", "the first line, before anything else"
        deaths = {line["stage"]: line for line in found if line.get("state") == "died"}
        segv, raised = deaths["mesh"], deaths["detect"]
        assert segv["kind"] == "killed by signal" and segv["signal"] == 11 and segv["job"] == job
        assert "Segmentation fault" in segv["stack_dump"] and "string_at" in segv["stack_dump"]
        assert segv["level"] == "warning" and 5 in segv.get("frames", [segv.get("frame")])
        assert "InjectedError" in raised["traceback"] and raised["job"] == job and raised["process"] == "detect"
        for text in (job, job[:-2], job[-8:], "clip.mp4", str(clip)):
            shown = run_logs(daemon, text)
            assert shown.returncode == 0, shown.stderr
        events = [r"submitted", r"taken", r"begun", r"mesh died: killed by signal", r"stack dump:", r"starting",
                  r"queued again after a restart", r"taken", r"done"]  # fmt: skip
        assert re.search(".*".join(events), shown.stdout, re.DOTALL), shown.stdout
        assert other not in shown.stdout
        as_json = run_logs(daemon, job, "--json", "--stage", "detect", "--level", "warning")
        assert [json.loads(text)["state"] for text in as_json.stdout.splitlines()].count("died") >= 1
        missing = run_logs(daemon, "nothing.mp4")
        assert missing.returncode == 1 and "no job 'nothing.mp4'" in missing.stderr


def test_stages_are_reloaded_one_after_the_other(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, daemon.client() as client:
        until(lambda: client.health()["ready"], "all stages")
        before = len(lines_of(daemon))
        client.reload()
        until(lambda: sum(line.get("state") == "ready" for line in lines_of(daemon)[before:]) == 4, "four returns")
        told = [
            (line["stage"], line.get("state", "asked"))
            for line in lines_of(daemon)[before:]
            if line["event"] == "reload" or line.get("state") in ("ended", "ready")
        ]
        stages = ["decode", "detect", "mesh", "track"]
        assert told == [(stage, state) for stage in stages for state in ("asked", "ended", "ready")]


def test_no_log_and_an_unusable_place(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    nothing = run_logs(daemon)
    assert nothing.returncode == 1 and "written by `poseward serve`" in nothing.stderr
    (tmp_path / "file").write_text("")
    daemon.sets.append(f"daemon.log_file={tmp_path / 'file' / 'x.jsonl'}")
    with daemon:
        until(lambda: "ready" in daemon.story())
        assert "this log is kept nowhere" in daemon.story()
    os.stat(tmp_path / "file")
