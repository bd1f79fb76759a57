"""Real daemons: jobs through the API, kills of stages and of the daemon, cancelling, images, events."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from daemon.client import ClientError
from daemon.serve import STATUS_EVERY
from stages.results.stream import encode_record, read_results
from tests.daemon.daemons import PATIENCE, Daemon, ended, until
from tests.daemon.disks import disk_at
from tests.stages.harness import write_squares

SLOW = 'stages.faults=["mesh:slow=0.03%1/1"]'
"""Gives a test time to do something while a job runs; announced loudly in the log, as faults are."""


def square(at: int = 20) -> bytes:
    image = np.zeros((120, 160, 3), np.uint8)
    image[20:60, at : at + 40] = 255
    return bytes(cv2.imencode(".png", image)[1])


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "clip.mp4", 90)


@pytest.fixture
def undisturbed(tmp_path: Path, clip: Path) -> bytes:
    """The bytes of the results of a daemon that nobody disturbs."""
    with Daemon(tmp_path / "calm", f'api.roots=["{tmp_path}"]') as daemon, daemon.client() as client:
        job = client.wait(client.submit(clip)["id"], PATIENCE)
        assert job["state"] == "done", job
        return (Path(job["results"]) / "frames.msgpack").read_bytes()


def test_a_job_from_submission_to_results(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "a clip ü.mp4", 40)
    with Daemon(tmp_path) as daemon, daemon.client() as client:
        seen = []
        job = client.submit(clip, key="mine", priority=3)
        assert job["new"] and client.submit(clip, key="mine")["id"] == job["id"]
        done = client.wait(job["id"], PATIENCE, seen.append)
        assert done["state"] == "done" and done["frames"] == 40 and done["attempts"] == 1, done
        assert client.status(key="mine")["state"] == "done" and seen[-1]["state"] == "done"
        found = client.results(job["id"])
        assert found["summary"]["job"] == job["id"] and found["summary"]["input"]["name"] == "a clip ü.mp4"
        assert {file["name"] for file in found["files"]} == {"frames.msgpack", "summary.json"}
        target = client.download(job["id"], "frames.msgpack", tmp_path / "copy.msgpack")
        with read_results(target) as results:
            expected = [encode_record(record) for record in results]
        got = [encode_record(record) for record in client.frames(job["id"])]
        assert len(got) == 40
        np.testing.assert_equal(got, expected)
        middle = client.page(job["id"], 10, count=5)
        assert [record.frame for record in middle.records] == [10, 11, 12, 13, 14] and not middle.end
        assert client.page(job["id"], 38, vertices=False).records[0].tracks[0].vertices is None
        for name in ("../clip.mp4", "missing", ".hidden", "summary.json/"):
            with pytest.raises(ClientError, match="no-such-file"):
                client.download(job["id"], name, tmp_path / "x")


def test_the_same_content_is_not_computed_twice_unless_asked(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 20)
    with Daemon(tmp_path) as daemon, daemon.client() as client:
        first = client.wait(client.submit(clip)["id"], PATIENCE)
        clip.rename(tmp_path / "other.mp4")
        again = client.wait(client.submit(tmp_path / "other.mp4")["id"], PATIENCE)
        assert again["same_as"] == first["id"] and again["results"] == first["results"]
        with_more = client.wait(client.submit(tmp_path / "other.mp4", exports=["json"])["id"], PATIENCE)
        assert with_more["same_as"] == first["id"] and (Path(first["results"]) / "frames.jsonl").is_file()
        anew = client.wait(client.submit(tmp_path / "other.mp4", recompute=True)["id"], PATIENCE)
        assert anew["same_as"] is None and anew["results"] != first["results"]
        one, two = (Path(job["results"]) / "frames.msgpack" for job in (first, anew))
        assert one.read_bytes() == two.read_bytes()


def test_kill_a_stage_and_then_the_daemon(tmp_path: Path, clip: Path, undisturbed: bytes) -> None:
    with Daemon(tmp_path, SLOW) as daemon, daemon.client() as client:
        job = client.submit(clip)["id"]
        records = []
        reader = threading.Thread(target=lambda: records.extend(client.frames(job)))
        reader.start()  # streams while everything is killed

        def committed() -> int:
            return int(client.status(job).get("progress", {}).get("committed", 0))

        until(lambda: committed() > 10, "ten frames")
        os.kill(client.health()["processes"]["mesh"]["pid"], signal.SIGKILL)
        until(lambda: committed() > 30, "thirty frames")
        below = daemon.below()
        daemon.kill()
        psutil.wait_procs(below, PATIENCE)
        assert not [process for process in below if process.is_running()], "a stage outlived the daemon"
        daemon.start()
        done = client.wait(job, PATIENCE)
        assert done["state"] == "done" and done["attempts"] == 2, daemon.story()
        reader.join(PATIENCE)
        assert [record.frame for record in records] == list(range(90))
        assert (Path(done["results"]) / "frames.msgpack").read_bytes() == undisturbed
        assert done["summary"]["resumed"] and daemon.results.is_dir()
        assert not list(daemon.results.glob("*.poseward-work"))


@pytest.mark.parametrize("seed", range(3))
def test_kill_the_daemon_at_any_moment(tmp_path: Path, seed: int) -> None:
    """Again and again, from its start to its end; every job ends once, with whole results."""
    rng = np.random.default_rng(seed)
    clips = [write_squares(tmp_path / f"{n}.mp4", 12 + n) for n in range(4)]
    daemon = Daemon(tmp_path)
    with daemon, daemon.client() as client:
        jobs = [client.submit(clip, key=clip.name)["id"] for clip in clips]
        for _ in range(6):
            threading.Event().wait(rng.uniform(0.0, 0.8))
            daemon.kill()
            daemon.start(wait=bool(rng.integers(2)))
        done = ended(client, jobs)
        assert [job["state"] for job in done] == ["done"] * 4, daemon.story()
        assert [job["frames"] for job in done] == [12, 13, 14, 15]
        assert len({job["results"] for job in done}) == 4
        for job in done:
            with read_results(job["results"]) as results:
                assert [record.frame for record in results] == list(range(job["frames"]))
        assert client.list()["counts"] == {"queued": 0, "running": 0, "done": 4, "failed": 0, "cancelled": 0}


def test_cancel_and_retry_goes_on_from_there(tmp_path: Path, clip: Path, undisturbed: bytes) -> None:
    with Daemon(tmp_path, SLOW) as daemon, daemon.client() as client:
        running, waiting = client.submit(clip)["id"], [client.submit(clip, recompute=True)["id"] for _ in range(3)]
        until(lambda: client.status(running).get("progress", {}).get("committed", 0) > 20, "twenty frames")
        for job in [running, *waiting]:
            assert client.cancel(job)["state"] == "cancelled"
            assert client.cancel(job)["state"] == "cancelled"
        with pytest.raises(ClientError, match="not-ready"):
            client.page(running)
        assert client.retry(running)["state"] == "queued", "as soon as its cancelling has ended"
        assert client.retry(running)["state"] in ("queued", "running"), "asked again, after a lost answer"
        done = client.wait(running, PATIENCE)
        assert done["state"] == "done" and done["summary"]["resumed"], daemon.story()
        assert (Path(done["results"]) / "frames.msgpack").read_bytes() == undisturbed
        with pytest.raises(ClientError, match="wrong-state"):
            client.retry(running)


def test_a_job_map_does_not_grow_with_the_frames_that_failed(tmp_path: Path) -> None:
    """A list of jobs is one message."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(310):
        (images / f"{number:03}.png").write_bytes(b"damaged" if number < 150 else square(50))
    with Daemon(tmp_path / "d", f'api.roots=["{tmp_path}"]') as daemon, daemon.client() as client:
        job = client.wait(client.submit(images)["id"], PATIENCE)
        assert job["state"] == "done", daemon.story()
        for found in (job["summary"], client.list()["jobs"][0]["summary"]):
            assert len(found["failed_frames"]) == 100 and found["left_out"] == {"failed_frames": 50}
        assert len(client.results(job["id"])["summary"]["failed_frames"]) == 150


def test_jobs_that_cannot_be_done_fail_by_name_and_the_next_one_runs(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(os.urandom(5000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "gone.mp4").write_bytes(b"x")
    long = write_squares(tmp_path / "long.mp4", 100)
    good = write_squares(tmp_path / "good.mp4", 10)
    with (
        Daemon(tmp_path, "api.max_duration=2.0", 'results.exports=["overlay"]') as daemon,
        daemon.client() as client,
    ):
        client.drain()
        with pytest.raises(ClientError, match="draining"):
            client.submit(good)
        client.drain(False)
        jobs = [client.submit(tmp_path / f"{n}.mp4")["id"] for n in ("noise", "empty", "long", "good")]
        noise, empty, too_long, fine = ended(client, jobs)
        assert noise["error"] == "unreadable-video" and "noise.mp4" in noise["message"]
        assert (
            empty["error"] == "empty-file" and too_long["error"] == "too-long" and str(long) == too_long["source"]
        )
        assert fine["state"] == "done" and (Path(fine["results"]) / "overlay.mp4").is_file()
        client.drain()
        vanishing = None
        client.drain(False)
        vanishing = client.submit(tmp_path / "gone.mp4")["id"]
        assert client.wait(vanishing, PATIENCE)["state"] == "failed"
        for asked in ({"exports": ["glob"]}, {"priority": 1000}):
            with pytest.raises(ClientError, match="bad-request"):
                client.submit(good, **asked)  # type: ignore[arg-type]


def test_one_image_ahead_of_a_video(tmp_path: Path, clip: Path) -> None:
    with Daemon(tmp_path, SLOW, "api.max_images=4") as daemon, daemon.client() as client:
        job = client.submit(clip)["id"]
        until(lambda: client.status(job).get("progress", {}).get("committed", 0) > 5, "some frames")
        record, header = client.image(square())
        assert (header.width, header.height) == (160, 120) and len(record.tracks) == 1
        np.testing.assert_allclose(record.tracks[0].box, [20, 20, 60, 60])
        assert client.status(job)["state"] == "running", "the image had to wait for the video"
        assert client.image(square(50), vertices=False)[0].tracks[0].vertices is None
        with pytest.raises(ClientError, match="unreadable"):
            client.image(b"not an image")
        assert client.wait(job, PATIENCE)["state"] == "done"
        assert not list((tmp_path / "state" / "images").iterdir()), "an image was left behind"
        assert daemon.process is not None


def test_roots_bind_everybody_but_the_daemons_own_user_on_its_socket(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 15)
    with Daemon(tmp_path / "d") as daemon, daemon.client() as client:
        job = client.wait(client.submit(clip)["id"], PATIENCE)
        assert job["state"] == "done"
        with pytest.raises(ClientError, match="no-such-file"):
            client.submit(clip.with_name("none.mp4"))
        with pytest.raises(ClientError, match="path-refused"):
            client.submit("/dev/null")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    daemon = Daemon(tmp_path / "t", f"api.address={address}")
    daemon.address = address
    with daemon, daemon.client() as client, pytest.raises(ClientError, match="path-refused"):
        client.submit(clip)


def test_the_same_content_submitted_twice_at_once_is_computed_once(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 40)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    with (
        Daemon(tmp_path / "d", 'stages.faults=["mesh:slow=0.05%1.0/1xalways"]') as daemon,
        daemon.client() as client,
    ):
        first, second, third = client.submit(clip), client.submit(copy), client.submit(clip)
        done = [client.wait(job["id"], PATIENCE) for job in (first, second, third)]
        assert [job["state"] for job in done] == ["done"] * 3
        assert [job["same_as"] for job in done] == [None, first["id"], first["id"]]
        assert len({job["results"] for job in done}) == 1
        anew = client.submit(copy, recompute=True)
        assert client.wait(anew["id"], PATIENCE)["same_as"] is None
        assert len(list(daemon.results.iterdir())) == 2


def test_who_waits_for_the_same_content_computes_it_when_the_first_is_cancelled(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 40)
    with (
        Daemon(tmp_path / "d", 'stages.faults=["mesh:slow=0.05%1.0/1xalways"]') as daemon,
        daemon.client() as client,
    ):
        first, second = client.submit(clip), client.submit(clip)
        until(
            lambda: client.status(first["id"]).get("progress", {}).get("committed", 0) > 2, "frames of the first"
        )
        assert client.status(second["id"])["state"] == "queued"
        client.cancel(first["id"])
        job = client.wait(second["id"], PATIENCE)
        assert (job["state"], job["same_as"]) == ("done", None)


def test_a_store_that_is_damaged_meanwhile_is_named_and_ends_nothing(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 15)
    with Daemon(tmp_path / "d") as daemon, daemon.client() as client:
        job = client.wait(client.submit(clip)["id"], PATIENCE)
        assert daemon.process is not None
        for path in (tmp_path / "d" / "state").glob("*.db*"):
            with path.open("r+b") as file:
                file.write(b"damaged " * (path.stat().st_size // 8))
        until(lambda: any("store" in text for text in client.health()["problems"]), "the daemon to name it")
        began = client.health()["uptime"]
        until(lambda: client.health()["uptime"] > began + 2 * STATUS_EVERY, "lines of status")
        assert daemon.process.poll() is None and "Traceback" not in daemon.story()
        with pytest.raises(ClientError) as refused:
            client.status(job["id"])
        assert refused.value.name.startswith("store-")
        assert daemon.stop() == 0


def test_uploads_end_to_end(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clip = write_squares(elsewhere / "-rf clip\n.mp4", 15)
    with Daemon(tmp_path / "d") as daemon, daemon.client() as client:
        sent: list[tuple[int, int]] = []
        upload = client.upload(clip, lambda done, size: sent.append((done, size)))
        assert sent[-1] == (clip.stat().st_size,) * 2
        job = client.wait(client.submit(upload=upload)["id"], PATIENCE)
        assert job["state"] == "done" and job["name"] == clip.name and job["frames"] == 15
        assert daemon.process is not None and daemon.process.poll() is None


def test_events_tell_what_happens(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 30)
    with Daemon(tmp_path, SLOW) as daemon, daemon.client() as client, daemon.client() as asker:
        seen: list[tuple[str, dict[str, object]]] = []
        gone = threading.Event()

        def listen() -> None:
            for event in client.events():
                seen.append(event)
                if gone.is_set():
                    return

        listener = threading.Thread(target=listen)
        listener.start()
        until(lambda: seen, "the first event")  # subscriptions take a moment to arrive
        job = asker.submit(clip)["id"]
        asker.wait(job, PATIENCE)
        until(lambda: any(t == f"job.{job}" and e["job"]["state"] == "done" for t, e in seen), "done")  # type: ignore
        until(lambda: any(t == "memory" for t, _ in seen), "a look at memory")
        until(lambda: any(t == f"frame.{job}" and e["record"]["frame"] == 29 for t, e in seen), "the last frame")  # type: ignore
        gone.set()
        asker.drain()
        listener.join(PATIENCE)
        states = [e["job"]["state"] for t, e in seen if t == f"job.{job}"]  # type: ignore[index]
        assert states[0] == "queued" and states[-1] == "done" and "running" in states
        tracks = [e["record"]["tracks"] for t, e in seen if t == f"frame.{job}"]  # type: ignore[index]
        assert any(tracks) and not any({"vertices", "extra"} & set(one) for found in tracks for one in found)
        assert asker.page(job, 0).records[0].tracks[0].extra, "while pages have it"
        frames = [e["record"]["frame"] for t, e in seen if t == f"frame.{job}"]  # type: ignore[index]
        assert frames and frames == list(range(frames[0], 30)), "each once, in order, to the last"
        numbers = [e["seq"] for _, e in seen]
        assert numbers == sorted(set(numbers)), "events came twice or out of order"  # type: ignore[type-var]


def test_reload_restarts_all_stages_and_loses_nothing(tmp_path: Path, clip: Path, undisturbed: bytes) -> None:
    with Daemon(tmp_path, SLOW) as daemon, daemon.client() as client:
        job = client.submit(clip)["id"]
        before = {name: process["pid"] for name, process in client.health()["processes"].items()}
        client.reload()

        def renewed() -> bool:
            now = client.health()["processes"]
            return all(now[name]["pid"] not in (None, before[name]) for name in before)

        until(renewed, "new processes")
        done = client.wait(job, PATIENCE)
        assert done["state"] == "done", daemon.story()
        assert (Path(done["results"]) / "frames.msgpack").read_bytes() == undisturbed


def test_a_stage_that_cannot_start_is_told_and_the_job_waits_for_it(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 10)
    python = tmp_path / "python"
    with Daemon(tmp_path, f"stages.mesh.python={python}") as daemon, daemon.client() as client:
        job = client.submit(clip)["id"]
        health = until(lambda: (h := client.health())["problems"] and h, "a problem")
        assert health["processes"]["mesh"]["state"] == "failed" and str(python) in " ".join(health["problems"])
        python.symlink_to(os.path.realpath(psutil.Process().exe()))
        python.unlink()
        import sys

        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        client.reset("mesh")
        assert client.wait(job, PATIENCE)["state"] == "done", daemon.story()


def test_two_daemons_do_not_share_a_state_or_an_address(tmp_path: Path) -> None:
    with Daemon(tmp_path / "one") as first:
        second = Daemon(tmp_path / "two")
        second.sets = [*first.sets]
        second.start(wait=False)
        assert second.process is not None and second.process.wait(PATIENCE) == 2
        assert "another daemon" in second.story()
        second.sets.append(f"daemon.state={tmp_path / 'two' / 'state'}")
        second.start(wait=False)
        assert second.process.wait(PATIENCE) == 2
        assert "answered by another daemon" in second.story()
        with first.client() as client:
            client.hello()


def test_folders_that_cannot_be_used_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for setting, said in (
        (f"drop.folder={tmp_path / 'file'}", "drop.folder"),
        (f"drop.folder={tmp_path / 'results' / 'in'}", "results.folder"),
        (f"daemon.state={tmp_path / 'file' / 'state'}", "daemon.state"),
        ("api.address=tcp://0.0.0.0:5555", "keys"),
        ("stages.faults=nonsense", "stages.faults"),
        ("results.exports=nonsense", "nonsense"),
    ):
        daemon = Daemon(tmp_path / said, f"results.folder={tmp_path / 'results'}", setting)
        daemon.start(wait=False)
        assert daemon.process is not None and daemon.process.wait(PATIENCE) == 2, daemon.story()
        story = daemon.story()
        assert said in story and "Traceback" not in story, story


def test_results_that_cannot_be_written_fail_by_name_and_are_kept_for_retry(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 10)
    (tmp_path / "results").write_text("a file where the folder should be")
    with Daemon(tmp_path) as daemon, daemon.client() as client:
        job = client.wait(client.submit(clip)["id"], PATIENCE)
        assert job["error"] == "folder-or-file-unusable" and str(tmp_path / "results") in job["message"]
        (tmp_path / "results").unlink()
        client.retry(job["id"])
        assert client.wait(job["id"], PATIENCE)["state"] == "done", daemon.story()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, clip: Path, undisturbed: bytes) -> None:
    results = tmp_path / "results"
    results.mkdir()
    # Less than the results need, and more than is taken before the first frame.
    with disk_at(results, "200k"), Daemon(tmp_path) as daemon, daemon.client() as client:
        job = client.wait(client.submit(clip)["id"], PATIENCE)
        assert job["state"] == "failed" and job["error"] == "disk-full", (job, daemon.story())
        assert "space" in job["message"] and str(results) in job["message"]
        other = write_squares(tmp_path / "other.mp4", 5)
        assert client.submit(other)["new"], "the daemon goes on"
        subprocess.run(["mount", "-o", "remount,size=20m", results], check=True)
        assert client.retry(job["id"])["state"] == "queued"
        done = client.wait(job["id"], PATIENCE)
        assert done["state"] == "done", (done, daemon.story())
        assert (Path(done["results"]) / "frames.msgpack").read_bytes() == undisturbed


def test_stopping_in_order_keeps_the_job_for_the_next_daemon(
    tmp_path: Path, clip: Path, undisturbed: bytes
) -> None:
    with Daemon(tmp_path, SLOW) as daemon, daemon.client() as client:
        job = client.submit(clip)["id"]
        until(lambda: client.status(job).get("progress", {}).get("committed", 0) > 20, "twenty frames")
        records: list[int] = []
        reader = threading.Thread(target=lambda: records.extend(r.frame for r in client.frames(job)))
        reader.start()  # for whoever waits, an orderly restart is only a pause
        waiter = threading.Thread(target=lambda: client.wait(job, PATIENCE))
        waiter.start()
        assert daemon.stop() == 0
        daemon.start()
        done = client.wait(job, PATIENCE)
        reader.join(PATIENCE)
        waiter.join(PATIENCE)
        assert records == list(range(90))
        assert done["state"] == "done" and done["summary"]["resumed"]
        assert (Path(done["results"]) / "frames.msgpack").read_bytes() == undisturbed
