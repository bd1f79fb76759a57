"""The flight recorder: whatever moment a death comes at, there is a whole entry to read, and the right one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.events import ExitKind
from supervisor.exits import classify
from supervisor.recorder import PAGE, FlightRecorder


@pytest.fixture
def recorder() -> Iterator[FlightRecorder]:
    found = FlightRecorder.create()
    yield found
    found.close()


ACTIVITIES = st.dictionaries(st.text(max_size=20), st.integers() | st.text(max_size=50), max_size=5)


@given(ACTIVITIES, ACTIVITIES, st.data())
def test_a_death_in_the_middle_of_writing_leaves_the_entry_before(
    first: dict[str, Any], second: dict[str, Any], data: st.DataObject
) -> None:
    recorder = FlightRecorder.create()
    try:
        recorder.write(first)
        before = os.pread(recorder.fd, PAGE, 0)
        recorder.write(second)
        after = os.pread(recorder.fd, PAGE, 0)
        changed = [at for at in range(PAGE) if before[at] != after[at]]
        # The kernel may show the other side any part of what was being written.
        torn = bytearray(before)
        for at in data.draw(st.sets(st.sampled_from(changed))):
            torn[at] = after[at]
        os.pwrite(recorder.fd, torn, 0)
        assert recorder.read() in (first, second)
        os.pwrite(recorder.fd, before, 0)
        assert recorder.read() == first
    finally:
        recorder.close()


def test_a_new_life_is_not_blamed_for_what_the_old_one_did(recorder: FlightRecorder) -> None:
    child = FlightRecorder(os.dup(recorder.fd))
    for frame in range(7):
        child.write({"frame": frame})
    child.close()
    recorder.erase()
    assert recorder.read() is None
    successor = FlightRecorder(os.dup(recorder.fd))
    successor.write({"frame": 100})
    successor.close()
    assert recorder.read() == {"frame": 100}


def test_idle_means_nothing_to_blame(recorder: FlightRecorder) -> None:
    recorder.write({"frame": 1})
    recorder.clear()
    assert recorder.read() is None


def test_a_large_batch_is_kept_whole(recorder: FlightRecorder) -> None:
    work = [["a-job-with-a-long-name-0123456789abcdef", frame] for frame in range(256)]
    recorder.write({"work": work})
    assert recorder.read() == {"work": work}


@given(st.integers(0, 3 * PAGE), st.integers(0, 3 * PAGE))
def test_what_is_too_long_loses_only_what_does_not_fit(long_key: int, long_value: int) -> None:
    recorder = FlightRecorder.create()
    try:
        recorder.write({"k" * long_key: "v" * long_value, "frame": 5})
        found = recorder.read()
        assert found is not None
        assert found["frame"] == 5
    finally:
        recorder.close()


def test_what_json_does_not_know_is_no_reason_to_die(recorder: FlightRecorder) -> None:
    recorder.write({"value": object})
    assert "object" in str(recorder.read())


@given(st.binary(max_size=200))
def test_a_torn_report_of_an_exception_is_no_report(report: bytes) -> None:
    found = classify(
        pid=1, status=70 << 8, phase="working", activity=None, report=report, stack_dump="", stderr_tail=(),
        lifetime=1.0, intent=None, kernel_oom=False,
    )  # fmt: skip
    assert found.kind is ExitKind.EXCEPTION
    assert found.reason
