"""The drop folder of a real daemon: odd names, failures and the same content twice, with a kill -9 in between."""

from __future__ import annotations

import os
from pathlib import Path

from daemon.jobs.store import JobStore, State
from tests.daemon.daemons import Daemon, until
from tests.stages.clips import write_clip

NAMES = [
    b"clip.mp4", b"-rf.mp4", b" .mp4", b"new\nline.mp4", b"\xff\xfe.mp4", b"\xff" * 255, b"x" * 251 + b".mp4",
    "ü中\U0001f3c2.mp4".encode(), b"clip.mp4.error.txt",
]  # fmt: skip


def test_whatever_is_dropped_ends_in_done_or_failed(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    clip = tmp_path / "clip.mp4"
    write_clip(clip, 6)

    def drop(name: bytes, data: bytes) -> None:
        (inbox / ".new").write_bytes(data)
        os.rename(inbox / ".new", inbox / os.fsdecode(name))

    with Daemon(tmp_path / "d", f"drop.folder={inbox}") as daemon:
        for number, name in enumerate(NAMES):  # a box that players skip makes another content of it
            drop(name, clip.read_bytes() + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
        drop(b"again.mp4", clip.read_bytes() + (16).to_bytes(4, "big") + b"free" + (0).to_bytes(8, "big"))
        drop(b"no video \xff.mp4", b"no video")
        drop(b"bad.mp4.toml", b"prioritty = 1")
        drop(b"bad.mp4", clip.read_bytes())
        until(lambda: os.listdir(inbox / "done"), "the first in done/")
        daemon.kill()
        daemon.start()
        until(lambda: set(os.listdir(inbox)) == {".claimed", "done", "failed"}, "an empty folder")
        until(lambda: not set(os.listdir(inbox / ".claimed")) - {".lock"}, "the last to be put away")
        with daemon.client() as client:
            assert client.health()["drop"]["problem"] is None
    done = {os.fsencode(name) for name in os.listdir(inbox / "done")}
    failed = {os.fsencode(name) for name in os.listdir(inbox / "failed")}
    short = {name for name in NAMES if len(name) < 240}
    assert short | {b"again.mp4"} < done and len(done) == 2 * (len(NAMES) + 1)
    assert failed == {
        b"no video \xff.mp4", b"no video \xff.mp4.error.txt", b"bad.mp4", b"bad.mp4.toml", b"bad.mp4.error.txt"
    }  # fmt: skip
    store = JobStore(tmp_path / "d" / "state")
    jobs = store.jobs()
    assert [job.state for job in jobs].count(State.DONE) == len(NAMES) + 1 and len(jobs) == len(NAMES) + 2
    same = next(job for job in jobs if job.name == "again.mp4")
    assert same.same_as is not None
    notice = (inbox / "done" / "again.mp4.results.txt").read_text()
    assert same.same_as in notice and str(same.results) in notice
    store.close()
