"""The drop folder's names: anything a file system takes comes through, and nothing is overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.drop.names import (
    ERROR,
    NAME_MAX,
    RESULTS,
    fitting,
    free_name,
    is_ignored,
    is_readable,
    is_sidecar,
    readable,
)
from daemon.jobs.store import State
from tests.daemon.test_drop import Drop

ODD = [
    b"-rf.mp4", b"--help", b" ", b"a b.mp4", b"new\nline.mp4", b"tab\t.mp4", b"\xff\xfe.mp4",
    "\u00fc\u00df\u4e2d\U0001f3c2.mp4".encode(), b"done.mp4", b"DONE", b"done.results.txt",
    b"clip.mp4.error.txt", b"*.mp4", b"$(x).mp4", b"a\\b.mp4", b"\x1b[31m.mp4", b"x" * 255,
    b"x" * 251 + b".mp4", b"\xff" * 255, "\u00fc".encode() * 127, "\U0001f3c2".encode() * 62 + b".mp4",
]  # fmt: skip
names = st.sampled_from(ODD) | st.binary(min_size=1, max_size=NAME_MAX)


@given(raw=names, state=st.sampled_from([State.DONE, State.FAILED, State.CANCELLED]), sidecar=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_name_comes_through_twice(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, state: State, sidecar: bool
) -> None:
    name = os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))
    if name in (".", ".."):
        return
    sidecar = sidecar and len(os.fsencode(name)) <= NAME_MAX - 5
    drop = Drop(tmp_path_factory.mktemp("names"))
    try:
        for content in (b"first", b"second"):
            drop.put(name, content)
            if sidecar:
                drop.put(name + ".json", b'{"priority": 9}')
            drop.settle()
        if is_ignored(name) or is_sidecar(name):
            assert not drop.jobs() and name in os.listdir(drop.inbox), "left alone"
            return
        jobs = drop.jobs()
        assert [job.name for job in jobs] == [readable(name)] * 2
        assert all(os.fsencode(job.source).decode() == job.source for job in jobs), "for those who want UTF-8"
        assert [Path(job.source).read_bytes() for job in jobs] == [b"second", b"first"]
        assert [job.priority for job in jobs] == [9 * sidecar] * 2
        for job in jobs:
            drop.end(job, state, error="x", message="y")
        where = drop.inbox / ("done" if state is State.DONE else "failed")
        found = [path.read_bytes() for path in where.iterdir()]
        there = os.listdir(where)
        assert (name in there) == (len(os.fsencode(name)) <= NAME_MAX - len(RESULTS)), "its own name again"
        assert found.count(b"first") == found.count(b"second") == 1
        assert len(found) == (6 if sidecar else 4), "each with its notice"
        said = b"".join(content for content in found if b"job: " in content).decode()
        assert all(said.count(f"job: {job.id}") == 1 for job in jobs)
        assert not drop.claimed() and not drop.left() and not drop.said
    finally:
        drop.folder.stop()
        drop.store.close()


@given(st.binary(min_size=1, max_size=NAME_MAX), st.integers(1, 100_000), st.integers(0, 40))
def test_names_are_shortened_to_fit(raw: bytes, number: int, room: int) -> None:
    found = os.fsencode(fitting(os.fsdecode(raw), number, room))
    assert len(found) <= NAME_MAX - room
    assert number == 1 or b" (%d)" % number in found
    if number == 1 and len(raw) <= NAME_MAX - room:
        assert found == raw


@given(st.binary(min_size=1, max_size=NAME_MAX))
def test_readable_names_are_of_the_same_kind(raw: bytes) -> None:
    name = os.fsdecode(raw)
    found = readable(name)
    assert is_readable(found) and len(found.encode()) <= len(raw)
    assert is_ignored(found) == is_ignored(name) and is_sidecar(found) == is_sidecar(name)
    assert found == name or not is_readable(name)


@given(st.text(min_size=64, max_size=NAME_MAX), st.integers(0, 40))
def test_characters_are_not_cut_in_two(name: str, room: int) -> None:
    if len(name.encode("utf-8", "replace")) <= NAME_MAX and "\0" not in name:
        fitting(name, 2, room).encode()  # surrogates would be what is left of a character


@pytest.mark.parametrize("name", ["x" * 255, "x" * 250 + ".mp4", "\u00fc" * 127, "a." + "e" * 200])
def test_long_names_leave_room(tmp_path: Path, name: str) -> None:
    for _ in range(3):
        found = free_name(tmp_path, name, (ERROR, RESULTS))
        assert len(os.fsencode(found + RESULTS)) <= NAME_MAX
        (tmp_path / found).touch()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_notice_takes_no_other_files_name(tmp_path: Path) -> None:
    drop = Drop(tmp_path)
    for name in ("clip.error.txt", "clip"):
        drop.put(name, b"content of " + name.encode())
    drop.settle()
    for job in drop.jobs():
        drop.end(job, State.FAILED, error="x")
    contents = [path.read_bytes() for path in (drop.inbox / "failed").iterdir()]
    assert len(contents) == 4 and {b"content of clip", b"content of clip.error.txt"} <= set(contents)
    drop.folder.stop()
    drop.store.close()
