"""The journal: whatever is cut off or damaged, what is left is a prefix of what was written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stages.results.journal import Journal, JournalError, JournalFullError, JournalOrderError


def payload(frame: int) -> bytes:
    return bytes([frame % 251]) * (frame % 7 * 5)


def written(folder: Path, frames: int, snapshots: tuple[int, ...] = ()) -> None:
    journal = Journal.open(folder)
    for frame in range(frames):
        if frame in snapshots:
            journal.snapshot(frame, b"state %d" % frame)
        journal.append(frame, payload(frame))
    journal.close()


def check_prefix(folder: Path, at_most: int) -> int:
    """Opens the journal, checks all it holds, appends what is missing, and returns where it had ended."""
    journal = Journal.open(folder)
    end = journal.next_frame
    assert end <= at_most
    snapshot = journal.latest_snapshot()
    start = snapshot[0] if snapshot else 0
    assert list(journal.read(start)) == [(frame, payload(frame)) for frame in range(start, end)]
    for frame in range(end, at_most):
        journal.append(frame, payload(frame))
    assert list(journal.read(start)) == [(frame, payload(frame)) for frame in range(start, at_most)]
    journal.close()
    return end


def test_cut_at_every_byte(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    written(whole, 9)
    (segment,) = whole.glob("journal-*")
    data = segment.read_bytes()
    ends = []
    for length in range(len(data) + 1):
        folder = tmp_path / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / segment.name).write_bytes(data[:length])
        ends.append(check_prefix(folder, 9))
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (0, 9)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_anywhere_leaves_a_prefix(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    written(folder, 30, snapshots=(8, 16, 24))
    victim = data.draw(st.sampled_from(sorted(path.name for path in folder.glob("*-0*"))))
    content = bytearray((folder / victim).read_bytes())
    if not content:
        return
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (folder / victim).write_bytes(content)
    check_prefix(folder, 30)


def test_disk_use_is_bounded_by_the_distance_of_snapshots(tmp_path: Path) -> None:
    written(tmp_path, 200, snapshots=tuple(range(0, 200, 20)))
    frames = sorted(int(path.name[-12:]) for path in tmp_path.glob("journal-0*"))
    assert frames[0] >= 160
    assert len(list(tmp_path.glob("snapshot-*"))) == 2


def test_the_older_snapshot_serves_when_the_newer_is_damaged(tmp_path: Path) -> None:
    written(tmp_path, 30, snapshots=(10, 20))
    newest = max(tmp_path.glob("snapshot-*"))
    newest.write_bytes(b"rubbish")
    journal = Journal.open(tmp_path)
    assert journal.latest_snapshot() == (10, b"state 10")
    assert [frame for frame, _ in journal.read(10)] == list(range(10, 30))
    journal.close()


def test_frames_are_taken_in_order_only(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.append(0, b"")
    for wrong in (0, 2):
        with pytest.raises(JournalOrderError):
            journal.append(wrong, b"")
    journal.close()


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    with pytest.raises(JournalError, match="another process"):
        Journal.open(tmp_path)
    journal.close()
    Journal.open(tmp_path).close()


def test_a_full_disk_leaves_a_valid_journal(tmp_path: Path) -> None:
    """The limit on a file's size stands for the full disk: the kernel refuses in the middle of a record."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal.open(tmp_path)
    journal.append(0, b"x" * 100)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(JournalFullError, match=r"frame 1 .* free"):
            journal.append(1, b"y" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    journal.append(1, b"now")
    journal.close()
    journal = Journal.open(tmp_path)
    assert list(journal.read(0)) == [(0, b"x" * 100), (1, b"now")]
    journal.close()


WRITER = """
import sys
from pathlib import Path
from stages.results.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
while True:
    journal.append(journal.next_frame, bytes(1000))
    print(journal.next_frame, flush=True)
"""


def test_kill_loses_nothing_that_append_returned_for(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    promised = 0
    for line in process.stdout:
        promised = int(line)
        if promised == 200:
            os.kill(process.pid, signal.SIGKILL)
            break
    promised = int(([line for line in process.stdout if line.endswith("\n")] or [str(promised)])[-1])
    process.wait()
    journal = Journal.open(tmp_path)
    assert journal.next_frame >= promised
    journal.close()


def test_a_journal_of_another_version_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path, 5)
    (tmp_path / "journal.lock").write_bytes(b"poseward journal 2\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(JournalError, match="another version") as caught:
        Journal.open(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_death_while_signing_is_mended(tmp_path: Path) -> None:
    written(tmp_path, 5)
    lock = tmp_path / "journal.lock"
    signature = lock.read_bytes()
    for length in range(len(signature)):
        lock.write_bytes(signature[:length])
        assert check_prefix(tmp_path, 5) == 5
        assert lock.read_bytes() == signature


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JournalError, match="file"):
        Journal.open(tmp_path / "file")
    (tmp_path / "folder" / "journal.lock").mkdir(parents=True)
    with pytest.raises(JournalError, match="folder"):
        Journal.open(tmp_path / "folder")


def test_a_snapshot_of_an_earlier_frame_loses_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    for frame in range(10):
        journal.append(frame, payload(frame))
    journal.snapshot(4, b"four")
    with pytest.raises(JournalOrderError):
        journal.snapshot(11, b"eleven")
    for frame in range(10, 15):
        journal.append(frame, payload(frame))
    journal.close()
    journal = Journal.open(tmp_path)
    assert journal.latest_snapshot() == (4, b"four")
    assert list(journal.read(4)) == [(frame, payload(frame)) for frame in range(4, 15)]
    journal.close()


def test_damage_in_what_the_newest_snapshot_holds_costs_nothing(tmp_path: Path) -> None:
    written(tmp_path, 30, snapshots=(10, 20))
    oldest = min(tmp_path.glob("journal-0*"))
    oldest.write_bytes(b"rubbish" + oldest.read_bytes()[7:])
    assert check_prefix(tmp_path, 30) == 30


def test_a_hole_is_an_error_and_not_skipped(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    for frame in range(10):
        journal.append(frame, payload(frame))
    segment = tmp_path / "journal-000000000000"
    segment.write_bytes(segment.read_bytes()[:-40])
    with pytest.raises(JournalError, match=r"frame \d of the journal is gone"):
        list(journal.read(0))
    journal.close()


def test_a_missing_segment_is_not_read_across(tmp_path: Path) -> None:
    """The newest snapshot is damaged and the segment behind the older one is gone: nothing can be gone on from."""
    written(tmp_path, 30, snapshots=(10, 20))
    (tmp_path / "snapshot-000000000020").write_bytes(b"rubbish")
    (tmp_path / "journal-000000000010").unlink()
    assert check_prefix(tmp_path, 30) == 0


class Died(BaseException):
    """Stands for SIGKILL: nothing of the journal's own runs behind it but what `finally` would."""


def die_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Let the system calls by which a journal changes its folder end this process after ``steps`` of them."""
    calls = 0

    def deadly(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > steps:
                raise Died
            return real(*args, **options)

        return call

    for name in ("fsync", "open", "replace", "unlink", "close"):
        patch.setattr(os, name, deadly(getattr(os, name)))


def test_a_death_at_any_step_of_a_snapshot_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, died = -1, True
    while died:
        steps += 1
        folder = tmp_path / str(steps)
        written(folder, 30, snapshots=(10, 20))
        journal = Journal.open(folder)
        with monkeypatch.context() as patch:
            die_after(steps, patch)
            try:
                journal.snapshot(30, b"state 30")
                died = False
            except Died:
                pass
        os.close(journal._lock)  # as the kernel does
        reopened = Journal.open(folder)
        assert reopened.next_frame == 30
        assert reopened.latest_snapshot() in [(20, b"state 20"), (30, b"state 30")]
        assert not list(folder.glob("*.part"))
        reopened.close()
        assert check_prefix(folder, 40) == 30
    assert steps > 5


class AgainstAModel(RuleBasedStateMachine):
    """Appends, snapshots, deaths with torn tails and damaged snapshots in any order, against two plain lists."""

    @initialize()
    def begin(self) -> None:
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.journal = Journal.open(self.folder)
        self.frames: list[bytes] = []
        self.synced = 0

    @rule(payload=st.binary(max_size=40))
    def append(self, payload: bytes) -> None:
        self.journal.append(len(self.frames), payload)
        self.frames.append(payload)

    @rule(back=st.integers(0, 3))
    def snapshot(self, back: int) -> None:
        latest = self.journal.latest_snapshot()
        frame = max(len(self.frames) - back, latest[0] if latest else 0)
        self.journal.snapshot(frame, b"%d" % frame)

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal.open(self.folder)
        assert self.journal.next_frame == len(self.frames)

    @precondition(lambda self: any(self.folder.glob("journal-0*")))
    @rule(cut=st.integers(1, 60))
    def die_with_a_torn_tail(self, cut: int) -> None:
        self.journal.close()
        newest = max(self.folder.glob("journal-0*"))
        data = newest.read_bytes()
        newest.write_bytes(data[: max(0, len(data) - cut)])
        self.journal = Journal.open(self.folder)
        assert self.journal.next_frame <= len(self.frames)
        del self.frames[self.journal.next_frame :]

    @precondition(lambda self: any(self.folder.glob("snapshot-*")))
    @rule()
    def damage_the_newest_snapshot(self) -> None:
        self.journal.close()
        newest = max(self.folder.glob("snapshot-*"))
        newest.write_bytes(newest.read_bytes()[:-1])
        self.journal = Journal.open(self.folder)
        del self.frames[self.journal.next_frame :]

    @invariant()
    def what_is_left_can_be_gone_on_from(self) -> None:
        if not hasattr(self, "journal"):
            return
        assert self.journal.next_frame == len(self.frames)
        latest = self.journal.latest_snapshot()
        start, state = latest if latest else (0, b"0")
        assert state == b"%d" % start
        assert list(self.journal.read(start)) == list(enumerate(self.frames))[start:]
        assert len(list(self.folder.glob("snapshot-*"))) <= 2

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            self.temporary.cleanup()


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
