"""Uploads: chunks, resuming, damage, limits."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.api.messages import ApiError
from daemon.api.uploads import ABANDONED_AFTER, CHUNK, Uploads

DATA = bytes(range(256)) * 40


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def name_of(refusal: pytest.ExceptionInfo[ApiError]) -> str:
    return refusal.value.name


def test_in_pieces_across_restarts(tmp_path: Path) -> None:
    state = Uploads(tmp_path / "u", 1 << 20).begin("a.mp4", len(DATA), digest(DATA))
    while state.offset < len(DATA):
        uploads = Uploads(tmp_path / "u", 1 << 20)  # another daemon for every chunk
        assert uploads.begin("a.mp4", len(DATA), digest(DATA)).offset == state.offset
        state = uploads.add(state.id, state.offset, DATA[state.offset : state.offset + 1000])
    with pytest.raises(ApiError) as refusal:
        uploads.used(uploads.state(state.id))
    assert name_of(refusal) == "not-ready"
    done = uploads.finish(state.id)
    assert done.complete and uploads.used(done).read_bytes() == DATA
    assert uploads.begin("a.mp4", len(DATA), digest(DATA)).complete


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=30))
def test_chunks_that_begin_elsewhere_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[int, int]]
) -> None:
    uploads = Uploads(tmp_path_factory.mktemp("u"), 1 << 20)
    data = DATA[:300]
    state = uploads.begin("a", 300, digest(data))
    for offset, size in tries:
        before = state.offset
        state = uploads.add(state.id, offset, data[offset : offset + size])
        assert state.offset == (before + len(data[offset : offset + size]) if offset == before else before)
    assert state.path.read_bytes() == data[: state.offset]


def test_damaged_bytes_begin_again(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1 << 20)
    state = uploads.begin("a", 4, digest(b"good"))
    uploads.add(state.id, 0, b"evil")
    with pytest.raises(ApiError) as refusal:
        uploads.finish(state.id)
    assert name_of(refusal) == "upload-damaged" and uploads.state(state.id).offset == 0
    uploads.add(state.id, 0, b"good")
    assert uploads.finish(state.id).complete


@pytest.mark.parametrize(
    ("size", "sha256", "name"),
    [(1 << 21, "0" * 64, "too-large"), (5, "G" * 64, "bad-request"), (5, "A" * 64, "bad-request")],
)
def test_refusals(tmp_path: Path, size: int, sha256: str, name: str) -> None:
    with pytest.raises(ApiError) as refusal:
        Uploads(tmp_path, 1 << 20).begin("a", size, sha256)
    assert name_of(refusal) == name


def test_more_than_announced_and_chunks_too_large(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1 << 30)
    state = uploads.begin("a", 5, digest(b"12345"))
    for chunk in (b"123456", bytes(CHUNK + 1)):
        with pytest.raises(ApiError) as refusal:
            uploads.add(state.id, 0, chunk)
        assert name_of(refusal) == "too-large"


@pytest.mark.parametrize("upload", ["", "..", "../../etc", "x" * 32, "0" * 32, "a/b", "\0"])
def test_ids_of_strangers(tmp_path: Path, upload: str) -> None:
    with pytest.raises(ApiError) as refusal:
        Uploads(tmp_path, 10).state(upload)
    assert name_of(refusal) == "no-such-upload"


def test_abandoned_uploads_go_and_used_ones_stay(tmp_path: Path) -> None:
    now = [0.0]
    uploads = Uploads(tmp_path, 1000, clock=lambda: now[0])
    old, used = uploads.begin("a", 1, digest(b"a")), uploads.begin("b", 1, digest(b"b"))
    now[0] = 1e12
    uploads.sweep(lambda source: source == str(used.path))
    assert not old.path.exists() and used.path.exists()


def test_what_a_client_has_just_asked_for_is_not_abandoned(tmp_path: Path) -> None:
    """Complete since last week, it is about to be submitted now."""
    uploads = Uploads(tmp_path / "uploads", 1000)
    state = uploads.begin("a.mp4", 3, hashlib.sha256(b"abc").hexdigest())
    uploads.add(state.id, 0, b"abc")
    uploads.finish(state.id)
    long_ago = time.time() - ABANDONED_AFTER - 60
    os.utime(state.path, (long_ago, long_ago))
    assert uploads.begin("a.mp4", 3, hashlib.sha256(b"abc").hexdigest()).complete
    uploads.sweep(lambda _: False)
    assert state.path.is_file()


def test_what_is_just_being_begun_is_not_abandoned(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", 1000)
    begun = tmp_path / "uploads" / ("0" * 32)  # as another thread leaves it between two steps of `begin`
    begun.mkdir()
    uploads.sweep(lambda _: False)
    assert begun.is_dir()
    long_ago = time.time() - ABANDONED_AFTER - 60
    os.utime(begun, (long_ago, long_ago))
    uploads.sweep(lambda _: False)
    assert not begun.exists()


def test_a_folder_that_somebody_has_removed_is_no_defect(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", 1000)
    (tmp_path / "uploads").rmdir()
    uploads.sweep(lambda _: False)
    assert uploads.begin("a.mp4", 3, "0" * 64).offset == 0
