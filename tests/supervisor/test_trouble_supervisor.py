"""The supervisor where its own process lacks something: descriptors, its folder, a kernel that lets go of a child."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import supervisor.supervisor
from supervisor import events as ev
from supervisor.events import ExitKind
from supervisor.runtime import sweep
from supervisor.spec import Deadlines
from tests.supervisor.test_supervisor import Bench, bench

__all__ = ["bench"]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """All but so many of this process's descriptors are taken."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("preload", [False, True], ids=["exec", "fork"])
def test_without_descriptors_a_death_is_mended_as_soon_as_there_are_some(bench: Bench, preload: bool) -> None:
    bench.add("echo", preload=preload)
    bench.supervisor.start()
    bench.ready()
    for left in range(14):
        before = open_descriptors()
        lives = len(bench.of(ev.Ready))
        pid = bench.supervisor.states()["worker"].pid
        assert pid is not None
        with few_descriptors(left):
            os.kill(pid, signal.SIGKILL)
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                bench.supervisor.step(0.02)
        bench.ready(lives + 1)
        bench.do("nothing")
        bench.until(lambda: bench.of(ev.Message), "answer")
        bench.events[:] = [event for event in bench.events if not isinstance(event, ev.Message)]
        time.sleep(0.05)
        bench.supervisor.step(0)
        assert open_descriptors() <= before + 2, f"with {left} left"


@pytest.mark.parametrize("preload", [False, True], ids=["exec", "fork"])
def test_a_process_without_a_descriptor_of_its_own_is_watched_too(
    bench: Bench, preload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    before = set(psutil.Process().children(recursive=True))
    bench.add("echo", preload=preload)
    bench.supervisor.start()
    bench.ready()
    bench.do("kill")
    assert "SIGKILL" in bench.death().reason
    bench.ready(2)
    ours = set(psutil.Process().children(recursive=True)) - before
    assert len(ours) == (2 if preload else 1)


def test_what_was_opened_for_a_start_that_failed_is_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.add("echo")
    bench.supervisor.start()
    bench.ready()
    before = open_descriptors()
    for count in range(2):
        made = 0

        def some(name: str, made_of: object = os.memfd_create, most: int = count) -> int:
            nonlocal made
            made += 1
            if made > most:
                raise OSError(errno.EMFILE, "Too many open files")
            return made_of(name)  # type: ignore[operator,no-any-return]

        deaths = len(bench.of(ev.Died))
        with monkeypatch.context() as patched:
            patched.setattr(os, "memfd_create", some)
            bench.supervisor.kill("worker")
            bench.until(lambda seen=deaths: len(bench.of(ev.Died)) > seen + 1, "failed start")
        assert "Too many open files" in bench.of(ev.Died)[-1].exit.reason
        lives = len(bench.of(ev.Ready))
        bench.ready(lives + 1)
        assert open_descriptors() <= before + 1


def test_a_process_that_not_even_sigkill_ends_is_named_and_cannot_hold_up_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor.supervisor, "STUCK_AFTER", 0.5)
    bench.add("deaf", deadlines=Deadlines(working=1.0, heartbeat=1.5, grace=0.2))
    bench.add("echo", name="other")
    bench.supervisor.start()
    bench.ready(2)
    pid = bench.supervisor.states()["worker"].pid
    assert pid is not None
    kill, killpg = os.kill, os.killpg

    def unkillable(how: Any) -> Any:  # as in an uninterruptible wait
        return lambda number, which: None if (number, which) == (pid, signal.SIGKILL) else how(number, which)

    monkeypatch.setattr(os, "kill", unkillable(kill))
    monkeypatch.setattr(os, "killpg", unkillable(killpg))
    began = time.monotonic()
    bench.supervisor.stop(0.2)
    assert time.monotonic() - began < 20.0
    lines = [event.line for event in bench.of(ev.Output)]
    assert [line for line in lines if f"process {pid}: killed, but the kernel does not let go" in line], lines
    assert [event.name for event in bench.of(ev.Died)] == ["other"]
    monkeypatch.undo()
    with contextlib.suppress(ProcessLookupError):  # the lifeline may have ended it
        os.killpg(pid, signal.SIGKILL)


def test_a_folder_of_sockets_that_somebody_removed_is_made_again(bench: Bench) -> None:
    bench.add("echo")
    bench.add("echo", name="other", preload=True)
    bench.supervisor.start()
    bench.ready(2)
    shutil.rmtree(bench.runtime)
    bench.do("kill")
    bench.ready(4)  # the other one too: what it listens on is gone
    assert ExitKind.RECYCLED in [event.exit.kind for event in bench.of(ev.Died) if event.name == "other"]
    for name in ("worker", "other"):
        assert bench.supervisor.send(name, "question", {})
    bench.until(lambda: len(bench.of(ev.Message)) == 2, "answers")
    assert bench.runtime.stat().st_mode & 0o777 == 0o700
    assert sweep(bench.runtime.parent) == []  # it is locked again


def test_where_it_cannot_be_made_again_that_is_why_nothing_starts() -> None:
    base = Path(tempfile.mkdtemp(prefix="pw", dir="/tmp"))
    bench = Bench(base)
    bench.add("echo")
    bench.supervisor.start()
    bench.ready()
    shutil.rmtree(base)
    bench.do("kill")
    assert "has been removed and cannot be made again" in bench.death(2).reason
    bench.supervisor.stop(1.0)
