"""Hostile and broken clients against a real daemon: each is refused by name, and nobody else is harmed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zmq
import zmq.auth

from daemon.api.server import Later, Server
from daemon.api.sockets import Sockets
from daemon.client import Client, ClientError
from daemon.settings.addresses import addresses
from daemon.settings.loading import ConfigError
from daemon.settings.schema import ApiSettings
from tests.daemon.daemons import PATIENCE, Daemon, until
from tests.stages.harness import write_squares


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    limits = (
        "api.max_message_mb=2",
        "api.max_waiting=5",
        "api.max_queue=20",
        "api.max_clients=30",
        "stages.faults=mesh:slow=0.03%1/1",
    )
    with Daemon(tmp_path_factory.mktemp("hostile"), *limits) as daemon:
        yield daemon


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def dealer(context: zmq.Context[Any], daemon: Daemon) -> zmq.Socket[bytes]:
    made = context.socket(zmq.DEALER)
    made.setsockopt(zmq.LINGER, 0)
    made.connect(daemon.address)
    return made


def answer(client: zmq.Socket[bytes]) -> dict[str, Any]:
    assert client.poll(PATIENCE * 1000), "no answer"
    parts = [part for part in client.recv_multipart() if part]
    found: dict[str, Any] = msgpack.unpackb(parts[0])
    return found


def body(**more: Any) -> bytes:
    return bytes(msgpack.packb({"v": 1, "id": 1, **more}))


def others_are_served(daemon: Daemon) -> None:
    with daemon.client() as client:
        assert client.hello()["protocol"] == 1


@pytest.mark.parametrize(
    "parts",
    [
        [b""], [b"", b""], [b"", b"", b"", b""], [b"\x00"], [os.urandom(500)], [b"\x91" * 60_000],
        [b"GET / HTTP/1.1\r\n\r\n"], [body(op="hello"), b"blob"], [body(op="hello"), b"a", b"b", b"c"],
        [body(op="chunk", upload="0" * 32, offset=0)], [msgpack.packb([1, 2])], [body(op="image"), b""],
        [body(op="submit")], [body(op="submit", path="x", upload="y")], [body(op="status")],
        [body(op="frames", job="\x00")], [body(op="file", job="x", name="../../etc/passwd")],
        [body(op="hello")[:-1]], [body(op="hello") + b"\x00"],
    ],
    ids=range(19),
)  # fmt: skip
def test_every_malformed_request_is_refused_by_name(
    daemon: Daemon, context: zmq.Context[Any], parts: list[bytes]
) -> None:
    client = dealer(context, daemon)
    client.send_multipart(parts)
    found = answer(client)
    assert found["ok"] is False and found["error"]["message"]
    assert found["error"]["name"] in ("bad-request", "wrong-version", "no-such-job", "no-such-upload")
    client.send(body(op="hello"))
    assert answer(client)["ok"], "the same client is not punished for it"


def test_a_request_socket_is_served_too(daemon: Daemon, context: zmq.Context[Any]) -> None:
    client = context.socket(zmq.REQ)
    client.setsockopt(zmq.LINGER, 0)
    client.connect(daemon.address)
    for number in range(3):
        client.send(msgpack.packb({"v": 1, "id": f"n{number}", "op": "hello"}))
        assert answer(client)["id"] == f"n{number}"


def test_a_message_beyond_the_limit_closes_only_that_connection(daemon: Daemon, context: zmq.Context[Any]) -> None:
    client = dealer(context, daemon)
    client.send_multipart([body(op="image"), bytes(3 << 20)])
    assert not client.poll(500)
    others_are_served(daemon)


def test_raw_bytes_on_the_socket(daemon: Daemon) -> None:
    path = daemon.address.removeprefix("ipc://")
    for garbage in (b"", b"\xff" * 10_000, b"GET / HTTP/1.0\r\n\r\n", os.urandom(100_000)):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            with contextlib.suppress(OSError):  # it may be let go before the end
                raw.sendall(garbage)
    others_are_served(daemon)


def test_who_asks_for_too_much_at_once_is_refused(
    daemon: Daemon, context: zmq.Context[Any], tmp_path: Path
) -> None:
    clip = write_squares(daemon.base / "waiting.mp4", 5)
    with daemon.client() as client:
        for _ in range(5):
            job = client.submit(clip, recompute=True)["id"]
        greedy = dealer(context, daemon)
        for _ in range(20):
            greedy.send(body(op="wait", job=job, timeout=600))
        refused = [answer(greedy) for _ in range(15)]
        assert {reply["error"]["name"] for reply in refused} == {"too-many-waiting"}
        greedy.close()
        for number in range(30):
            try:
                client.submit(clip, key=f"many-{number}", recompute=True)
            except ClientError as error:
                assert error.name == "queue-full"
                break
        else:
            raise AssertionError("the queue has no end")
        assert client.wait(job, PATIENCE)["state"] == "done"


def test_who_never_reads_does_not_hold_up_the_others(daemon: Daemon, context: zmq.Context[Any]) -> None:
    clip = write_squares(daemon.base / "big.mp4", 60)
    with daemon.client() as client:
        job = client.wait(client.submit(clip)["id"], PATIENCE)["id"]
        assert daemon.process is not None
        before = psutil.Process(daemon.process.pid).memory_info().rss
        deaf = context.socket(zmq.DEALER)
        deaf.setsockopt(zmq.LINGER, 0)
        deaf.setsockopt(zmq.RCVHWM, 1)
        deaf.connect(daemon.address)
        for _ in range(1500):
            deaf.send(body(op="frames", job=job, count=1000))
        began = time.monotonic()
        others_are_served(daemon)
        assert time.monotonic() - began < PATIENCE
        grown = psutil.Process(daemon.process.pid).memory_info().rss - before
        assert grown < 400 << 20, f"{grown >> 20} MB for one client that does not read"


def test_an_upload_goes_through_where_messages_are_small(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "large.mp4"
    file.write_bytes(os.urandom(5 << 20))
    with daemon.client(10.0) as client:
        limits = client.hello()["limits"]
        assert limits["chunk"] == limits["max_message"] == 2 << 20
        assert client.upload(file)


def _open_files(daemon: Daemon, folder: str) -> list[str]:
    assert daemon.process is not None
    found = []
    for path in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(path))
    return [path for path in found if path.startswith(folder)]


def test_results_that_were_read_do_not_stay_open(daemon: Daemon, context: zmq.Context[Any]) -> None:
    """Removed ones would keep their place on the disk."""
    clip = write_squares(daemon.base / "read.mp4", 30)
    with daemon.client() as client:
        job = client.wait(client.submit(clip)["id"], PATIENCE)
        assert len(list(client.frames(job["id"]))) == 30
        assert not _open_files(daemon, job["results"])
        leaver = dealer(context, daemon)
        leaver.send(body(op="frames", job=job["id"], count=3))
        assert answer(leaver)["next"] == 3 and _open_files(daemon, job["results"])
        leaver.close()
        until(lambda: not _open_files(daemon, job["results"]), "the end of who left in the middle")


def test_what_those_wait_for_who_have_gone_is_forgotten(context: zmq.Context[Any], tmp_path: Path) -> None:
    dropped: list[bytes] = []
    gone: list[bytes] = []

    class Patient:
        def handle(self, client: bytes, operation: object, blob: bytes, own: bool = False) -> Later:
            return Later(lambda _last: None, 600.0, dropped=lambda: dropped.append(client))

        def subscribed(self, topic: str, wanted: bool) -> None: ...
        def changed(self, job: str) -> list[Any]:
            return []

        def gone(self, client: bytes) -> None:
            gone.append(client)

        def close(self) -> None: ...

    server = Server(addresses(ApiSettings(), tmp_path), ApiSettings(), Patient())
    server.start()
    try:
        for _ in range(3):
            client = context.socket(zmq.DEALER)
            client.connect(f"ipc://{tmp_path}/api.sock")
            for _ in range(5):
                client.send(body(op="wait", job="x", timeout=600))
            until(lambda: len(server._pending) == 5, "five that wait")
            client.close(linger=0)
            until(lambda: not server._pending, "none that waits")
        assert len(dropped) == 15 and len(set(dropped)) == len(set(gone)) == 3
    finally:
        server.stop()


def test_a_flood_from_many_is_served_in_turn(daemon: Daemon, context: zmq.Context[Any]) -> None:
    stop = threading.Event()

    def flood() -> None:
        mine = zmq.Context()
        client = dealer(mine, daemon)
        while not stop.is_set():
            try:
                client.send(os.urandom(50), zmq.NOBLOCK)
            except zmq.Again:
                time.sleep(0.001)
            while client.poll(0):
                client.recv_multipart()
        mine.destroy(linger=0)

    floods = [threading.Thread(target=flood) for _ in range(4)]
    for thread in floods:
        thread.start()
    try:
        for _ in range(10):
            others_are_served(daemon)
    finally:
        stop.set()
        for thread in floods:
            thread.join()


def test_one_client_too_many_is_told_so(daemon: Daemon, context: zmq.Context[Any]) -> None:
    with daemon.client() as client:
        client.hello()
        many = [dealer(context, daemon) for _ in range(40)]
        names = []
        for one in many:
            one.send(body(op="hello"))
        for one in many:
            reply = answer(one)
            names.append("ok" if reply["ok"] else reply["error"]["name"])
        assert "too-many-clients" in names and client.hello(), "who was served before is served on"
    for one in many:
        one.close()
    until(lambda: _answers(daemon), "room for a new client")


def test_a_client_does_not_go_with_who_had_its_descriptor(context: zmq.Context[Any], tmp_path: Path) -> None:
    """The kernel gives the descriptor of a connection that has ended to the next one at once."""
    where = addresses(ApiSettings(), tmp_path)
    sockets = Sockets(where, ApiSettings())
    try:
        first, gone = _admitted(sockets, context, where.requests)
        descriptor = sockets.clients[gone].descriptor
        for _ in range(50):
            first.close()
            assert sockets.monitor.poll(PATIENCE * 1000), "the end of a connection is not told"
            second, come = _admitted(sockets, context, where.requests)
            if sockets.clients[come].descriptor == descriptor:
                break
            first, gone, descriptor = second, come, sockets.clients[come].descriptor
        assert sockets.clients[come].descriptor == descriptor and gone not in sockets.clients
        sockets.part()
        assert come in sockets.clients
    finally:
        sockets.close()


def test_little_is_queued_for_who_does_not_read(context: zmq.Context[Any], tmp_path: Path) -> None:
    """Pages are of megabytes, and as many clients as there may be must fit into the memory."""
    where = addresses(ApiSettings(), tmp_path)
    sockets = Sockets(where, ApiSettings())
    try:
        deaf, name = _admitted(sockets, context, where.requests)
        deaf.setsockopt(zmq.RCVHWM, 1)
        page = os.urandom(4 << 20)
        for _ in range(10):
            sockets.send(name, [page])
        assert sockets.clients[name].held >= 3 * len(page) and sockets.holds
        for _ in range(10):
            until(lambda: sockets.send_held() or deaf.poll(10), "what was kept")
            assert deaf.recv() == page
        until(lambda: sockets.send_held() or not sockets.holds, "nothing is kept")
    finally:
        sockets.close()


def _admitted(sockets: Sockets, context: zmq.Context[Any], address: str) -> tuple[zmq.Socket[bytes], bytes]:
    client = context.socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    client.connect(address)
    client.send(body(op="hello"))
    assert sockets.router.poll(PATIENCE * 1000)
    request = sockets.receive()
    assert request is not None
    sockets.admit(request[0])
    return client, request[0]


def _answers(daemon: Daemon) -> bool:
    try:
        with daemon.client(5.0) as client:
            return bool(client.hello())
    except ClientError:
        return False


def test_the_sockets_are_their_owners_alone(daemon: Daemon) -> None:
    for path in daemon.sockets.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (daemon.base / "state").iterdir():
        assert not path.stat().st_mode & 0o077 or path.parent.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:5555", "tcp://192.168.1.5:5555", "tcp://[::]:5555", "tcp://example:5555"]
)
def test_an_address_for_others_demands_keys(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="demands keys"):
        addresses(ApiSettings(address=address), tmp_path)
    with pytest.raises(ConfigError, match="demands keys"):
        addresses(ApiSettings(events=address), tmp_path)
    assert addresses(ApiSettings(address=address, key="k", allow="a"), tmp_path).public


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:5555", "tcp://[::1]:5555", "tcp://localhost:5555", "ipc:///tmp/x"]
)
def test_addresses_that_need_none(address: str, tmp_path: Path) -> None:
    assert not addresses(ApiSettings(address=address), tmp_path).public


@pytest.mark.parametrize(
    "address",
    ["", "http://x", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "ipc://relative", "ipc:///" + "x" * 200],
)
def test_addresses_that_are_none(address: str, tmp_path: Path) -> None:
    if address:
        with pytest.raises(ConfigError):
            addresses(ApiSettings(address=address), tmp_path)
    else:
        assert addresses(ApiSettings(), tmp_path).requests.endswith("api.sock")


def test_curve_keys_let_in_who_is_known(tmp_path: Path) -> None:
    allow = tmp_path / "allow"
    allow.mkdir()
    keys = {name: zmq.auth.create_certificates(tmp_path, name) for name in ("daemon", "friend", "stranger")}
    for _, secret in keys.values():
        os.chmod(secret, 0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.rename(keys["friend"][0], allow / "friend.key")
    daemon = Daemon(tmp_path / "d", f"api.key={keys['daemon'][1]}", f"api.allow={allow}")
    daemon.sets = [s for s in daemon.sets if not s.startswith("api.address")] + [
        f"api.address=tcp://127.0.0.1:{port}"
    ]
    daemon.address = f"tcp://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        stack.push(daemon.__exit__)
        daemon.start(wait=False)
        friend = stack.enter_context(daemon.client(key=keys["friend"][1], server_key=keys["daemon"][0]))
        assert friend.hello()["protocol"] == 1
        for more in ({}, {"key": keys["stranger"][1], "server_key": keys["daemon"][0]}):
            with (
                Client(daemon.address, patience=2.0, **more) as other,
                pytest.raises(ClientError, match="timeout"),
            ):  # type: ignore[arg-type]
                other.hello()
        events = friend.events("daemon")
        friend_thread = threading.Thread(target=lambda: next(events))
        friend_thread.start()
        until(lambda: (friend.drain(), friend_thread.join(0.2), not friend_thread.is_alive())[2], "an event")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    _, secret = zmq.auth.create_certificates(tmp_path, "daemon")
    os.chmod(secret, 0o644)
    daemon = Daemon(tmp_path / "d", f"api.key={secret}", f"api.allow={tmp_path}")
    daemon.start(wait=False)
    assert daemon.process is not None and daemon.process.wait(PATIENCE) == 2
    assert "chmod 600" in daemon.story()
