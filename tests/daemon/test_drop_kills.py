"""The drop folder under kills: at every single step, and kill -9 at random moments with thousands of files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.jobs.store import JobStore, State
from tests.daemon.daemons import PATIENCE, until
from tests.daemon.test_drop import Drop
from tests.paths import ROOT

STEPS = ("mkdir", "rename", "unlink", "rmdir")


class Killed(BaseException):
    """Nothing in the program may catch it, as nothing catches kill -9."""


class Killer:
    """Kills before or after the n-th step that changes something on disk."""

    def __init__(self, number: int) -> None:
        self.left = number

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **more: Any) -> Any:
            self._count()
            found = step(*args, **more)
            self._count()
            return found

        return stepping

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def settle(drop: Drop) -> None:
    for _ in range(5):
        drop.scan(30.0)


def end(drop: Drop) -> None:
    for job in drop.jobs():
        state = State.FAILED if job.number % 2 else State.DONE
        drop.store.move(job.id, [State.QUEUED], state, error="x", results="/r")
    settle(drop)


def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one name, sidecars, refusals: whatever step is the last, all comes right after a new start."""
    number = 0
    killed = True
    while killed:
        number += 1
        base = tmp_path / str(number)
        base.mkdir()
        killed = run_through(base, Killer(number), monkeypatch)
    assert number > 100, "there are many steps to be killed at"


def run_through(base: Path, killer: Killer, monkeypatch: pytest.MonkeyPatch) -> bool:
    drop = Drop(base)
    killed = False

    def survive(step: Callable[[Drop], None]) -> None:
        nonlocal killed
        try:
            with monkeypatch.context() as patch:
                for name in STEPS:
                    patch.setattr(os, name, killer.around(getattr(os, name)))
                patch.setattr(drop.store, "add", killer.around(drop.store.add))
                step(drop)
        except Killed:
            killed = True
            drop.restart()
            step(drop)

    for content in (b"first", b"second"):
        drop.put("clip.mp4", content)
        drop.put("clip.mp4.json", b'{"priority": 3}')
        survive(settle)
    drop.put("empty.mp4", b"")
    drop.put("bad.mp4", b"bad")
    drop.put("bad.mp4.toml", b"?")
    (drop.inbox / "link.mp4").symlink_to("/etc/passwd")
    survive(settle)
    unreadable = os.fsdecode(b"\xff.mp4")
    drop.put(unreadable, b"third")
    drop.put(unreadable + ".json", b'{"priority": 3}')
    survive(settle)
    survive(end)

    assert [job.name for job in drop.jobs()] == ["_.mp4", "clip.mp4", "clip.mp4"], killer
    assert [job.priority for job in drop.jobs()] == [3, 3, 3]
    assert not drop.left() and not drop.claimed()
    found = {w: list((drop.inbox / w).iterdir()) for w in ("done", "failed")}
    content = Counter(p.read_bytes() for where in found.values() for p in where if not p.is_symlink())
    assert content[b"first"] == content[b"second"] == content[b"third"] == content[b"bad"] == content[b""] == 1
    assert content[b'{"priority": 3}'] == 3 and content[b"?"] == 1
    assert sum(p.is_symlink() for p in found["failed"]) == 1
    assert (len(found["done"]), len(found["failed"])) == (3, 13), found
    assert {unreadable, unreadable + ".json"} <= drop.names("failed")
    drop.folder.stop()
    drop.store.close()
    return killed


CHILD = """
import os, sys
from pathlib import Path
from daemon.drop import DropFolder
from daemon.settings.schema import DropSettings
from daemon.jobs.store import JobStore, State
base = Path(sys.argv[1])
store = JobStore(base / "state")
store._database.execute("PRAGMA synchronous = OFF")  # a kill of this process does not reach the disk
folder = DropFolder(DropSettings(str(base / "inbox"), 0.01), store, results=base / "results")
folder.scan()
(base / "alive").touch()
while True:
    folder.scan()
    for job in store.waiting(50):
        store.move(job.id, [State.QUEUED], State.RUNNING)
        store.move(job.id, [State.RUNNING], State.DONE if job.number % 3 else State.FAILED, results="/r")
    for job in store.jobs([State.RUNNING]):
        store.move(job.id, [State.RUNNING], State.QUEUED)
"""


def test_killed_at_random_with_thousands_of_files(tmp_path: Path) -> None:
    """Each file ends in exactly one place with its own content, its own notice and one job; names come again."""
    rng = random.Random(4)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (tmp_path / "state").mkdir()
    waiting = list(range(2000))
    count = len(waiting)
    kills = 0

    def name(number: int) -> str:
        return f"clip {number % 500}.mp4"

    def drop_more() -> None:
        """Those whose name is free, each renamed into place with its sidecar before it."""
        for number in waiting[:]:
            if not (inbox / name(number)).exists():
                waiting.remove(number)
                if number % 5 == 0:
                    (inbox / ".new").write_text('{"priority": 3}')
                    os.rename(inbox / ".new", inbox / f"{name(number)}.json")
                (inbox / ".new").write_bytes(b"%d" % number)
                os.rename(inbox / ".new", inbox / name(number))

    def ended() -> int:
        return sum(one.endswith(".mp4") for where in ("done", "failed") for one in listed(inbox / where))

    deadline = time.monotonic() + PATIENCE
    while ended() < count:
        assert time.monotonic() < deadline, f"{ended()} of {count}"
        (tmp_path / "alive").unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT)
        until((tmp_path / "alive").exists, "the first look")
        drop_more()
        threading.Event().wait(rng.uniform(0.0, 0.4))
        drop_more()
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
    assert kills > 1
    store = JobStore(tmp_path / "state")
    jobs = store.jobs(limit=10_000)
    assert Counter(job.name for job in jobs) == Counter(name(number) for number in range(count))
    assert sum(job.priority == 3 for job in jobs) == count // 5
    paths = [inbox / where / one for where in ("done", "failed") for one in listed(inbox / where)]
    assert sorted(int(path.read_bytes()) for path in paths if path.name.endswith(".mp4")) == list(range(count))
    assert sum(path.name.endswith(".json") for path in paths) == count // 5
    notices = [path.read_text().split() for path in paths if path.name.endswith(".txt")]
    said = Counter(words[words.index("job:") + 1] for words in notices)
    assert said == Counter(job.id for job in jobs), "each job has one notice"
    assert len(paths) == 2 * count + count // 5
    store.close()


def listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.exists() else []
