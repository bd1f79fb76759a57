"""The journal: whatever is cut off or damaged, what is left is a prefix of what was written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.journal import Journal, JournalError, JournalFullError, JournalOrderError


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
from stages.journal import Journal
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
