"""The notify protocol, against a real datagram socket that plays systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.service.notify import LONGEST_STATUS, Notifier


class Systemd:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.socket.settimeout(10)
        self.environ = {"NOTIFY_SOCKET": address}

    def read(self) -> list[str]:
        return self.socket.recv(65536).decode().split("\n")

    def is_silent(self) -> bool:
        self.socket.settimeout(0)
        try:
            self.socket.recv(65536)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(10)
        return False


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@poseward-test-{os.getpid()}"
    found = Systemd(address)
    yield found
    found.socket.close()


def test_each_message(systemd: Systemd) -> None:
    notifier = Notifier.from_environment(systemd.environ)
    notifier.ready()
    assert systemd.read() == ["READY=1", f"MAINPID={os.getpid()}"]
    notifier.status("clip 40 %\nand more")
    assert systemd.read() == ["STATUS=clip 40 % and more"]
    notifier.watchdog()
    assert systemd.read() == ["WATCHDOG=1"]
    notifier.extend(12.5)
    assert systemd.read() == ["EXTEND_TIMEOUT_USEC=12500000"]
    notifier.reloading()
    first, second = systemd.read()
    assert first == "RELOADING=1" and int(second.removeprefix("MONOTONIC_USEC=")) > 0
    notifier.stopping()
    assert systemd.read() == ["STOPPING=1"]
    notifier.close()
    notifier.status("nothing any more")
    assert systemd.is_silent()


def test_a_status_cannot_forge_other_messages(systemd: Systemd) -> None:
    Notifier.from_environment(systemd.environ).status("a\nREADY=1\r\nMAINPID=1\x00" + "é" * 10_000 + "\udce9")
    (line,) = systemd.read()
    assert line.startswith("STATUS=a READY=1 MAINPID=1") and len(line) <= len("STATUS=") + LONGEST_STATUS


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": ""}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_interval(environ: dict[str, str], interval: float | None, tmp_path: Path) -> None:
    assert (
        Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "s"), **environ}).watchdog_interval == interval
    )
    assert Notifier.from_environment(environ).watchdog_interval is None, "nobody listens"


def say_everything(notifier: Notifier) -> None:
    notifier.ready()
    notifier.status("x")
    notifier.watchdog()
    notifier.reloading()
    notifier.extend(1)
    notifier.stopping()


def test_without_a_socket_nothing_happens() -> None:
    said: list[str] = []
    for environ in ({}, {"NOTIFY_SOCKET": ""}):
        say_everything(Notifier.from_environment(environ, warn=said.append))
    assert said == []


@pytest.mark.parametrize("address", ["/nowhere/notify", "vsock:2:1234", "relative/path", "/" + "x" * 300, "/a\0b"])
def test_a_socket_that_fails_is_logged_once_and_raises_nothing(address: str) -> None:
    said: list[str] = []
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address}, warn=said.append)
    say_everything(notifier)
    assert len(said) == 1 and "systemd" in said[0], said


def test_a_log_that_fails_is_no_reason_to_fall(tmp_path: Path) -> None:
    def broken(_text: str) -> None:
        raise OSError("disk full")

    say_everything(Notifier(str(tmp_path / "nobody"), warn=broken))


def test_a_full_socket_holds_nobody_up(systemd: Systemd) -> None:
    said: list[str] = []
    notifier = Notifier.from_environment(systemd.environ, warn=said.append)
    for number in range(5000):  # far more than a datagram socket's queue; returns only if nothing blocks
        notifier.status(str(number))
        notifier.watchdog()
    assert said == []
    while not systemd.is_silent():
        pass
    notifier.ready()
    assert systemd.read()[0] == "READY=1"


def test_messages_come_again_when_systemd_does(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "notify"
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(path)}, warn=said.append)
    notifier.status("lost")
    systemd = Systemd(str(path))
    notifier.status("heard")
    assert systemd.read() == ["STATUS=heard"] and len(said) == 1
    systemd.socket.close()


def test_the_socket_is_not_inherited(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    assert notifier._socket is not None and not os.get_inheritable(notifier._socket.fileno())
