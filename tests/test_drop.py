"""The drop folder: what is taken and when, odd names, kills in the middle, thousands at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.drop import DropError, DropFolder
from daemon.drop.names import ERROR, RESULTS, free_name, is_ignored, is_sidecar
from daemon.drop.sidecar import SidecarError, read_sidecar
from daemon.drop.watching import is_blind
from daemon.settings import DropSettings
from daemon.store import JobStore, State, StoredJob, StoreError
from tests.daemons import PATIENCE, until

SETTLE = 2.0


class Drop:
    """A drop folder under a clock that the test moves."""

    def __init__(self, base: Path) -> None:
        self.inbox = base / "inbox"
        (base / "state").mkdir(exist_ok=True)
        self.store = JobStore(base / "state")
        self.now = 0.0
        self.said: list[str] = []
        self.folder = self.reopen(base)
        self._base = base

    def reopen(self, base: Path) -> DropFolder:
        drop = DropSettings(str(self.inbox), SETTLE)
        return DropFolder(
            drop, self.store, results=base / "results", clock=lambda: self.now,
            notify=lambda kind, text: self.said.append(f"{kind}: {text}"),
        )  # fmt: skip

    def restart(self) -> None:
        self.folder.stop()
        self.folder = self.reopen(self._base)

    def put(self, name: str, data: bytes = b"video", folder: Path | None = None) -> Path:
        path = (folder or self.inbox) / name
        path.write_bytes(data)
        return path

    def scan(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.folder.scan()

    def settle(self) -> list[StoredJob]:
        """Look until everything that is complete has been taken."""
        for _ in range(4):
            self.scan(SETTLE)
        return self.jobs()

    def jobs(self) -> list[StoredJob]:
        return self.store.jobs(limit=100_000)

    def end(self, job: StoredJob, state: State = State.DONE, **more: object) -> None:
        self.store.move(job.id, [State.QUEUED], State.RUNNING)
        self.store.move(job.id, [State.RUNNING], state, **more)
        self.scan()

    def names(self, where: str) -> set[str]:
        return set(os.listdir(self.inbox / where))

    def left(self) -> set[str]:
        return set(os.listdir(self.inbox)) - {".claimed", "done", "failed"}

    def claimed(self) -> set[str]:
        return set(os.listdir(self.inbox / ".claimed")) - {".lock"}


@pytest.fixture
def drop(tmp_path: Path) -> Iterator[Drop]:
    made = Drop(tmp_path)
    yield made
    made.folder.stop()
    made.store.close()


def test_from_the_folder_to_done(drop: Drop) -> None:
    drop.put("clip.mp4", b"frames")
    (job,) = drop.settle()
    assert job.name == "clip.mp4" and job.origin == "drop" and Path(job.source).read_bytes() == b"frames"
    assert not drop.left()
    drop.end(job, results="/results/clip", same_as="earlier")
    assert drop.names("done") == {"clip.mp4", "clip.mp4.results.txt"} and not drop.claimed()
    notice = (drop.inbox / "done" / "clip.mp4.results.txt").read_text()
    assert "/results/clip" in notice and "earlier" in notice and job.id in notice
    assert (drop.inbox / "done" / "clip.mp4").read_bytes() == b"frames"


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_from_the_folder_to_failed(drop: Drop, state: State) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    drop.end(job, state, error="unreadable-video", message="no key frame in it")
    assert drop.names("failed") == {"clip.mp4", "clip.mp4.error.txt"}
    notice = (drop.inbox / "failed" / "clip.mp4.error.txt").read_text()
    assert "unreadable-video" in notice and "no key frame" in notice and job.id in notice


def test_a_file_is_taken_only_when_it_stands_still(drop: Drop) -> None:
    path = drop.put("clip.mp4", b"a")
    for size in range(2, 8):
        drop.scan(SETTLE * 0.6)
        path.write_bytes(b"a" * size)
    assert not drop.jobs()
    drop.scan(0.1)
    drop.scan(SETTLE * 0.9)
    assert not drop.jobs()
    drop.scan(SETTLE * 0.2)
    assert len(drop.jobs()) == 1


def test_a_file_rewritten_with_the_same_size_is_still_changing(drop: Drop) -> None:
    path = drop.put("clip.mp4", b"aaaa")
    for number in range(5):
        drop.scan(SETTLE * 0.7)
        path.write_bytes(b"bbbb")
        os.utime(path, ns=(0, 10**18 + number))
    assert not drop.jobs()


def test_a_writer_that_goes_on_after_the_claim_is_waited_for(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drop.put("clip.mp4", b"first")
    writer = path.open("ab", buffering=0)
    rename = os.rename

    def late(source: str, target: str) -> None:
        rename(source, target)
        if str(target).endswith("clip.mp4"):
            writer.write(b" more")

    drop.scan()
    monkeypatch.setattr(os, "rename", late)
    drop.scan(SETTLE)
    assert not drop.jobs() and not drop.left()
    monkeypatch.undo()
    writer.write(b" and more")
    drop.scan(SETTLE * 0.5)
    drop.scan(SETTLE * 0.6)
    assert not drop.jobs()
    (job,) = drop.settle()
    assert Path(job.source).read_bytes() == b"first more and more"


@pytest.mark.parametrize(
    "name", [".hidden.mp4", "clip.mp4.part", "clip.CRDOWNLOAD", "~$clip.mp4", "x.tmp", "x.filepart"]
)
def test_unfinished_and_hidden_names_are_left(drop: Drop, name: str) -> None:
    drop.put(name)
    assert not drop.settle() and drop.left() == {name}
    os.rename(drop.inbox / name, drop.inbox / "finished.mp4")
    assert len(drop.settle()) == 1


def test_a_file_that_vanishes(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drop.put("clip.mp4")
    drop.scan()
    mkdir = Path.mkdir

    def racing(self: Path, *args: object, **more: object) -> None:
        path.unlink(missing_ok=True)
        mkdir(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", racing)
    drop.scan(SETTLE)
    monkeypatch.undo()
    assert not drop.settle() and not drop.claimed()


def test_links_folders_and_pipes(drop: Drop, tmp_path: Path) -> None:
    secret = drop.put("secret.mp4", folder=tmp_path)
    (drop.inbox / "link.mp4").symlink_to(secret)
    (drop.inbox / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (drop.inbox / "folder.mp4").mkdir()
    os.mkfifo(drop.inbox / "pipe.mp4")
    assert not drop.settle()
    assert drop.left() == {"folder.mp4", "pipe.mp4"} and secret.exists()
    assert {"link.mp4", "link.mp4.error.txt", "dangling.mp4"} <= drop.names("failed")
    assert "link" in (drop.inbox / "failed" / "link.mp4.error.txt").read_text()
    assert sum("folder.mp4" in said for said in drop.said) == 1, "said once"


def test_empty_files_are_refused(drop: Drop) -> None:
    drop.put("empty.mp4", b"")
    assert not drop.settle() and "empty.mp4" in drop.names("failed")
    assert "empty-file" in (drop.inbox / "failed" / "empty.mp4.error.txt").read_text()


def test_the_same_name_again_and_again(drop: Drop) -> None:
    for number in range(3):
        drop.put("clip.mp4", b"%d" % number)
        drop.settle()
        drop.end(drop.jobs()[0])
    found = drop.names("done")
    assert {"clip.mp4", "clip (2).mp4", "clip (3).mp4"} <= found
    assert [(drop.inbox / "done" / n).read_bytes() for n in sorted(found) if n.endswith(").mp4")] == [b"1", b"2"]


@given(st.binary(min_size=1, max_size=255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_name_comes_through(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    name = os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))
    if name in (".", ".."):
        return
    base = tmp_path_factory.mktemp("names")
    drop = Drop(base)
    try:
        (drop.inbox / name).write_bytes(b"x")
        jobs = drop.settle()
        if is_ignored(name) or is_sidecar(name):
            assert not jobs and drop.left() - {name} == set()
            return
        assert [job.name for job in jobs] == [name] and Path(jobs[0].source).read_bytes() == b"x"
        drop.end(jobs[0], State.FAILED, error="x", message="y")
        assert not drop.claimed()
        assert sum((drop.inbox / "failed" / n).read_bytes() == b"x" for n in drop.names("failed")) == 1
    finally:
        drop.folder.stop()
        drop.store.close()


@pytest.mark.parametrize("name", ["x" * 255, "x" * 250 + ".mp4", "ü" * 127, "a." + "e" * 200])
def test_long_names_leave_room(tmp_path: Path, name: str) -> None:
    for _ in range(3):
        found = free_name(tmp_path, name, (ERROR, RESULTS))
        assert len(os.fsencode(found + ".results.txt")) <= 255
        (tmp_path / found).touch()
    assert len(list(tmp_path.iterdir())) == 3


# -- sidecars ---------------------------------------------------------------------------------------------


def test_a_sidecar_goes_with_its_file(drop: Drop) -> None:
    drop.put("clip.mp4.toml", b'exports = ["glb"]\npriority = 7\nrecompute = true\n')
    assert not drop.settle() and drop.left() == {"clip.mp4.toml"}, "a sidecar waits for its file"
    drop.put("clip.mp4")
    (job,) = drop.settle()
    assert job.priority == 7 and job.options == {"exports": ["glb"], "recompute": True}
    drop.end(job)
    assert drop.names("done") == {"clip.mp4", "clip.mp4.toml", "clip.mp4.results.txt"}


@pytest.mark.parametrize(
    ("suffix", "text", "said"),
    [
        (".toml", "priority = ", "not valid TOML"),
        (".json", "{", "not valid JSON"),
        (".json", "[1]", "must be a table"),
        (".toml", "prioritty = 1", "did you mean priority"),
        (".toml", "priority = 1000", "priority = 1000"),
        (".json", '{"priority": "5"}', "priority = '5'"),
        (".json", '{"recompute": 1}', "recompute"),
        (".json", '{"exports": "glb"}', "exports"),
        (".toml", "\udcff", "not valid TOML"),
        (".json", "[" * 60_000, "not valid JSON"),
        (".toml", "#" * 70_000, "is this a sidecar"),
    ],
)
def test_a_bad_sidecar_is_named(drop: Drop, suffix: str, text: str, said: str) -> None:
    drop.put("clip.mp4")
    drop.put("clip.mp4" + suffix, text.encode("utf-8", "surrogateescape"))
    assert not drop.settle()
    assert {"clip.mp4", "clip.mp4" + suffix, "clip.mp4.error.txt"} == drop.names("failed")
    notice = (drop.inbox / "failed" / "clip.mp4.error.txt").read_text()
    assert said in notice and "bad-sidecar" in notice and "clip.mp4" + suffix in notice


@given(st.binary(max_size=200), st.sampled_from([".toml", ".json"]))
def test_any_sidecar_is_options_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("s") / f"a.mp4{suffix}"
    path.write_bytes(raw)
    try:
        read_sidecar(path).as_map()
    except SidecarError as error:
        assert path.name in str(error)


@given(
    st.dictionaries(
        st.sampled_from(["exports", "priority", "recompute", "x"]),
        st.none() | st.integers() | st.text() | st.lists(st.text()),
    )
)
def test_any_json_sidecar(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("s") / "a.mp4.json"
    path.write_text(json.dumps(value))
    try:
        read_sidecar(path).as_map()
    except SidecarError as error:
        assert path.name in str(error)


# -- trouble ------------------------------------------------------------------------------------------------


def test_a_store_that_refuses_loses_nothing(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    drop.put("clip.mp4")

    def full(*args: object, **more: object) -> None:
        raise StoreError("disk-full", "no room")

    with monkeypatch.context() as patch:
        patch.setattr(drop.store, "add", full)
        assert not drop.settle()
        assert sum("no room" in said for said in drop.said) == 1, "said once"
    assert len(drop.settle()) == 1


def test_a_new_store_takes_claimed_files_again(drop: Drop) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    drop.store._database.execute("DELETE FROM jobs")
    drop.restart()
    (again,) = drop.settle()
    assert again.id == job.id and again.name == "clip.mp4"


def test_a_folder_that_goes_and_comes_back(drop: Drop, tmp_path: Path) -> None:
    drop.scan()
    os.rename(drop.inbox, tmp_path / "away")
    drop.settle()
    assert sum("gone" in said for said in drop.said) == 1
    os.rename(tmp_path / "away", drop.inbox)
    drop.put("clip.mp4")
    assert len(drop.settle()) == 1


def test_two_daemons_one_folder(drop: Drop, tmp_path: Path) -> None:
    with pytest.raises(DropError, match="another daemon"):
        drop.reopen(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    store = JobStore(tmp_path / "state")
    (tmp_path / "file").touch()
    for folder, results, said in (
        (tmp_path / "file", tmp_path / "results", "drop.folder"),
        (tmp_path / "file" / "below", tmp_path / "results", "drop.folder"),
        (tmp_path / "in", tmp_path / "in" / "results", "lie in each other"),
        (tmp_path / "out" / "in", tmp_path / "out", "lie in each other"),
    ):
        with pytest.raises(DropError, match=said):
            DropFolder(DropSettings(str(folder)), store, results=results)
    store.close()


def test_which_file_systems_are_blind(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nC:\\ /mnt/c 9p rw 0 0\nx /net\\040drive cifs rw 0 0\n")
    assert is_blind(Path("/mnt/c/videos"), mounts) and is_blind(Path("/net drive/x"), mounts)
    assert not is_blind(Path("/mnt/cc"), mounts) and not is_blind(tmp_path, tmp_path / "missing")


CHILD = """
import sys
from pathlib import Path
from daemon.drop import DropFolder
from daemon.settings import DropSettings
from daemon.store import JobStore, State
base = Path(sys.argv[1])
store = JobStore(base / "state")
folder = DropFolder(DropSettings(str(base / "inbox"), 0.01), store, results=base / "results")
for job in store.jobs([State.RUNNING], limit=1000):
    store.move(job.id, [State.RUNNING], State.QUEUED)
while True:
    folder.scan()
    for job in store.waiting(7):
        store.move(job.id, [State.QUEUED], State.RUNNING)
        store.move(job.id, [State.RUNNING], State.DONE if job.number % 3 else State.FAILED, results="/r")
    (base / "alive").touch()
"""


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_with_hundreds_of_files(tmp_path: Path, seed: int) -> None:
    """Each file ends in exactly one place with its own content and one job, whatever died when."""
    rng = random.Random(seed)
    (tmp_path / "state").mkdir()
    (tmp_path / "inbox").mkdir()
    count = 300
    for number in range(count):
        (tmp_path / "inbox" / f"{number}.mp4").write_bytes(b"%d" % number)
        if number % 5 == 0:
            (tmp_path / "inbox" / f"{number}.mp4.json").write_text('{"priority": 3}')

    def ended() -> list[Path]:
        return [p for where in ("done", "failed") for p in (tmp_path / "inbox" / where).glob("*.mp4")]

    deadline = time.monotonic() + PATIENCE
    while len(ended()) < count:
        assert time.monotonic() < deadline, f"{len(ended())} of {count}"
        (tmp_path / "alive").unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], cwd=Path(__file__).parent.parent)
        until((tmp_path / "alive").exists, "the first look")
        threading.Event().wait(rng.uniform(0.0, 0.5))
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert sorted(int(path.read_bytes()) for path in ended()) == list(range(count))
    store = JobStore(tmp_path / "state")
    jobs = store.jobs(limit=10_000)
    assert sorted(int(job.name.removesuffix(".mp4")) for job in jobs) == list(range(count))
    assert all(job.priority == (3 if int(job.name.removesuffix(".mp4")) % 5 == 0 else 0) for job in jobs)
    sides = [p for where in ("done", "failed") for p in (tmp_path / "inbox" / where).glob("*.json")]
    assert len(sides) == count // 5
    store.close()


def test_the_thread_is_told_by_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    store = JobStore(tmp_path / "state")
    folder = DropFolder(DropSettings(str(tmp_path / "inbox"), 0.1), store, results=tmp_path / "results")
    folder.start()
    try:
        assert folder.status()["watching"] == "kernel"
        for number in range(3):
            (tmp_path / "inbox" / f"{number}.mp4").write_bytes(b"x")
            job = until(lambda: (found := store.jobs([State.QUEUED])) and found[0], "a job", 25.0)
            store.move(job.id, [State.QUEUED], State.RUNNING)
            store.move(job.id, [State.RUNNING], State.DONE)
            until((tmp_path / "inbox" / "done" / job.name).exists, "the file in done/", 25.0)
    finally:
        folder.stop()
        store.close()
