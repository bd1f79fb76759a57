"""The drop folder in trouble: disks, stores, drives and programs that do not do as they should."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.drop import DropError, DropFolder, away
from daemon.drop.folder import SAFETY_EVERY, STORE_EVERY
from daemon.drop.watching import is_blind
from daemon.jobs.store import JobStore, State, StoredJob, StoreError
from daemon.settings.schema import DropSettings
from tests.daemon.test_drop import SETTLE, Drop, notice


@pytest.fixture
def drop(tmp_path: Path) -> Iterator[Drop]:
    made = Drop(tmp_path)
    yield made
    made.folder.stop()
    made.store.close()


def test_a_store_that_refuses_loses_nothing(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    drop.put("clip.mp4")

    def full(*args: object, **more: object) -> None:
        raise StoreError("disk-full", "no room")

    with monkeypatch.context() as patch:
        patch.setattr(drop.store, "add", full)
        assert not drop.settle()
        for number in range(5):
            drop.put(f"{number}.mp4")
        for _ in range(20):
            drop.settle()
        assert len(drop.left()) == 5 and len(drop.claimed()) == 1, "no more are taken for now"
        assert len(drop.said) == 1 and "no room" in drop.said[0], "said once"
        assert "no room" in str(drop.folder.status()["problem"])
    assert len(drop.settle()) == 6 and drop.folder.status()["problem"] is None


def test_a_new_store_takes_claimed_files_again(drop: Drop) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    drop.store._database.execute("DELETE FROM jobs")
    drop.restart()
    (again,) = drop.settle()
    assert again.id == job.id and again.name == "clip.mp4"


def test_a_new_store_does_not_forget_a_name_that_is_not_utf8(drop: Drop) -> None:
    name = os.fsdecode(b"\xe9t\xe9.mp4")
    drop.put(name)
    (job,) = drop.settle()
    assert job.name == "_t_.mp4" and Path(job.source).name == job.name
    drop.store._database.execute("DELETE FROM jobs")
    drop.restart()
    (again,) = drop.settle()
    drop.end(again)
    assert again.name == job.name and drop.names("done") == {name, name + ".results.txt"} and not drop.claimed()


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
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "done").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "failed").symlink_to(tmp_path)
    for folder, results, said in (
        (tmp_path / "file", tmp_path / "results", "drop.folder"),
        (tmp_path / os.fsdecode(b"in\xff"), tmp_path / "results", "not UTF-8"),
        (tmp_path / "file" / "below", tmp_path / "results", "drop.folder"),
        (tmp_path / "in", tmp_path / "in" / "results", "lie in each other"),
        (tmp_path / "out" / "in", tmp_path / "out", "lie in each other"),
        (tmp_path / "same", tmp_path / "same", "lie in each other"),
        (tmp_path / "full", tmp_path / "results", "done must be a folder"),
        (tmp_path / "linked", tmp_path / "results", "failed must be a folder"),
    ):
        with pytest.raises(DropError, match=said):
            DropFolder(DropSettings(str(folder)), store, results=results)
    store.close()


def test_which_file_systems_are_blind(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nC:\\ /mnt/c 9p rw 0 0\nx /net\\040drive cifs rw 0 0\n")
    assert is_blind(Path("/mnt/c/videos"), mounts) and is_blind(Path("/net drive/x"), mounts)
    assert not is_blind(Path("/mnt/cc"), mounts) and not is_blind(tmp_path, tmp_path / "missing")
    mounts.write_bytes(b"none / ext4 rw 0 0\nx /a\\134b\\011c nfs4 rw 0 0\nx /\xff fuse.sshfs rw 0 0\n")
    assert is_blind(Path("/a\\b\tc"), mounts) and is_blind(Path(os.fsdecode(b"/\xff/x")), mounts)
    mounts.write_text("x /net autofs rw 0 0\nx /net smb3 rw 0 0\nx /net/here ext4 rw 0 0\n")
    assert is_blind(Path("/net"), mounts) and not is_blind(Path("/net/here"), mounts)


def test_a_store_that_cannot_be_read_is_asked_again(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    asked = []

    def locked(job: str) -> None:
        asked.append(job)
        raise StoreError("store-locked", "another program has it open")

    with monkeypatch.context() as patch:
        patch.setattr(drop.store, "get", locked)
        drop.store.move(job.id, [State.QUEUED], State.CANCELLED)
        for _ in range(100):
            drop.scan(0.01)
        assert 0 < len(asked) <= 4 and len(drop.said) == 1
    drop.scan(STORE_EVERY)
    assert "clip.mp4" in drop.names("failed") and drop.folder.status()["problem"] is None


def test_files_that_cannot_be_moved_hold_up_no_other(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows drives, where a file that somebody has open cannot be renamed."""
    for name in ("a.mp4", "b.mp4", "b.mp4.json", "c.mp4"):
        drop.put(name, b"{}")
    rename = os.rename

    def busy(source: Path, target: Path) -> None:
        if Path(source).name in ("a.mp4", "b.mp4") and Path(source).parent == drop.inbox:
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", busy)
        for _ in range(10):
            drop.settle()
        assert [job.name for job in drop.jobs()] == ["c.mp4"]
        assert drop.left() == {"a.mp4", "b.mp4", "b.mp4.json"} and len(drop.claimed()) == 1
        assert len(drop.said) == 2 and all("Permission denied" in said for said in drop.said), "each said once"
        assert drop.folder.status()["problem"] is not None
    assert len(drop.settle()) == 3 and drop.folder.status()["problem"] is None


@pytest.mark.parametrize("call", ["mkdir", "rename"])
def test_a_full_disk_while_taking(drop: Drop, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    for number in range(50):
        drop.put(f"{number}.mp4")

    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        for _ in range(5):
            drop.settle()
        assert len(drop.left()) == 50 and len(drop.said) == 1 and "No space" in drop.said[0]
    for _ in range(3):
        drop.settle()
    assert len(drop.jobs()) == 50 and drop.folder.status()["problem"] is None


def test_a_full_disk_while_putting_away(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        drop.put(f"{number}.mp4", b"%d" % number)
    jobs = drop.settle()

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        for job in jobs:
            drop.end(job)
        for _ in range(5):
            drop.scan(SAFETY_EVERY)
        assert not drop.names("done") and len(drop.claimed()) == 5
        assert len(drop.said) == 1 and "No space" in drop.said[0], "said once for all of them"
    drop.scan(SAFETY_EVERY)
    assert len(drop.names("done")) == 10 and not drop.claimed()
    assert drop.folder.status()["problem"] is None


def test_unreadable_files_are_refused(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    drop.put("clip.mp4")
    opened = os.open

    def denied(path: Path, *args: object, **more: object) -> int:
        if Path(path).name == "clip.mp4":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", denied)
    assert not drop.settle() and "unreadable-file" in notice(drop, "clip.mp4")


def test_a_pending_move_overwrites_nothing(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of one name: the move of the first is planned, the daemon dies, and the second is moved first."""
    for content in (b"first", b"second"):
        drop.put("clip.mp4", content)
        drop.settle()
    second, first = drop.jobs()
    with monkeypatch.context() as patch:
        patch.setattr(away, "finish", lambda root, folder: None)
        drop.end(first)
    drop.end(second)
    drop.restart()
    drop.scan()
    contents = {(drop.inbox / "done" / name).read_bytes() for name in drop.names("done")}
    assert {b"first", b"second"} < contents and len(contents) == 4 and not drop.claimed()


@pytest.mark.parametrize(
    "left", [b"", b'{"where": "done"', b"[]", b'{"where": "", "moves": [], "kind": "", "notice": ""}']
)
def test_a_plan_that_a_power_cut_has_emptied_is_made_again(drop: Drop, left: bytes) -> None:
    drop.put("clip.mp4", b"content")
    (job,) = drop.settle()
    (drop.inbox / ".claimed" / job.id / ".place").write_bytes(left)
    drop.end(job)
    assert drop.names("done") == {"clip.mp4", "clip.mp4.results.txt"} and not drop.claimed()


def test_what_others_leave_among_the_claimed(drop: Drop) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    claimed = drop.inbox / ".claimed"
    (claimed / job.id / ".DS_Store").touch()
    (claimed / "somebody's folder").mkdir()
    (claimed / "somebody's folder" / "other.mp4").write_bytes(b"x")
    (claimed / "20260101-000000-0123abcd").write_bytes(b"a file")
    drop.restart()
    drop.end(job)
    drop.scan(SAFETY_EVERY)
    assert len(drop.jobs()) == 1 and drop.names("done") == {"clip.mp4", "clip.mp4.results.txt"}


def test_a_claimed_file_that_somebody_has_removed(drop: Drop) -> None:
    drop.put("clip.mp4")
    drop.put("clip.mp4.json", b"{}")
    (job,) = drop.settle()
    Path(job.source).unlink()
    drop.end(job, State.FAILED, error="no-such-file")
    drop.scan(SAFETY_EVERY)
    assert not drop.claimed() and drop.folder.status()["claimed"] == 0 and not drop.left()
    assert "clip.mp4.json" in drop.names("failed")


def test_done_may_be_removed(drop: Drop) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    (drop.inbox / "done").rmdir()
    drop.end(job)
    assert "clip.mp4" in drop.names("done")


def test_an_empty_mount_point_is_not_the_folder(drop: Drop, tmp_path: Path) -> None:
    """A drive that is unmounted leaves a folder behind, on another device."""
    drop.scan()
    os.rename(drop.inbox, tmp_path / "drive")
    drop.inbox.mkdir()
    device = drop.folder._grounds._device
    drop.folder._grounds._device = -2
    drop.put("clip.mp4")
    assert not drop.settle() and os.listdir(drop.inbox) == ["clip.mp4"]
    assert len(drop.said) == 1 and "gone" in drop.said[0]
    drop.folder._grounds._device = device
    (drop.inbox / "clip.mp4").unlink()
    drop.inbox.rmdir()
    os.rename(tmp_path / "drive", drop.inbox)
    drop.put("clip.mp4")
    assert len(drop.settle()) == 1 and drop.folder.status()["problem"] is None


def test_another_daemon_that_comes_while_the_folder_is_away(drop: Drop, tmp_path: Path) -> None:
    os.rename(drop.inbox, tmp_path / "away")
    drop.scan()
    other = DropFolder(DropSettings(str(tmp_path / "away"), SETTLE), drop.store, results=tmp_path / "results")
    os.rename(tmp_path / "away", drop.inbox)
    drop.put("clip.mp4")
    for _ in range(3):
        assert not drop.settle(), "never without the lock"
    assert sum("another daemon" in said for said in drop.said) == 1
    other.stop()
    assert len(drop.settle()) == 1


def test_a_folder_that_is_swapped_is_locked_anew(drop: Drop, tmp_path: Path) -> None:
    drop.scan()
    os.rename(drop.inbox, tmp_path / "away")
    (drop.inbox / ".claimed").mkdir(parents=True)
    (drop.inbox / ".claimed" / ".lock").touch()
    drop.scan()
    with pytest.raises(DropError, match="another daemon"):
        drop.reopen(tmp_path)
    DropFolder(DropSettings(str(tmp_path / "away"), SETTLE), drop.store, results=tmp_path / "results").stop()
    drop.put("clip.mp4")
    assert len(drop.settle()) == 1 and not drop.said


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    made = Drop(tmp_path)
    made.put("clip.mp4")
    assert len(made.settle()) == 1 and "no locks" in made.said[0]
    made.folder.stop()
    made.store.close()


def test_listeners_that_fail_lose_nothing(drop: Drop) -> None:
    def failing(job: StoredJob) -> None:
        raise RuntimeError("a defect elsewhere")

    drop.store._listeners.insert(0, failing)
    drop.put("a.mp4")
    drop.put("b.mp4")
    drop.settle()
    drop.store._listeners.remove(failing)
    for _ in range(2):
        drop.scan(SAFETY_EVERY)
    assert len(drop.jobs()) == 2 and drop.folder.status()["claimed"] == 2
    for job in drop.jobs():
        drop.end(job)
    assert len(drop.names("done")) == 4
