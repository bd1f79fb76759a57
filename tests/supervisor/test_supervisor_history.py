"""The running record of memory: bounded, and true over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import events as ev
from supervisor.history import MemoryHistory
from supervisor.memory import DeviceMemory
from supervisor.spec import MemoryLimits
from tests.supervisor.test_supervisor import Bench, bench

__all__ = ["bench"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    turns=st.lists(st.floats(0.01, 30.0), max_size=200),
    every=st.floats(0.5, 5.0),
    span=st.floats(5.0, 60.0),
)
def test_it_keeps_what_is_young_enough_and_no_more(turns: list[float], every: float, span: float) -> None:
    clock = Clock()
    history = MemoryHistory(clock, every, span)
    taken: list[float] = []
    for turn in turns:
        if history.due():
            assert not history.due()
            history.add("a", 5, 7)
            taken.append(clock.now)
        clock.now += turn
    data = history.data()
    ages = [data["now"] - at for at, *_ in data["processes"].get("a", {"samples": []})["samples"]]
    young = [clock.now - at for at in taken if clock.now - at <= span]
    assert ages == young
    assert len(young) <= span / every + 2


def test_the_rate_is_kept_by_turns_that_come_a_little_late() -> None:
    clock = Clock()
    history = MemoryHistory(clock, every=2.0, span=600.0)
    count = 0
    for _ in range(400):  # 100 s in turns of a quarter of a second, as heartbeats make them
        count += history.due()
        clock.now += 0.26
    assert count == pytest.approx(104 / 2, abs=2)


def test_peaks_outlive_samples_and_lives() -> None:
    clock = Clock()
    history = MemoryHistory(clock, every=1.0, span=10.0)
    history.add("mesh", rss=100, peak_rss=900, device_used=50, device_free=30)
    clock.now += 1000
    history.add("mesh", rss=0, peak_rss=0, device_used=None, device_free=80)
    clock.now += 1
    history.add("mesh", rss=200, peak_rss=200, device_used=40, device_free=35)
    record = history.data()["processes"]["mesh"]
    assert record == {
        "samples": [(2000.0, 0, None, 80), (2001.0, 200, 40, 35)],
        "peak_rss": 900,
        "peak_device_used": 50,
        "least_device_free": 30,
    }


def test_a_process_without_a_gpu_has_no_figures_of_one() -> None:
    history = MemoryHistory(Clock())
    history.add("decode", 100, 100)
    record = history.data()["processes"]["decode"]
    assert record["samples"] == [(1000.0, 100, None, None)]
    assert record["peak_device_used"] is record["least_device_free"] is None


@pytest.mark.parametrize(("every", "span"), [(0.0, 1.0), (2.0, 1.0)])
def test_a_record_that_would_hold_nothing_is_refused(every: float, span: float) -> None:
    with pytest.raises(ValueError, match="samples every"):
        MemoryHistory(Clock(), every, span)


def test_the_supervisor_remembers_what_its_processes_held(bench: Bench) -> None:
    bench.add("echo", name="worker")
    bench.supervisor.start()
    bench.ready()

    def held() -> bool:
        record = bench.supervisor.history()["processes"].get("worker")
        return record is not None and record["samples"][-1][1] > 0

    bench.until(held, "sample")
    record = bench.supervisor.history()["processes"]["worker"]
    assert 0 < record["samples"][-1][1] <= record["peak_rss"]
    assert record["samples"][-1][2:] == (None, None)


def test_figures_of_the_gpu_come_from_the_probe() -> None:
    class Probe:
        pid = 0

        def devices(self) -> list[DeviceMemory]:
            return [DeviceMemory(0, "GPU", 8 << 30, 3 << 30, {self.pid: 1 << 30})]

    probe = Probe()
    bench = Bench(Path("/tmp"), probe=probe)
    try:
        bench.add("echo", memory=MemoryLimits(device=0))
        bench.supervisor.start()
        bench.ready()
        probe.pid = bench.of(ev.Started)[0].pid

        def seen() -> bool:
            record = bench.supervisor.history()["processes"].get("worker")
            return record is not None and record["samples"][-1][2:] == (1 << 30, 3 << 30)

        bench.until(seen, "sample of the GPU")
        assert bench.supervisor.history()["processes"]["worker"]["peak_device_used"] == 1 << 30
    finally:
        bench.supervisor.stop(1.0)
