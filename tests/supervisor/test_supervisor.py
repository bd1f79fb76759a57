"""The supervisor against real processes: kills, hangs, crashes, exhaustion; nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor import events as ev
from supervisor.events import ExitKind
from supervisor.memory import DeviceMemory
from supervisor.runtime import make_runtime
from supervisor.spec import Deadlines, MemoryLimits, ProcessSpec, RestartPolicy
from supervisor.supervisor import Supervisor
from tests.paths import ROOT

PATIENCE = 60.0
QUICK = RestartPolicy(base_delay=0.01, max_delay=0.05, max_restarts=100)
SHORT = Deadlines(working=1.0, loading=1.0, heartbeat=1.5, grace=0.5)


class Bench:
    """A supervisor with everything it has said."""

    def __init__(self, base: Path, **arguments: Any) -> None:
        self.events: list[ev.Event] = []
        self.runtime = make_runtime(base)
        self.supervisor = Supervisor(self.runtime, self.events.append, **arguments)

    def add(self, entry: str, name: str = "worker", preload: bool = False, **changes: Any) -> None:
        changes.setdefault("restart", QUICK)
        changes.setdefault("deadlines", SHORT)
        modules = ("tests.supervisor.supervisor_children",) if preload else ()
        spec = ProcessSpec(name, f"tests.supervisor.supervisor_children:{entry}", preload=modules, **changes)
        self.supervisor.add(spec)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < deadline, f"no {what}; said: {self.events}"
            self.supervisor.step(0.05)
        return found

    def of(self, kind: type[ev.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def ready(self, times: int = 1) -> None:
        self.until(lambda: len(self.of(ev.Ready)) >= times, f"{times} times ready")

    def death(self, number: int = 1) -> ev.ExitReport:
        self.until(lambda: len(self.of(ev.Died)) >= number, f"death number {number}")
        report: ev.ExitReport = self.of(ev.Died)[number - 1].exit
        return report

    def do(self, what: str) -> None:
        assert self.supervisor.send("worker", "do", {"what": what})


@pytest.fixture
def bench() -> Iterator[Bench]:
    # A short folder of its own: pytest's are too long for a Unix socket.
    found = Bench(Path("/tmp"))
    yield found
    found.supervisor.stop(2.0)
    assert not found.runtime.exists()


@pytest.mark.parametrize("preload", [False, True], ids=["exec", "fork"])
def test_a_child_hears_and_answers(bench: Bench, preload: bool) -> None:
    bench.add("echo", preload=preload)
    bench.supervisor.start()
    bench.ready()
    assert bench.of(ev.Ready)[0].info == {"answer": 42}
    assert [e.phase for e in bench.of(ev.PhaseChanged)] == ["importing", "loading"]
    assert bench.supervisor.send("worker", "question", {"n": 1})
    bench.until(lambda: bench.of(ev.Message), "answer")
    assert bench.of(ev.Message)[0] == ev.Message("worker", "question", {"n": 1})


@pytest.mark.parametrize("preload", [False, True], ids=["exec", "fork"])
@pytest.mark.parametrize(
    ("what", "kind", "reason"),
    [
        ("raise", ExitKind.EXCEPTION, "ValueError: on purpose"),
        ("oom", ExitKind.DEVICE_OOM, "CUDA out of memory"),
        ("kill", ExitKind.SIGNAL, "SIGKILL"),
        ("segv", ExitKind.SIGNAL, "SIGSEGV"),
        ("exit", ExitKind.EXCEPTION, "exit status 3"),
        ("hang", ExitKind.HUNG, "no progress"),
        ("hang-gil", ExitKind.HUNG, "no heartbeat"),
    ],
)
def test_every_death_has_its_name_and_the_child_comes_back(
    bench: Bench, what: str, kind: ExitKind, reason: str, preload: bool
) -> None:
    bench.add("echo", preload=preload)
    bench.supervisor.start()
    bench.ready()
    bench.do(what)
    report = bench.death()
    assert report.kind is kind
    assert reason in report.reason
    assert report.activity == {"message": "do", "what": what}
    bench.ready(times=2)


def test_a_hung_child_leaves_its_stack(bench: Bench) -> None:
    bench.add("echo")
    bench.supervisor.start()
    bench.ready()
    bench.do("hang")
    report = bench.death()
    assert report.stack_dump is not None
    assert "misbehave" in report.stack_dump


def test_a_crash_leaves_its_last_words(bench: Bench) -> None:
    bench.add("echo")
    bench.supervisor.start()
    bench.ready()
    bench.do("segv")
    assert any("Segmentation fault" in line for line in bench.death().stderr_tail)
    bench.ready(2)
    bench.do("raise")
    second = bench.death(2)
    assert second.traceback is not None
    assert "misbehave" in second.traceback


def test_memory_exhaustion_under_a_limit_is_host_oom(bench: Bench) -> None:
    bench.add("echo", memory=MemoryLimits(address_space=1 << 30), deadlines=Deadlines(working=PATIENCE))
    bench.supervisor.start()
    bench.ready()
    bench.do("memory")
    assert bench.death().kind is ExitKind.HOST_OOM


def test_grandchildren_die_with_their_parent(bench: Bench) -> None:
    bench.add("echo")
    bench.supervisor.start()
    bench.ready()
    bench.do("grandchild")
    bench.until(lambda: bench.of(ev.Message), "answer")
    (grandchild,) = psutil.Process(bench.of(ev.Started)[0].pid).children()
    bench.supervisor.kill("worker")
    bench.death()
    grandchild.wait(timeout=PATIENCE)


@pytest.mark.parametrize("entry", ["unconfigured", "lacks_package"])
def test_a_configuration_error_is_not_restarted_in_a_loop(bench: Bench, entry: str) -> None:
    bench.add(entry)
    bench.supervisor.start()
    bench.until(lambda: bench.of(ev.Failed), "failure")
    assert bench.of(ev.Failed)[0].exit.kind is ExitKind.CONFIGURATION
    for _ in range(10):
        bench.supervisor.step(0.02)
    assert len(bench.of(ev.Started)) == 1
    bench.supervisor.reset("worker")
    bench.until(lambda: len(bench.of(ev.Failed)) == 2, "second failure, after a reset")


@pytest.mark.parametrize("preload", [False, True], ids=["exec", "fork"])
def test_a_missing_interpreter_names_the_setting(bench: Bench, preload: bool) -> None:
    bench.add("echo", preload=preload, python="/nowhere/bin/python")
    bench.supervisor.start()
    bench.until(lambda: bench.of(ev.Failed), "failure")
    reason = bench.of(ev.Failed)[0].exit.reason
    assert "/nowhere/bin/python" in reason
    assert "stages.<name>.python" in reason


def test_loading_has_no_total_deadline_only_one_on_progress(bench: Bench) -> None:
    bench.add("slow_but_moving", "slow", config={"steps": 8, "seconds": 0.4})
    bench.add("stuck_loading", "stuck")
    bench.supervisor.start()
    bench.until(lambda: [e for e in bench.of(ev.Ready) if e.name == "slow"], "the slow one ready")
    assert not [e for e in bench.of(ev.Died) if e.name == "slow"]
    bench.until(lambda: [e for e in bench.of(ev.Died) if e.name == "stuck"], "the stuck one's end")
    assert "deadlines.loading" in bench.of(ev.Died)[0].exit.reason


def test_a_loop_of_deaths_opens_the_circuit_and_reset_closes_it(bench: Bench) -> None:
    bench.add("dies_at_once", restart=RestartPolicy(base_delay=0.01, max_restarts=3, cooldown=1000))
    bench.supervisor.start()
    bench.until(lambda: bench.of(ev.CircuitOpened), "an open circuit")
    assert len(bench.of(ev.Died)) == 4
    assert bench.supervisor.states()["worker"].circuit_open
    bench.supervisor.reset("worker")
    bench.until(lambda: len(bench.of(ev.Died)) == 5, "a fifth death")


def test_a_child_over_its_soft_limit_is_recycled(bench: Bench) -> None:
    bench.add("grows", memory=MemoryLimits(soft_rss=120 << 20))
    bench.supervisor.start()
    report = bench.death()
    assert report.kind is ExitKind.RECYCLED
    assert "soft limit" in report.reason
    bench.ready(2)
    assert bench.supervisor.states()["worker"].restarts == 0


def test_a_planned_restart_is_polite_and_not_counted(bench: Bench) -> None:
    bench.add("echo")
    bench.supervisor.start()
    bench.ready()
    bench.supervisor.restart("worker", "new code")
    assert bench.death().kind is ExitKind.RECYCLED
    bench.ready(2)
    assert bench.supervisor.states()["worker"].restarts == 0


def test_a_killed_fork_server_is_replaced_with_its_children(bench: Bench) -> None:
    bench.add("echo", "a", preload=True)
    bench.add("echo", "b", preload=True)
    bench.supervisor.start()
    bench.ready(2)
    server = psutil.Process(bench.of(ev.Started)[0].pid).parent()
    assert server is not None
    server.kill()
    bench.until(lambda: len(bench.of(ev.Died)) == 2, "two deaths")
    bench.ready(4)


class FullDevice:
    """A GPU that somebody else has filled, until told otherwise."""

    def __init__(self, per_process: bool) -> None:
        self.free = 1 << 30
        self.holders = {os.getpid(): 7 << 30} if per_process else None

    def devices(self) -> list[DeviceMemory]:
        return [DeviceMemory(0, "fake", 8 << 30, self.free, self.holders)]


@pytest.mark.parametrize("per_process", [True, False], ids=["native", "wsl"])
def test_a_gpu_process_waits_for_memory_and_says_who_holds_it(per_process: bool) -> None:
    device = FullDevice(per_process)
    bench = Bench(Path("/tmp"), probe=device)
    try:
        bench.add("echo", memory=MemoryLimits(device=0, device_need=4 << 30))
        bench.supervisor.start()
        waiting = bench.until(lambda: bench.of(ev.WaitingForMemory), "a wait")[0]
        assert (waiting.need, waiting.free) == (4 << 30, 1 << 30)
        assert (str(os.getpid()) if per_process else "WSL") in waiting.holders[0]
        assert not bench.of(ev.Started)
        device.free = 6 << 30
        bench.ready()
    finally:
        bench.supervisor.stop(1.0)


def test_the_supervisor_forgives_when_it_was_itself_stopped(bench: Bench) -> None:
    bench.add("echo")
    bench.supervisor.start()
    bench.ready()
    time.sleep(2 * SHORT.heartbeat)  # not a wait for anything: this is the supervisor being absent
    for _ in range(20):
        bench.supervisor.step(0.05)
    assert not bench.of(ev.Died)


ABANDONED = """
import json, sys, time
from pathlib import Path
from supervisor import events as ev
from supervisor.runtime import make_runtime
from supervisor.spec import ProcessSpec
from supervisor.supervisor import Supervisor
events = []
runtime = make_runtime(Path("/tmp"))
supervisor = Supervisor(runtime, events.append)
for name, preload in (("a", ()), ("b", ("tests.supervisor.supervisor_children",))):
    supervisor.add(ProcessSpec(name, "tests.supervisor.supervisor_children:echo", preload=preload))
supervisor.start()
while sum(isinstance(event, ev.Ready) for event in events) < 2:
    supervisor.step(0.1)
if sys.argv[1] != "none":
    supervisor.send(sys.argv[1], "do", {"what": "hang-gil"})
    time.sleep(0.5)
pids = [event.pid for event in events if isinstance(event, ev.Started)]
print(json.dumps([str(runtime), pids]), flush=True)
while True:
    supervisor.step(1.0)
"""


@pytest.mark.parametrize("hung", ["none", "a", "b"])
def test_a_supervisor_killed_with_sigkill_leaves_nothing(hung: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", ABANDONED, hung], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    runtime, pids = json.loads(process.stdout.readline())
    below = psutil.Process(process.pid).children(recursive=True)
    assert {child.pid for child in below} >= set(pids)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while Path(runtime).exists() or any(_alive(child) for child in below):
        assert time.monotonic() < deadline, [child for child in below if _alive(child)]
        time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stopped_fork_server_cannot_hold_up_the_end(bench: Bench) -> None:
    """It neither forks nor reports: its children's deaths must be noticed all the same."""
    bench.add("echo", preload=True)
    bench.supervisor.start()
    bench.ready()
    server = psutil.Process(bench.of(ev.Started)[0].pid).parent()
    assert server is not None
    server.suspend()
    bench.supervisor.kill("worker")
    bench.death()
    bench.ready(2)
