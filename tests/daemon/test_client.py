"""The Python clients, against a socket that answers as it is told: no daemon needed."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from daemon.client import Client, ClientError, aio

Answer = Callable[[dict[str, Any], bytes], list[Any]]
"""Takes a request's body and blob; returns the maps and byte strings to be sent back, each as one reply."""


class Fake:
    """A ROUTER in a thread. Maps that are answered get the request's id and all that a reply has."""

    def __init__(self, address: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Answer = lambda _body, _blob: [{}]
        self._stop = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(address)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while not self._stop:
            if not self._socket.poll(20):
                continue
            who, body, *blob = self._socket.recv_multipart()
            request = msgpack.unpackb(body)
            self.asked.append(request)
            for reply in self.answer(request, b"".join(blob)):
                self._socket.send_multipart([who, *self._parts(request, reply)])

    @staticmethod
    def _parts(request: dict[str, Any], reply: Any) -> list[bytes]:
        if isinstance(reply, bytes):
            return [reply]
        blob = reply.pop("blob", None)
        packed = msgpack.packb({"v": 1, "id": request["id"], "ok": True, **reply})
        return [packed] if blob is None else [packed, blob]


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    made = Fake("tcp://127.0.0.1:*")
    yield made
    made.close()


@pytest.fixture
def client(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr("daemon.client.aio.QUICK", 0.2)
    address = fake._socket.getsockopt(zmq.LAST_ENDPOINT)
    with Client(address.decode().rstrip("\0"), patience=20.0) as made:
        yield made


def test_a_late_answer_is_an_answer(fake: Fake, client: Client) -> None:
    """A store that is locked refuses after ten seconds; asked every five, it was never heard."""

    def late(body: dict[str, Any], _blob: bytes) -> list[Any]:
        time.sleep(0.5)
        return [{"ok": False, "error": {"name": "store-locked", "message": "another program has it open"}}]

    fake.answer = late
    with pytest.raises(ClientError, match="store-locked"):
        client.status("x")


def test_what_is_no_reply_does_not_deafen_the_client(fake: Fake, client: Client) -> None:
    fake.answer = lambda _body, _blob: [b"\xc1", msgpack.packb([1]), {"job": {"id": "x"}}]
    assert client.status("x") == {"id": "x"}
    assert client.status("x") == {"id": "x"}


def test_patience_is_kept(tmp_path: Path) -> None:
    with Client(f"ipc://{tmp_path}/nobody", patience=0.3) as client:
        began = time.monotonic()
        with pytest.raises(ClientError, match="timeout"):
            client.hello()
        assert time.monotonic() - began < 4.0


def test_an_upload_whose_digest_was_not_compared_is_finished(fake: Fake, client: Client, tmp_path: Path) -> None:
    """The daemon was killed after the last byte."""
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"12345")
    digest = hashlib.sha256(b"12345").hexdigest()

    def answer(body: dict[str, Any], blob: bytes) -> list[Any]:
        if body["op"] == "hello":
            return [{"limits": {"chunk": 3}}]
        if body["op"] == "upload":
            assert body["sha256"] == digest
            return [{"upload": "u", "offset": 5, "complete": False}]
        assert (body["offset"], blob) == (5, b"")
        return [{"upload": "u", "offset": 5, "complete": True}]

    fake.answer = answer
    assert client.upload(file) == "u"


def test_a_chunk_that_a_killed_daemon_has_taken_along_is_sent_again_soon(
    fake: Fake, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.client.aio.DIGEST_AGAIN", 0.2)
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"12345")
    lost: set[int] = set()

    def answer(body: dict[str, Any], blob: bytes) -> list[Any]:
        if body["op"] == "hello":
            return [{"limits": {"chunk": 3}}]
        if body["op"] == "upload":
            return [{"upload": "u", "offset": 0, "complete": False}]
        if body["offset"] not in lost:
            lost.add(body["offset"])
            return []
        end = body["offset"] + len(blob)
        return [{"upload": "u", "offset": end, "complete": end == 5}]

    fake.answer = answer
    began = time.monotonic()
    assert client.upload(file) == "u" and lost == {0, 3}
    assert time.monotonic() - began < 10.0


def test_a_file_that_ends_early_is_no_download(fake: Fake, client: Client, tmp_path: Path) -> None:
    fake.answer = lambda body, _blob: [{"total": 10, "blob": b"" if body["offset"] else b"12345"}]
    with pytest.raises(ClientError, match=r"results-gone: overlay\.mp4 of x ends at 5 of 10 bytes"):
        client.download("x", "overlay.mp4", tmp_path / "overlay.mp4")
    assert not list(tmp_path.iterdir()), "nothing is left that looks like a file of results"


def test_two_downloads_to_one_name_do_not_mix(fake: Fake, client: Client, tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def answer(body: dict[str, Any], _blob: bytes) -> list[Any]:
        letter, offset = body["job"].encode(), body["offset"]
        return [{"total": 20, "blob": letter * (4 if letter == b"a" else 5)}] if offset < 20 else []

    made: list[Path] = []

    def fetch(job: str) -> None:
        both.wait()
        made.append(client.download(job, "overlay.mp4", tmp_path / "overlay.mp4"))

    fake.answer = answer
    threads = [threading.Thread(target=fetch, args=(job,)) for job in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 and (tmp_path / "overlay.mp4").read_bytes() in (b"a" * 20, b"b" * 20)
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.mp4"]


def test_closing_ends_whatever_other_threads_wait_for(fake: Fake) -> None:
    address = fake._socket.getsockopt(zmq.LAST_ENDPOINT).decode().rstrip("\0")
    fake.answer = lambda _body, _blob: []
    client = Client(address, events="tcp://127.0.0.1:9")
    ends: list[str] = []

    def end(work: Callable[[], Any]) -> None:
        try:
            work()
        except ClientError as error:
            ends.append(error.name)

    works = [lambda: list(client.events()), lambda: client.wait("x"), client.hello]
    threads = [threading.Thread(target=end, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(fake.asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    client.close()
    client.close()
    for thread in threads:
        thread.join(20)
    assert ends == ["closed"] * 3
    with pytest.raises(ClientError, match="closed"):
        client.hello()


def test_an_image_that_no_message_holds_is_refused_at_once(fake: Fake, client: Client) -> None:
    """The daemon would close the connection, and that again and again."""
    fake.answer = lambda body, _blob: [{"limits": {"max_message": 2 << 20}}] if body["op"] == "hello" else []
    with pytest.raises(ClientError, match=r"too-large: .*api\.max_message_mb"):
        client.image(bytes(3 << 20))
    assert [body["op"] for body in fake.asked] == ["hello"]


def test_events_go_on_from_the_daemon_that_is_there_now(
    fake: Fake, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "QUIET", 0.1)
    base = tempfile.mkdtemp(prefix="pwe-", dir="/tmp")
    told = [f"ipc://{base}/first"]
    fake.answer = lambda _body, _blob: [{"events": told[0]}]
    context = zmq.Context()
    stop = threading.Event()

    def publish() -> None:
        sockets = [context.socket(zmq.PUB) for _ in range(2)]
        for socket, name in zip(sockets, ("first", "second"), strict=True):
            socket.bind(f"ipc://{base}/{name}")
        while not stop.wait(0.02):
            number = int(told[0].endswith("second"))
            sockets[number].send_multipart([b"daemon", msgpack.packb({"from": number})])

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        events = client.events()
        assert next(events)[1] == {"from": 0}
        told[0] = f"ipc://{base}/second"
        assert next(found for _, found in events if found["from"] == 1) == {"from": 1}
        assert next(client.events())[1] == {"from": 1}
    finally:
        stop.set()
        thread.join()
        context.destroy(linger=0)
        shutil.rmtree(base)
