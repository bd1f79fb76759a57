"""The real daemon's side of the notify protocol: the test's socket plays systemd."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.daemon.daemons import PATIENCE, Daemon
from tests.stages.harness import write_squares

WATCHDOG = 2.0
"""Seconds of WatchdogSec=; the daemon pings twice as often."""

STALLING = """
import os, time, daemon.serve as serve
turn = serve.Service._turn
def stalling(self):
    if os.path.exists(os.environ["POSEWARD_TEST_STALL"]):
        self._notifier.status("stalled")
        while os.path.exists(os.environ["POSEWARD_TEST_STALL"]):
            time.sleep(0.05)
    turn(self)
serve.Service._turn = stalling
from daemon.cli import main
main()
"""


class Listener:
    """A socket as NOTIFY_SOCKET names it, and all that was said to it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.said: list[str] = []
        self.environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}

    def hear(self, seconds: float = 0.2) -> list[str]:
        """The lines that came since the last call, or come within some time."""
        self.socket.settimeout(seconds)
        found: list[str] = []
        try:
            while True:
                found += self.socket.recv(65536).decode().split("\n")
                self.socket.settimeout(0)
        except (TimeoutError, BlockingIOError):
            self.said += found
            return found

    def wait(self, true: Callable[[str], bool], what: str) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for line in self.hear():
                if true(line):
                    return line
        raise AssertionError(f"{what}: not said within {PATIENCE} s, but {self.said}")


@contextlib.contextmanager
def watched(daemon: Daemon, environ: dict[str, str]) -> Iterator[Daemon]:
    """A daemon started as systemd would, and ended at the end."""
    with contextlib.ExitStack() as stack:
        stack.push(daemon.__exit__)
        yield daemon.start(wait=False, env=environ)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    found = Listener(tmp_path / "notify")
    yield found
    found.socket.close()


def test_the_daemon_tells_systemd_how_it_fares(tmp_path: Path, listener: Listener) -> None:
    daemon = Daemon(tmp_path / "d", f'api.roots=["{tmp_path}"]', 'stages.faults=["mesh:slow=0.05%1/1"]')
    with watched(daemon, listener.environ):
        assert daemon.process is not None
        listener.wait(lambda line: line == "READY=1", "READY")
        assert f"MAINPID={daemon.process.pid}" in listener.said
        with daemon.client(10) as client:  # at once: that is what READY means
            assert client.hello()["backend"] == "tests.stages.blocks"
            listener.wait(lambda line: line.startswith("STATUS=idle"), "an idle STATUS")
            client.submit(write_squares(tmp_path / "clip.mp4", 120))
            listener.wait(lambda line: line.startswith("STATUS=clip") and "%" in line, "progress as STATUS")
        for _ in range(3):
            listener.wait(lambda line: line == "WATCHDOG=1", "a ping")
        below = daemon.below()
        assert len(below) >= 4
        listener.hear()
        assert daemon.stop() == 0
        assert "STOPPING=1" in listener.hear()
        _, alive = psutil.wait_procs(below, 10)
        assert not alive


def test_a_frozen_daemon_pings_no_more(tmp_path: Path, listener: Listener) -> None:
    with watched(Daemon(tmp_path / "d"), listener.environ) as daemon:
        assert daemon.process is not None
        listener.wait(lambda line: line == "WATCHDOG=1", "a ping")
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            until_stopped(daemon.process.pid)
            listener.hear()
            assert "WATCHDOG=1" not in listener.hear(WATCHDOG)
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        listener.wait(lambda line: line == "WATCHDOG=1", "a ping after it moves again")


def test_a_loop_that_stands_still_pings_no_more(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pings come from the loop itself: no other thread keeps a stuck daemon alive."""
    stall = tmp_path / "stall"
    monkeypatch.setattr("tests.daemon.daemons.MAIN", STALLING)
    environ = {**listener.environ, "POSEWARD_TEST_STALL": str(stall)}
    with watched(Daemon(tmp_path / "d"), environ) as daemon:
        listener.wait(lambda line: line == "WATCHDOG=1", "a ping")
        try:
            stall.touch()
            listener.wait(lambda line: line == "STATUS=stalled", "the stall")
            assert "WATCHDOG=1" not in listener.hear(WATCHDOG)
            assert daemon.process is not None and psutil.Process(daemon.process.pid).status() != "stopped"
        finally:
            stall.unlink()
        listener.wait(lambda line: line == "WATCHDOG=1", "a ping after it moves again")


def test_another_process_watchdog_is_not_fed(tmp_path: Path, listener: Listener) -> None:
    with watched(Daemon(tmp_path / "d"), {**listener.environ, "WATCHDOG_PID": "1"}) as daemon:
        listener.wait(lambda line: line == "READY=1", "READY")
        listener.wait(lambda line: line.startswith("STATUS="), "STATUS")
        assert not any("WATCHDOG" in line for line in [*listener.hear(WATCHDOG), *listener.said])
        assert daemon.stop() == 0


def until_stopped(pid: int) -> None:
    end = time.monotonic() + PATIENCE
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end
        time.sleep(0.01)
