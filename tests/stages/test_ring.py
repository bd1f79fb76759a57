"""Frames stand in the ring until they are released, and nothing of it outlives its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.transport import ring as ring_module
from stages.transport.ring import Ring, RingError, StaleSlot
from tests.paths import ROOT


def image(seed: int, height: int = 6, width: int = 8) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def ring() -> Any:
    made = Ring.create(3, 8 * 6 * 3)
    yield made
    made.close()


def test_a_frame_is_seen_by_whoever_attaches(ring: Ring) -> None:
    generation = ring.write(1, 7, 42, 1.5, image(0))
    other = Ring.attach(ring.fd)
    assert (other.slots, other.slot_bytes) == (3, 144)
    np.testing.assert_array_equal(other.view(1, generation), image(0))
    (entry,) = other.entries()
    assert (entry.slot, entry.generation, entry.job, entry.frame, entry.time) == (1, generation, 7, 42, 1.5)
    assert (entry.width, entry.height) == (8, 6)
    other.close()


def test_views_are_read_only(ring: Ring) -> None:
    view = ring.view(0, ring.write(0, 1, 1, 0.0, image(0)))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0


def test_smaller_and_turned_frames_fit(ring: Ring) -> None:
    turned = image(3, 8, 6)[::-1, ::-1].transpose(1, 0, 2)[:4]
    generation = ring.write(2, 1, 1, 0.0, turned)
    np.testing.assert_array_equal(ring.view(2, generation), turned)


@pytest.mark.parametrize(
    "wrong", [image(0, 7, 8), image(0)[..., :2], image(0).astype(np.float32), image(0)[..., 0]]
)
def test_what_is_no_frame_or_too_large_is_refused(ring: Ring, wrong: Any) -> None:
    with pytest.raises(RingError):
        ring.write(0, 1, 1, 0.0, wrong)
    assert ring.entries() == []


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["write", "clear"])), max_size=30))
def test_only_the_latest_generation_of_a_slot_is_ever_valid(steps: list[tuple[int, str]]) -> None:
    made = Ring.create(3, 144)
    current: dict[int, tuple[int, int]] = {}
    given_out: set[tuple[int, int]] = set()
    for number, (slot, what) in enumerate(steps):
        if what == "write":
            current[slot] = (made.write(slot, 1, number, 0.0, image(number)), number)
            assert (slot, current[slot][0]) not in given_out, "a generation was given out twice"
            given_out.add((slot, current[slot][0]))
        else:
            made.clear(slot)
            current.pop(slot, None)
    for slot, generation in given_out:
        valid = slot in current and current[slot][0] == generation
        assert made.check(slot, generation) is valid
        if not valid:
            with pytest.raises(StaleSlot):
                made.view(slot, generation)
    assert {entry.slot: (entry.generation, entry.frame) for entry in made.entries()} == current
    made.close()


@pytest.mark.parametrize("slot", [-1, 3, 10**6])
def test_slots_that_do_not_exist(ring: Ring, slot: int) -> None:
    assert not ring.check(slot, 2)
    with pytest.raises(StaleSlot):
        ring.view(slot, 2)
    with pytest.raises(RingError):
        ring.write(slot, 1, 1, 0.0, image(0))


def test_empty_slots_have_no_generation_that_passes(ring: Ring) -> None:
    assert not any(ring.check(slot, generation) for slot in range(3) for generation in range(4))


def child(code: str, fd: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(fd)], cwd=ROOT, pass_fds=(fd,), stdout=subprocess.PIPE, text=True
    )


WRITER = """
import os, signal, sys
import numpy as np
from stages.transport.ring import Ring
ring = Ring.attach(int(sys.argv[1]))
whole = ring.write(0, 1, 10, 0.5, np.full((6, 8, 3), 9, np.uint8))
held = ring.view(0, whole)
ring.write(1, 1, 11, 0.6, np.full((6, 8, 3), 8, np.uint8))
print(whole, flush=True)
class Deadly:
    ndim, dtype, nbytes, shape = 3, np.dtype(np.uint8), 144, (6, 8, 3)
    def __array__(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
ring.write(1, 1, 12, 0.7, Deadly())
"""


def test_a_writer_killed_in_the_middle_leaves_whole_frames_only(ring: Ring) -> None:
    process = child(WRITER, ring.fd)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (entry,) = ring.entries()
    assert (entry.slot, entry.frame) == (0, 10)
    np.testing.assert_array_equal(ring.view(0, int(output)), np.full((6, 8, 3), 9, np.uint8))
    stale = 2  # what the first frame in slot 1 had
    generation = ring.write(1, 1, 12, 0.7, image(1))
    assert generation > stale
    assert not ring.check(1, stale)


def test_no_name_is_left_in_the_file_system(ring: Ring) -> None:
    assert os.readlink(f"/proc/self/fd/{ring.fd}").startswith("/memfd:")


def test_all_memory_is_reserved_at_once() -> None:
    made = Ring.create(4, 1_000_000)
    status = os.fstat(made.fd)
    assert status.st_blocks * 512 >= status.st_size >= 4_000_000
    made.close()


def test_too_much_memory_is_refused_with_the_settings_that_help() -> None:
    with pytest.raises(RingError, match=r"stages\.slots and stages\.ring_mb") as caught:
        Ring.create(1000, 10**12)
    assert "1000 slots" in str(caught.value)


def test_running_out_while_reserving_closes_the_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        seen.append(fd)
        raise OSError(28, "No space left on device")

    seen: list[int] = []
    monkeypatch.setattr(ring_module.os, "posix_fallocate", full)
    with pytest.raises(RingError, match="No space left"):
        Ring.create(2, 1000)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(seen[0])


def test_what_is_not_a_ring_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"x" * 10_000):
        path.write_bytes(content)
        with path.open("r+b") as file, pytest.raises(RingError):
            Ring.attach(file.fileno())
    closed = os.open(path, os.O_RDONLY)
    os.close(closed)
    with pytest.raises(RingError):
        Ring.attach(closed)


def test_a_view_outlives_the_ring() -> None:
    made = Ring.create(1, 144)
    view = made.view(0, made.write(0, 1, 1, 0.0, image(5)))
    made.close()
    np.testing.assert_array_equal(view, image(5))
