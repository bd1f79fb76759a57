"""The commands for a running daemon, against a real one: exit codes, JSON, tables, refusals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from daemon.cli import cli
from daemon.cli.events import Thinned
from daemon.cli.health import happened, problems, verdict
from daemon.cli.jobs_follow import follow, resolve
from daemon.cli.jobs_view import table
from daemon.cli.results import _print_results
from daemon.cli.words import age_text, bar, counted, printable, size_text
from daemon.client import ClientError
from tests.daemon.daemons import MAIN, PATIENCE, Daemon, until
from tests.paths import ROOT
from tests.stages.harness import write_squares

SLOW = 'stages.faults=["mesh:slow=0.03%1/1"]'
SHORT, LONG = 20, 1500


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon"), SLOW) as running:
        yield running


@pytest.fixture(scope="module")
def long_clip(daemon: Daemon) -> Path:
    return write_squares(daemon.base / "long.mp4", LONG)


def poseward(daemon: Daemon | str, *arguments: str) -> Result:
    address = daemon if isinstance(daemon, str) else daemon.address
    env = {"POSEWARD_ADDRESS": address, "COLUMNS": "120", "XDG_CONFIG_HOME": "/nonexistent"}
    return CliRunner().invoke(cli, list(arguments), env=env)


def well(result: Result, code: int = 0) -> Result:
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    return result


def test_submit_wait_results_download(daemon: Daemon, tmp_path: Path) -> None:
    write_squares(daemon.base / "a clip ü.mp4", SHORT)
    job = json.loads(
        well(poseward(daemon, "submit", "--wait", "--json", str(daemon.base / "a clip ü.mp4"))).stdout
    )[0]
    assert job["state"] == "done" and job["frames"] == SHORT
    found = json.loads(well(poseward(daemon, "results", "a clip ü.mp4", "--json")).stdout)
    assert found["job"]["id"] == job["id"] and found["summary"]["frames"] == SHORT
    text = well(poseward(daemon, "results", job["id"])).stdout
    assert f"a clip ü.mp4: {SHORT} frames of 160x120" in text and "frames.msgpack" in text
    well(poseward(daemon, "results", job["id"], "--download", str(tmp_path / "out")))
    for name in ("frames.msgpack", "summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (Path(job["results"]) / name).read_bytes()
    again = well(poseward(daemon, "results", job["id"], "--download", str(tmp_path / "out")), 2)
    assert "poseward: exists:" in again.stderr and "--force" in again.stderr
    one = [job["id"], "--download", str(tmp_path / "out"), "--file", "summary.json"]
    assert well(poseward(daemon, "results", *one, "--force")).stdout.split() == [
        str(tmp_path / "out/summary.json")
    ]
    missing = well(poseward(daemon, "results", job["id"], "--download", str(tmp_path), "--file", "overlay.mp4"), 2)
    assert "there are frames.msgpack, summary.json" in missing.stderr


def test_a_refused_path_is_named_and_the_others_are_taken(daemon: Daemon, tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "- else where.mp4", SHORT + 1)
    inside = write_squares(daemon.base / "inside.mp4", SHORT + 2)
    os.mkfifo(tmp_path / "pipe")
    both = well(poseward(daemon, "submit", str(tmp_path / "pipe"), str(inside)), 2)
    assert "poseward: path-refused:" in both.stderr and "neither a file nor a folder" in both.stderr
    assert "Traceback" not in both.stderr
    assert len(both.stdout.splitlines()) == 1 and "inside.mp4" in both.stdout, (
        "the other one is taken all the same"
    )
    uploaded = well(poseward(daemon, "submit", "--upload", "--wait", str(clip)))
    assert f"- else where.mp4: done, {SHORT + 1} frames" in uploaded.stderr
    assert "- else where.mp4" in uploaded.stdout
    assert "no-such-file" in well(poseward(daemon, "submit", "--upload", str(tmp_path / "none.mp4")), 2).stderr
    assert "folder cannot be uploaded" in well(poseward(daemon, "submit", "--upload", str(tmp_path)), 2).stderr
    assert "no export" in well(poseward(daemon, "submit", "--export", "overlya", str(inside)), 2).stderr
    surrogate = os.fsdecode(os.fsencode(daemon.base) + b"/\xff.mp4")
    assert "not UTF-8" in well(poseward(daemon, "submit", surrogate), 2).stderr
    well(poseward(daemon, "wait", "inside.mp4"))


def test_relative_paths_and_keys_and_options(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    write_squares(daemon.base / "relative.mp4", SHORT + 3)
    monkeypatch.chdir(daemon.base)
    asked = ("submit", "--json", "--job-key", "mine", "--name", "my own", "--priority", "-5", "relative.mp4")
    first = json.loads(well(poseward(daemon, *asked)).stdout)[0]
    assert first["new"] and first["source"] == str(daemon.base / "relative.mp4")
    assert (first["name"], first["priority"]) == ("my own", -5)
    again = json.loads(well(poseward(daemon, *asked)).stdout)[0]
    assert not again["new"] and again["id"] == first["id"]
    assert "(submitted before)" in poseward(daemon, "submit", "--job-key", "mine", "relative.mp4").stdout
    well(poseward(daemon, "submit", "--name", "x", "a.mp4", "b.mp4"), 2)
    detail = well(poseward(daemon, "status", "my own")).stdout
    assert "priority -5; key mine" in detail
    well(poseward(daemon, "wait", first["id"]))


def test_status_lists_abbreviates_and_tells_the_story(daemon: Daemon) -> None:
    (daemon.base / "broken.mp4").write_bytes(b"no video at all")
    first = json.loads(poseward(daemon, "submit", "--json", str(daemon.base / "broken.mp4")).stdout)[0]["id"]
    waited = well(poseward(daemon, "wait", first), 1)
    assert "failed: unreadable-video" in waited.stderr
    second = json.loads(poseward(daemon, "submit", "--json", str(daemon.base / "broken.mp4")).stdout)[0]["id"]
    well(poseward(daemon, "wait", second), 1)
    listed = well(poseward(daemon, "status", "--state", "failed")).stdout
    assert listed.index(second.rpartition("-")[2]) < listed.index(first.rpartition("-")[2]), "newest first"
    assert "unreadable-video" in listed and "2 failed" in listed
    assert len(json.loads(poseward(daemon, "status", "--json", "--limit", "1").stdout)["jobs"]) == 1
    detail = well(poseward(daemon, "status", first.rpartition("-")[2])).stdout
    assert first in detail and "way out" in detail and "unreadable-video: " in detail
    assert json.loads(poseward(daemon, "status", "--json", "broken.mp4").stdout)[0]["id"] == second
    assert "ambiguous-job: " in well(poseward(daemon, "status", "20"), 2).stderr
    nothing = well(poseward(daemon, "status", "nothing.mp4"), 2).stderr
    assert nothing.startswith("poseward: no-such-job: ") and nothing.count("\n") == 1
    assert "not-ready" in well(poseward(daemon, "results", first), 2).stderr


def test_wait_cancel_retry(daemon: Daemon, long_clip: Path) -> None:
    job = json.loads(well(poseward(daemon, "submit", "--json", str(long_clip))).stdout)[0]["id"]

    def running() -> bool:
        found = json.loads(poseward(daemon, "status", "--json", job).stdout)[0]
        return found["state"] == "running" and bool(found["progress"]["committed"])

    until(running)
    late = well(poseward(daemon, "wait", job, "--timeout", "0.2"), 3)
    assert "not done after 0.2 s" in late.stderr and "running" in late.stdout
    detail = well(poseward(daemon, "status", "long.mp4")).stdout
    assert "progress" in detail and f"/{LONG} frames" in detail
    assert "running" in well(poseward(daemon, "retry", job)).stdout, "it is as it should be"
    assert "cancelled" in well(poseward(daemon, "cancel", "long.mp4")).stdout
    well(poseward(daemon, "wait", job), 1)
    assert json.loads(well(poseward(daemon, "retry", "--json", job)).stdout)[0]["state"] == "queued"
    well(poseward(daemon, "cancel", job))
    done = json.loads(poseward(daemon, "status", "--json", "--state", "done").stdout)["jobs"]
    if done:
        well(poseward(daemon, "cancel", done[0]["id"]), 1)


def test_ctrl_c_while_waiting_leaves_the_job_alone(daemon: Daemon, long_clip: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "submit", "--wait", "--recompute", "--address", daemon.address, str(long_clip)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    with daemon.client() as client:
        until(lambda: client.list(["running"], text="long.mp4")["jobs"])
        job = client.list(["running"], text="long.mp4")["jobs"][0]["id"]
        assert process.stderr is not None
        line = process.stderr.readline()  # it follows: plain lines, as this is no terminal
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, (line, rest)
        assert "long.mp4" in line and "the jobs go on" in rest and "Traceback" not in rest
        assert client.status(job)["state"] == "running"
        client.cancel(job)


def test_waiting_outlives_the_daemon(tmp_path: Path) -> None:
    with Daemon(tmp_path, SLOW) as own:
        clip = write_squares(tmp_path / "clip.mp4", 120)
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, "submit", "--wait", "--json", "--address", own.address, str(clip)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        with own.client() as client:
            until(lambda: any(job["progress"]["committed"] > 20 for job in client.health()["jobs"]))
        own.kill()
        own.start()
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        job = json.loads(output)[0]
        assert (job["state"], job["frames"], job["attempts"]) == ("done", 120, 2)
        assert "begun again after a restart" in poseward(own, "status", "clip.mp4").stdout


def test_drain_and_wait_for_all(daemon: Daemon) -> None:
    clip = write_squares(daemon.base / "drained.mp4", SHORT + 4)
    well(poseward(daemon, "submit", str(clip)))
    assert "nothing runs any more" in well(poseward(daemon, "drain", "--wait")).stdout
    try:
        assert "poseward: draining:" in well(poseward(daemon, "submit", str(clip)), 2).stderr
        assert json.loads(poseward(daemon, "health", "--json").stdout)["draining"]
        assert "poseward drain --off" in poseward(daemon, "health").stdout
    finally:
        assert "begun again" in well(poseward(daemon, "drain", "--off")).stdout
    well(poseward(daemon, "wait"))
    drained = json.loads(well(poseward(daemon, "drain", "--wait", "--json")).stdout)
    resumed = json.loads(well(poseward(daemon, "drain", "--off", "--json")).stdout)
    assert drained == {"draining": True, "running": 0} and resumed == {"draining": False, "running": 0}
    assert json.loads(poseward(daemon, "wait", "--json", "drained.mp4").stdout)[0]["state"] == "done"


def test_health_reload_reset(daemon: Daemon) -> None:
    until(lambda: json.loads(poseward(daemon, "health", "--json").stdout)["ready"])
    text = poseward(daemon, "health").stdout
    places = [text.index(f"\n{name} ") for name in ("decode", "detect", "mesh", "track")]
    assert places == sorted(places), "in the order in which a frame passes them"
    assert daemon.address in text.replace("\n", "")
    result = poseward(daemon, "health", "--json")
    found = json.loads(result.stdout)
    well(result, 1 if problems(found) or not found["ready"] else 0)  # code that is edited just now is a problem
    before = found["processes"]["mesh"]["pid"]
    well(poseward(daemon, "reload", "mesh"))

    def renewed() -> bool:
        found = json.loads(poseward(daemon, "health", "--json").stdout)
        return found["ready"] and found["processes"]["mesh"]["pid"] not in (None, before)

    until(renewed)
    assert json.loads(well(poseward(daemon, "reset", "mesh", "--json")).stdout) == {"reset": ["mesh"]}
    well(poseward(daemon, "reset", "mesh"))
    assert "no-such-stage" in well(poseward(daemon, "reset", "mush"), 2).stderr
    assert "no-such-stage" in well(poseward(daemon, "reload", "mush"), 2).stderr


def test_what_was_dealt_with_is_no_problem_any_more() -> None:
    past, now = "10:11:12 mesh died: killed; again in 0.1 s", "mesh: open circuit: no such file"
    process = {"state": "ready", "stage": "mesh"}
    found = {
        "problems": [now], "incidents": [past], "ready": True, "draining": False, "processes": {"mesh": process}
    }  # fmt: skip
    assert problems(found) == [now] and happened(found) == [past]
    assert verdict(found)[0] == "1 problem"
    assert verdict({**found, "problems": []})[0] == "well"
    loading = {"mesh": {**process, "state": "loading"}}
    assert verdict({**found, "problems": [], "ready": False, "processes": loading})[0] == "not ready: mesh"


def test_events_as_json_and_in_words(daemon: Daemon) -> None:
    found: dict[str, Result] = {}

    def listen(name: str, *arguments: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: found.update({name: run_events(daemon, *arguments)}))
        thread.start()
        return thread

    threads = [listen("json", "--json", "--count", "2", "daemon"), listen("words", "--count", "2", "job")]
    with daemon.client() as client:
        clip = write_squares(daemon.base / "told.mp4", SHORT + 5)
        until(lambda: _stir(client, clip, threads))
    lines = [json.loads(line) for line in found["json"].stdout.splitlines()]
    assert [line["topic"] for line in lines] == ["daemon", "daemon"]
    assert {line["state"] for line in lines} <= {"draining", "ready"}
    words = found["words"].stdout.splitlines()
    assert len(words) == 2 and all("told.mp4" in line and "  job     " in line for line in words)
    assert "there are job, frame" in well(poseward(daemon, "events", "jbo"), 2).stderr


def run_events(daemon: Daemon, *arguments: str) -> Any:
    """In a process: `CliRunner` is not for threads."""
    command = [sys.executable, "-c", MAIN, "events", "--address", daemon.address, *arguments]
    root = ROOT
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=root, check=True)


def _stir(client: Any, clip: Path, threads: Sequence[threading.Thread]) -> bool:
    """Make things happen; whether the listeners have heard enough."""
    client.drain(True)
    client.drain(False)
    client.submit(clip)
    time.sleep(0.1)
    return not any(thread.is_alive() for thread in threads)


def test_no_daemon_is_named_within_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    result = well(poseward(f"ipc://{tmp_path}/none.sock", "health"), 2)
    assert result.stderr.startswith("poseward: no-daemon: ") and "poseward serve" in result.stderr
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        result = well(poseward(address, "status"), 2)
        assert result.stderr.startswith("poseward: timeout: ") and result.stderr.count("\n") == 1
    assert time.monotonic() - began < 20
    assert "bad-address" in well(poseward("tcp://nowhere", "status"), 2).stderr
    wrong_key = poseward(
        address, "status", "--key", str(tmp_path / "none"), "--server-key", str(tmp_path / "none")
    )
    assert "poseward: bad-key: " in well(wrong_key, 2).stderr


class FakeJobs:
    """Jobs that go on by one state with every look."""

    def __init__(self, *jobs: tuple[str, str]) -> None:
        self.jobs = [
            {"id": job, "name": name, "number": number, "state": "queued", "source": f"/v/{name}", "origin": "api"}
            for number, (job, name) in enumerate(jobs)
        ]
        self.looks = 0

    def status(self, job: str | None = None) -> dict[str, Any]:
        for found in self.jobs:
            if found["id"] == job:
                return found
        raise ClientError("no-such-job", "none")

    def wait(self, job: str, timeout: float | None = None) -> dict[str, Any]:
        self.looks += 1
        waiting = [found for found in self.jobs if found["state"] != "done"]
        waiting[0]["state"] = "running" if waiting[0]["state"] == "queued" else "done"
        return self.status(job)

    def list(
        self, states: Sequence[str] | None = None, *, limit: int = 100, before: int | None = None, text: str = ""
    ) -> dict[str, Any]:
        found = [
            job for job in reversed(self.jobs)
            if (states is None or job["state"] in states) and text in job["name"]
            and (before is None or job["number"] < before)
        ]  # fmt: skip
        return {"jobs": found[:limit]}


def test_resolving_over_many_pages() -> None:
    jobs = FakeJobs(*((f"2026-{number:08x}", f"clip{number % 100}.mp4") for number in range(450)))
    assert resolve(jobs, "2026-00000001")["number"] == 1
    assert resolve(jobs, "00000002")["number"] == 2
    assert resolve(jobs, "clip7.mp4")["number"] == 407, "the newest of that name"
    assert resolve(jobs, "/v/clip7.mp4")["number"] == 407
    assert resolve(jobs, "./clip7.mp4")["number"] == 407
    jobs.jobs[307]["origin"] = "upload"
    assert resolve(jobs, "/elsewhere/clip7.mp4")["number"] == 307
    for word, name in (("0000", "ambiguous-job"), ("2026-0000000", "ambiguous-job"), ("clip", "no-such-job"),
                       ("", "no-such-job"), ("x" * 500, "no-such-job")):  # fmt: skip
        with pytest.raises(ClientError, match=name):
            resolve(jobs, word)


def test_following_shows_every_job_until_its_end() -> None:
    jobs = FakeJobs(("a", "a"), ("b", "b"), ("c", "c"))
    seen: list[tuple[str, str]] = []
    latest = follow(jobs, ["a", "b", "c", "a"], lambda job: seen.append((job["id"], job["state"])))
    assert {name: job["state"] for name, job in latest.items()} == {"a": "done", "b": "done", "c": "done"}
    assert {("a", "done"), ("b", "running"), ("c", "done")} <= set(seen)
    assert len([one for one in seen if one == ("a", "done")]) == 1, "what has ended is not looked at again"
    now = iter(range(100))
    latest = follow(FakeJobs(("a", "a")), ["a"], lambda job: None, 0.5, clock=lambda: float(next(now)))
    assert latest["a"]["state"] == "queued"


def test_events_of_progress_are_thinned_for_people() -> None:
    told = Thinned()

    def event(at: float, state: str, committed: int = 0) -> str | None:
        progress = {"phase": "working", "committed": committed, "total": 90, "rate": 9.0}
        job = {"id": "1-ab", "name": "a\n.mp4", "state": state, "progress": progress, "error": None}
        return told.line("job.1-ab", {"time": at, "job": {**job, "frames": 90, "results": "/r"}})

    first = event(0.0, "running")
    assert first is not None and first.endswith("job     ab a�.mp4: working 0/90 frames, 9.0/s")
    assert event(0.2, "running", 2) is None
    assert event(1.3, "running", 9) is not None
    ended = event(1.4, "done")
    assert ended is not None and ended.endswith("done, 90 frames: /r")


@pytest.mark.parametrize("width", [80, 96, 100, 160])
def test_a_table_of_jobs_fits(width: int) -> None:
    job: dict[str, Any] = {
        "id": "20260101-000000-abcd1234", "name": "clip.mp4", "state": "done", "created": 0.0, "started": 1.0,
        "ended": 3700.0, "frames": 54000, "same_as": None, "error": None,
    }  # fmt: skip
    progress = {"phase": "working", "committed": 45000, "total": 90000}
    jobs = [
        {**job, "name": "n" * 200},
        {**job, "state": "failed", "error": "too-many-failed-frames"},
        {**job, "state": "running", "ended": None, "progress": progress},
        {**job, "state": "cancelled", "name": "\x1b[31mred"},
    ]
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table(jobs, width, now=187_200.0))
    lines = capture.get().splitlines()
    assert len(lines) == 6 and max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in (
        "abcd1234",
        "too-many-failed-frames",
        "cancelled",
        "━━━━━━━━────────  50 %",
        "45000/90000",
        "2 d 4 h",
    ):
        assert word in text, text
    assert "\x1b" not in text


def test_one_is_not_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert [counted(n, "frame") for n in range(3)] == ["0 frames", "1 frame", "2 frames"]
    summary = {
        "input": {"name": "a.mp4"}, "frames": 1, "backend": "b", "people": 1, "tracks": 1, "restarts": [{}],
        "failed_frames": [{}],
    }  # fmt: skip
    _print_results({"summary": summary, "folder": "/r", "files": [], "job": {"message": ""}})
    said = capsys.readouterr().out
    assert "a.mp4: 1 frame, by b" in said and "1 person, 1 track, 1 failed frame, 1 restart" in said


def test_words() -> None:
    assert [size_text(count) for count in (None, 0, 999, 2048, 200 << 20, 3 << 30)] == [
        "-", "0 B", "999 B", "2.0 KB", "200 MB", "3.0 GB",
    ]  # fmt: skip
    assert [age_text(seconds) for seconds in (None, 12.4, 300, 11400, 187200)] == [
        "-", "12 s", "5 min", "3 h 10 min", "2 d 4 h",
    ]  # fmt: skip
    assert bar(0.5, 4).plain == "━━──" and bar(7, 3).plain == "━━━" and bar(-1, 3).plain == "───"
    assert printable("a\x1b[2J\nb") == "a�[2J�b"


def test_whoever_waits_is_told_that_a_stage_has_failed_for_good(tmp_path: Path) -> None:
    """Such a job fails not: it goes on when somebody has mended that. Nobody shall wait for it unknowing."""
    clip = write_squares(tmp_path / "clip.mp4", SHORT)
    with Daemon(tmp_path / "d", f'api.roots=["{tmp_path}"]', backend="tests.stages.unloadable") as broken:
        with broken.client() as client:
            until(lambda: client.health()["problems"], "the problem")
        waited = well(poseward(broken, "submit", str(clip)))
        waited = well(poseward(broken, "wait", "--timeout", "8", "clip.mp4"), 3)
        assert waited.stderr.count("meanwhile: mesh: failed: ") == 1 and "weights.bin is missing" in waited.stderr
        listed = well(poseward(broken, "status"))
        assert "problem: mesh: failed: " in listed.stdout and "poseward reset mesh" in " ".join(
            listed.stdout.split()
        )
        assert "weights.bin" in json.loads(well(poseward(broken, "status", "--json")).stdout)["problems"][0]
