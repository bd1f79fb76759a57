"""The drop folder: what is taken and when, and where it lies afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.drop import DropFolder
from daemon.drop.folder import MOST, SAFETY_EVERY
from daemon.jobs.store import JobStore, State, StoredJob
from daemon.settings.schema import DropSettings

SETTLE = 2.0


class Drop:
    """A drop folder under a clock that the test moves."""

    def __init__(self, base: Path) -> None:
        self.inbox = base / "inbox"
        (base / "state").mkdir(exist_ok=True)
        self.store = JobStore(base / "state")
        self.store._database.execute("PRAGMA synchronous = OFF")  # no test cuts the power
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


def test_what_was_changed_first_is_taken_first(drop: Drop) -> None:
    for number in (3, 1, 2):
        os.utime(drop.put(f"{number}.mp4"), (number, number))
    assert [job.name for job in reversed(drop.settle())] == ["1.mp4", "2.mp4", "3.mp4"]


def test_an_old_time_of_change_is_no_shortcut(drop: Drop) -> None:
    path = drop.put("clip.mp4", bytes(1000))
    os.utime(path, (315532800, 315532800))  # 1980, as some programs have it while they copy
    drop.scan()
    drop.scan(SETTLE * 0.9)
    assert not drop.jobs()
    drop.scan(SETTLE * 0.2)
    assert len(drop.jobs()) == 1


def test_a_file_renamed_into_place_settles_like_any_other(drop: Drop, tmp_path: Path) -> None:
    path = drop.put("clip.mp4", folder=tmp_path)
    drop.scan()
    os.rename(path, drop.inbox / "clip.mp4")
    drop.scan(100.0)
    assert not drop.jobs()
    drop.scan(SETTLE)
    assert len(drop.jobs()) == 1


def test_a_file_that_became_a_folder_is_no_job(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drop.put("clip.mp4")
    drop.scan()
    rename = os.rename

    def swapped(source: Path, target: Path) -> None:
        if Path(source) == path:
            path.unlink()
            path.mkdir()
        rename(source, target)

    monkeypatch.setattr(os, "rename", swapped)
    drop.scan(SETTLE)
    monkeypatch.undo()
    assert not drop.settle() and (drop.inbox / "failed" / "clip.mp4").is_dir()
    assert "not-a-file" in (drop.inbox / "failed" / "clip.mp4.error.txt").read_text()


def test_jobs_that_ended_unheard_are_found(drop: Drop, tmp_path: Path) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    other = JobStore(tmp_path / "state")  # its changes are not told to the first one's listeners
    other.move(job.id, [State.QUEUED], State.CANCELLED)
    other.close()
    drop.scan()
    assert "clip.mp4" in drop.names("failed") and "cancelled" in notice(drop, "clip.mp4")


def test_a_job_queued_again_before_its_file_is_put_away_stays(drop: Drop) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    drop.store.move(job.id, [State.QUEUED], State.FAILED, error="x")
    drop.store.move(job.id, [State.FAILED], State.QUEUED)
    drop.scan(SAFETY_EVERY)
    assert Path(job.source).exists() and not drop.names("failed")


def test_thousands_at_once_are_taken_in_portions(drop: Drop) -> None:
    count = 5 * MOST
    for number in range(count):
        drop.put(f"{number}.mp4", b"%d" % number)
    drop.scan()
    assert drop.folder.status()["incomplete"] == count
    before = 0
    for _ in range(5):
        drop.scan(SETTLE)
        assert 0 < len(drop.jobs()) - before <= MOST
        before = len(drop.jobs())
    assert before == count == drop.folder.status()["claimed"] and not drop.left()
    for job in drop.jobs():
        drop.store.move(job.id, [State.QUEUED], State.CANCELLED)
    for _ in range(6):
        drop.scan()
    assert not drop.claimed() and len(drop.names("failed")) == 2 * count
    assert drop.folder.status()["claimed"] == 0


def notice(drop: Drop, name: str) -> str:
    return (drop.inbox / "failed" / f"{name}.error.txt").read_text()
