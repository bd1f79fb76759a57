"""Pipes hold little, spread over replicas, and survive the death of either end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from stages.transport.pipes import MAX_PATH_BYTES, PipePathError, Receiver, Sender
from tests.paths import ROOT

LIMIT = 30.0


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


def until(ready: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        found = ready()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("waited in vain")


def test_messages_arrive_in_order(context: zmq.Context[Any], tmp_path: Path) -> None:
    receiver = Receiver(context, tmp_path / "a.pipe", 2)
    sender = Sender(context, [tmp_path / "a.pipe"], 2)
    for number in range(20):
        until(lambda n=number: sender.send(b"%d" % n))
        assert until(receiver.receive) == b"%d" % number
    assert receiver.receive() is None


def test_nothing_is_queued_for_a_receiver_that_is_not_there(context: zmq.Context[Any], tmp_path: Path) -> None:
    sender = Sender(context, [tmp_path / "a.pipe"], 2)
    assert not sender.send(b"early")
    receiver = Receiver(context, tmp_path / "a.pipe", 2)
    until(lambda: sender.send(b"late"))
    assert until(receiver.receive) == b"late"


def test_a_full_pipe_refuses_and_takes_again_when_drained(context: zmq.Context[Any], tmp_path: Path) -> None:
    receiver = Receiver(context, tmp_path / "a.pipe", 2)
    sender = Sender(context, [tmp_path / "a.pipe"], 2)
    data = bytes(1_000_000)
    until(lambda: sender.send(data))
    sent = 1
    # Full means refused for as long as nobody reads, and not only while it was being moved.
    refused_since = None
    while refused_since is None or time.monotonic() - refused_since < 0.3:
        if sender.send(data):
            sent, refused_since = sent + 1, None
            assert sent < 20, "the pipe never fills"
        else:
            refused_since = refused_since or time.monotonic()
            time.sleep(0.01)
    for _ in range(sent):
        until(receiver.receive)
    until(lambda: sender.send(b"again"))


def test_what_is_urgent_passes_a_full_pipe(context: zmq.Context[Any], tmp_path: Path) -> None:
    receiver = Receiver(context, tmp_path / "a.pipe", 1)
    sender = Sender(context, [tmp_path / "a.pipe"], 1)
    data = bytes(1_000_000)
    until(lambda: sender.send(data))
    while sender.send(data):
        pass
    until(lambda: sender.send(b"urgent", urgent=True))
    assert until(lambda: receiver.receive(urgent=True)) == b"urgent"
    assert receiver.receive(urgent=True) is None
    assert until(receiver.receive) == data


def test_messages_go_to_the_replica_that_has_room(context: zmq.Context[Any], tmp_path: Path) -> None:
    paths = [tmp_path / "a.0", tmp_path / "a.1"]
    idle, busy = (Receiver(context, path, 1) for path in paths)
    sender = Sender(context, paths, 1)
    data = bytes(500_000)
    taken = 0

    def pump() -> bool:
        nonlocal taken
        sender.send(data)
        taken += idle.receive() is not None
        return taken >= 30

    until(pump)  # the busy one never reads, and holds up nothing
    assert until(busy.receive)


RECEIVER = """
import sys, time, zmq
from pathlib import Path
from stages.transport.pipes import Receiver
receiver = Receiver(zmq.Context(), Path(sys.argv[1]), 2)
print("bound", flush=True)
time.sleep(600)
"""


def test_a_killed_receiver_is_replaced_over_its_stale_socket(context: zmq.Context[Any], tmp_path: Path) -> None:
    path = tmp_path / "a.pipe"
    process = subprocess.Popen(
        [sys.executable, "-c", RECEIVER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "bound\n"
        sender = Sender(context, [path], 2)
        until(lambda: sender.send(b"lost"))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(LIMIT)
        assert path.exists()
        receiver = Receiver(context, path, 2)
        found = until(lambda: (sender.send(b"found") and receiver.receive()) or receiver.receive())
        assert found == b"found"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_closing_with_messages_queued_does_not_hang(tmp_path: Path) -> None:
    own: zmq.Context[Any] = zmq.Context()
    receiver = Receiver(own, tmp_path / "a.pipe", 2)
    sender = Sender(own, [tmp_path / "a.pipe"], 2)
    until(lambda: sender.send(bytes(1_000_000)))
    while sender.send(bytes(1_000_000)):
        pass
    started = time.monotonic()
    sender.close()
    receiver.close()
    own.term()
    assert time.monotonic() - started < 10


def test_a_path_too_long_says_which_setting_helps(context: zmq.Context[Any], tmp_path: Path) -> None:
    long = Path("/tmp") / ("ü" * 60)
    for make in (lambda: Receiver(context, long, 2), lambda: Sender(context, [long], 2)):
        with pytest.raises(PipePathError, match="runtime_dir"):
            make()
    fitting = tmp_path / "x"
    fill = MAX_PATH_BYTES - len(os.fsencode(fitting))
    if fill >= 0:
        receiver = Receiver(context, Path(f"{fitting}{'y' * fill}"), 2)
        receiver.close()


def test_a_missing_folder_is_named(context: zmq.Context[Any], tmp_path: Path) -> None:
    with pytest.raises(PipePathError, match="runtime_dir"):
        Receiver(context, tmp_path / "nowhere" / "a.pipe", 2)


def test_the_transport_bench_compares_all_ways() -> None:
    command = [sys.executable, "-m", "bench.transport", "--frames", "8", "--rounds", "1"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    for way in ("plain copy", "ring + pipes", "ZeroMQ by value", "multiprocessing.Queue"):
        assert way in found.stdout
