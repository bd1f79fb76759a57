"""The supervisor where its own process lacks something: descriptors, its folder, a kernel that lets go of a child."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from supervisor import events as ev
from tests.test_supervisor import Bench, bench

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
    bench.add("echo", preload=preload)
    bench.supervisor.start()
    bench.ready()
    bench.do("kill")
    assert "SIGKILL" in bench.death().reason
    bench.ready(2)
    assert len(psutil.Process().children(recursive=True)) == (3 if preload else 2)  # and the janitor


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
