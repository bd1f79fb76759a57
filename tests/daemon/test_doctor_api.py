"""The doctor's checks of the running daemon and of addresses, against real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from daemon.doctor import api
from daemon.doctor.check import Severity
from tests.daemon.doctor import Gpus, look, make_context, make_root, worst

OK, NOTE, WARNING, ERROR = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.ERROR


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for a socket, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory(prefix="pw-", dir="/tmp") as folder:
        yield Path(folder)


@contextmanager
def daemon(address: str, answer: dict[str, Any] | bytes | None) -> Iterator[None]:
    """Answers every request at ``address`` with a map, with raw bytes, or not at all."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(address)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                if not router.poll(20):
                    continue
                peer, body = router.recv_multipart()
                request = msgpack.unpackb(body)
                assert request["v"] == 1 and request["op"] == "health"
                if isinstance(answer, bytes):
                    router.send_multipart([peer, answer])
                elif answer is not None:
                    reply = {"v": 1, "id": request["id"], "ok": True, "problems": [], **answer}
                    router.send_multipart([peer, msgpack.packb(reply)])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("poseward")
    except PackageNotFoundError:
        return "0"


def process(**rest: Any) -> dict[str, Any]:
    return {"stage": "mesh", "state": "ready", "pid": 1, "stale": False, **rest}


STALE = "mesh-1 runs code that differs from what is on disk: `poseward reload`"


def test_no_daemon(short: Path) -> None:
    (found,) = look(make_context(short), "service.daemon")
    assert found.severity is OK
    assert "no daemon is running" in found.found


def test_a_daemon_that_is_well(short: Path) -> None:
    (short / "state").mkdir()
    with daemon(f"ipc://{short}/state/api.sock", {"poseward": version(), "processes": {"mesh": process()}}):
        context = make_context(short)
        (found,) = look(context, "service.daemon")
        assert found.severity is OK
        assert worst(look(context, "service.addresses")).severity is OK


@pytest.mark.parametrize(
    ("answer", "text", "way"),
    [
        ({"poseward": "0.0.0-other", "processes": {}}, "0.0.0-other", "restart"),
        (
            {"poseward": version(), "processes": {"mesh-1": process(stale=True)}, "problems": [STALE]},
            "mesh-1",
            "poseward reload",
        ),
        ({"poseward": version(), "processes": {}, "problems": ["mesh: open circuit"]}, "open circuit", "health"),
        (msgpack.packb({"ok": False, "error": {"name": "busy", "message": "later"}}), "busy", "health"),
        (b"\xc1", "not Poseward's protocol", "health"),
    ],
)
def test_a_daemon_with_something_to_say(short: Path, answer: Any, text: str, way: str) -> None:
    (short / "state").mkdir()
    with daemon(f"ipc://{short}/state/api.sock", answer):
        (found,) = look(make_context(short), "service.daemon")
    assert found.severity is WARNING
    assert text in found.found and way in found.way_out


def test_a_daemon_that_says_nothing(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "ANSWER_SECONDS", 0.2)
    (short / "state").mkdir()
    with daemon(f"ipc://{short}/state/api.sock", None):
        context = make_context(short)
        (found,) = look(context, "service.daemon")
        assert found.severity is ERROR
        assert "says nothing" in found.found
        held = worst(look(context, "service.addresses"))
    assert held.severity is ERROR
    assert f"({os.getpid()})" in held.found  # who holds it


def test_the_daemons_own_stages_hold_the_gpu(short: Path) -> None:
    from daemon.doctor.driver import Driver
    from supervisor.memory import DeviceMemory

    (short / "state").mkdir()
    processes = {"mesh": process(pid=os.getpid())}
    gpus = Gpus([DeviceMemory(0, "GPU", 8000 << 20, 1000 << 20, {os.getpid(): 7000 << 20})])
    sets = ("stages.mesh.device=cuda", "stages.mesh.device_need_mb=4000")
    machine: dict[str, Any] = {"devices": gpus, "driver": lambda: Driver("1", (12, 0)), "root": make_root(short)}
    with daemon(f"ipc://{short}/state/api.sock", {"poseward": version(), "processes": processes}):
        (found,) = look(make_context(short, *sets, **machine), "gpu.memory")
    assert found.severity is NOTE
    assert "daemon's own stages" in found.found


# -- addresses -----------------------------------------------------------------------------------------


@contextmanager
def listener(host: str = "127.0.0.1") -> Iterator[int]:
    with socket.socket() as held:
        held.bind((host, 0))
        held.listen(1)
        yield held.getsockname()[1]


def free_port() -> int:
    with listener() as port:
        return port


def test_a_port_that_is_held(short: Path) -> None:
    with listener() as port:
        found = worst(look(make_context(short, f"metrics.address=127.0.0.1:{port}"), "service.addresses"))
    assert found.severity is ERROR
    assert "metrics.address" in found.found and f"({os.getpid()})" in found.found
    assert "set metrics.address" in found.way_out
    found = worst(look(make_context(short, f"metrics.address=127.0.0.1:{port}"), "service.addresses"))
    assert found.severity is OK


@pytest.mark.parametrize(
    ("address", "severity", "text"),
    [
        (lambda: f"0.0.0.0:{free_port()}", WARNING, "reached from the network"),
        (lambda: "192.0.2.1:9464", ERROR, "no address of this machine"),
        (lambda: "9464", ERROR, "not HOST:PORT"),
        (lambda: "127.0.0.1:99999", ERROR, "not HOST:PORT"),
    ],
)
def test_an_address_that_is_wrong(short: Path, address: Callable[[], str], severity: Severity, text: str) -> None:
    found = worst(look(make_context(short, f"metrics.address={address()}"), "service.addresses"))
    assert found.severity is severity
    assert text in found.found + found.way_out


@pytest.mark.skipif(os.getuid() == 0, reason="root may listen on every port")
def test_a_port_for_root(short: Path) -> None:
    limit = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if limit <= 81:
        pytest.skip("this machine lets everybody listen on port 81")
    found = worst(look(make_context(short, "metrics.address=127.0.0.1:81"), "service.addresses"))
    assert found.severity is ERROR
    assert "above 1023" in found.way_out


def test_the_events_port_is_the_next_one(short: Path) -> None:
    context = make_context(short, "api.address=tcp://127.0.0.1:7000")
    assert api.configured(context)["api.events"] == "tcp://127.0.0.1:7001"


def test_a_socket_path_that_is_too_long(short: Path) -> None:
    folder = short / ("x" * 100)
    found = worst(look(make_context(short, f"daemon.state={folder}"), "service.addresses"))
    assert found.severity is ERROR
    assert "107" in found.found and "daemon.state" in found.found


def test_a_file_stands_where_the_socket_should(short: Path) -> None:
    (short / "state").mkdir()
    (short / "state" / "api.sock").write_text("")
    found = worst(look(make_context(short), "service.addresses"))
    assert found.severity is ERROR
    assert "no socket" in found.found and "remove" in found.way_out


def test_a_socket_that_a_dead_daemon_left(short: Path) -> None:
    (short / "state").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(short / "state" / "api.sock"))
    assert worst(look(make_context(short), "service.addresses")).severity is OK


def test_a_socket_that_another_process_holds(short: Path) -> None:
    (short / "state").mkdir()
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(short / "state" / "events.sock"))
        held.listen(1)
        found = worst(look(make_context(short), "service.addresses"))
    assert found.severity is ERROR
    assert "events.sock" in found.found and f"({os.getpid()})" in found.found


def test_an_address_without_a_scheme(short: Path) -> None:
    found = worst(look(make_context(short, "api.address=localhost"), "service.addresses"))
    assert found.severity is ERROR
    assert "ipc:///PATH or tcp://HOST:PORT" in found.found


def test_an_api_that_is_open_to_the_network_without_keys(short: Path) -> None:
    found = worst(look(make_context(short, "api.address=tcp://0.0.0.0:7000"), "service.addresses"))
    assert found.severity is ERROR
    assert "demands keys" in found.found


def test_a_daemon_that_is_asked_with_keys(short: Path) -> None:
    sets = ("api.address=tcp://127.0.0.1:7000", "api.key=/etc/poseward/key")
    (found,) = look(make_context(short, *sets), "service.daemon")
    assert found.severity is NOTE
    assert "poseward health" in found.way_out


def test_a_port_held_by_a_daemon_that_cannot_be_asked(short: Path) -> None:
    """One with keys is known by its command line."""
    program = (
        "import socket, sys; held = socket.socket(); held.bind(('127.0.0.1', 0)); held.listen(1)\n"
        "print(held.getsockname()[1], flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, "poseward", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        port = int(process.stdout.readline())
        found = look(make_context(short, f"metrics.address=127.0.0.1:{port}"), "service.addresses")
        process.stdin.close()
    assert worst(found).severity is OK
    assert any(f"({process.pid})" in finding.found for finding in found)


def test_who_has_no_time_to_answer_listens_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(8):  # until its queue is full
            asker = stack.enter_context(socket.socket(socket.AF_UNIX))
            asker.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                asker.connect(str(path))
        assert api._listens(f"ipc://{path}")
    assert not api._listens(f"ipc://{path}")
