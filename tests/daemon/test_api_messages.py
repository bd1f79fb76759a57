"""Requests from strangers: whatever the bytes, the answer is a request or a named refusal."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.api import messages as ms
from daemon.api.messages import ApiError, read_id, read_request, write_error, write_event, write_reply
from daemon.client import messages as client
from daemon.client.messages import events_address

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NAMES = {"bad-request", "wrong-version", "unknown-op", "too-large"}


def read(body: bytes, blob: bytes | None = None) -> str:
    """The operation's name, or the error's."""
    read_id(body)
    try:
        return read_request(body, blob).operation.op
    except ApiError as error:
        assert error.name in NAMES and str(error)
        msgpack.unpackb(write_error(None, error)[0])
        return error.name


@given(st.binary(max_size=400), st.none() | st.binary(max_size=10))
def test_any_bytes(body: bytes, blob: bytes | None) -> None:
    read(body, blob)


@given(PLAIN, st.none() | st.binary(max_size=10))
def test_any_value(value: Any, blob: bytes | None) -> None:
    read(msgpack.packb(value), blob)


@given(
    st.sampled_from(sorted(ms.OPERATIONS)),
    st.dictionaries(
        st.sampled_from(sorted({f for kind in ms.OPERATIONS.values() for f in kind.__annotations__}) + ["x"]),
        PLAIN,
    ),
    st.none() | st.binary(max_size=10),
)
def test_any_arguments(op: str, arguments: dict[str, Any], blob: bytes | None) -> None:
    assert read(msgpack.packb({"v": 1, "id": 7, "op": op, **arguments}), blob) in {op, *NAMES}


@given(st.data())
def test_a_request_with_one_byte_changed(data: st.DataObject) -> None:
    body = bytearray(
        client.write(3, "submit", {"path": "/videos/a.mp4", "priority": 1, "exports": ["glb"]}, None)[0]
    )
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(body))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"v": 2, "id": 1, "op": "hello"}, "wrong-version"),
        ({"id": 1, "op": "hello"}, "wrong-version"),
        ({"v": 1, "id": -1, "op": "hello"}, "bad-request"),
        ({"v": 1, "id": "x" * 65, "op": "hello"}, "bad-request"),
        ({"v": 1, "id": 1, "op": "helo"}, "unknown-op"),
        ({"v": 1, "id": 1, "op": ["hello"]}, "unknown-op"),
        ({"v": 1, "id": 1, "op": "hello", "more": 1}, "bad-request"),
        ({"v": 1, "id": 1, "op": "status", "job": 5}, "bad-request"),
        ({"v": 1, "id": 1, "op": "wait", "job": "j", "timeout": 601}, "bad-request"),
        ({"v": 1, "id": 1, "op": "wait", "job": "j", "timeout": float("nan")}, "bad-request"),
        ({"v": 1, "id": 1, "op": "wait"}, "bad-request"),
        ({"v": 1, "id": 1, "op": "submit", "path": "/x", "priority": 101}, "bad-request"),
        ({"v": 1, "id": 1, "op": "submit", "path": "/x", "recompute": 1}, "bad-request"),
        ({"v": 1, "id": 1, "op": "chunk", "upload": "u", "offset": 0}, "bad-request"),
    ],
)
def test_what_is_refused_and_how(body: dict[str, Any], name: str) -> None:
    assert read(msgpack.packb(body)) == name


def test_the_nearest_operation_is_named() -> None:
    with pytest.raises(ApiError, match="did you mean submit"):
        read_request(msgpack.packb({"v": 1, "id": 1, "op": "submti"}), None)


def test_deep_wide_and_long_bodies() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    assert read(msgpack.packb({"v": 1, "id": 1, "op": "hello", "x": deep})) == "bad-request"
    assert read(b"\x91" * 100_000) == "bad-request"
    assert read(b"\xdf\xff\xff\xff\xff") == "bad-request"  # a map of four thousand million entries
    assert read(b"\xc6\xff\xff\xff\xff") == "bad-request"
    assert read(msgpack.packb({"v": 1, "id": 1, "op": "hello", "x": "y" * (1 << 17)})) == "bad-request"
    assert read(b"\x80" * (ms.MAX_BODY + 1)) == "too-large"


def test_arrays_lie_aligned_and_come_back_without_copying() -> None:
    arrays = {"a": np.arange(5, dtype=np.float32), "b": [np.ones((2, 3), np.int32), np.zeros(0, np.float32)]}
    parts = write_reply(4, {**arrays, "text": "ü"})
    number, found = client.read(parts)
    assert number == 4 and found["text"] == "ü"
    assert np.array_equal(found["a"], arrays["a"]) and np.array_equal(found["b"][0], arrays["b"][0])
    assert found["b"][1].shape == (0,) and found["a"].base is not None
    described = msgpack.unpackb(parts[0])
    assert described["a"]["dtype"] == "<f4" and all(
        item["at"] % 8 == 0 for item in [described["a"], *described["b"]]
    )


def test_a_big_endian_array_travels_as_little_endian() -> None:
    _, found = client.read(write_reply(1, {"a": np.arange(3, dtype=">f4")}))
    assert found["a"].dtype == np.dtype("<f4") and found["a"].tolist() == [0, 1, 2]


def test_file_names_that_are_no_utf8_do_not_stop_a_reply() -> None:
    _, found = client.read(write_reply(1, {"name": "a\udcff.mp4", "more": [{"b": "\udc80"}]}))
    assert found["name"] == "a\ufffd.mp4"
    assert msgpack.unpackb(write_event({"name": "\udcff"}))["name"] == "\ufffd"


@pytest.mark.parametrize(
    ("told", "requests", "reached"),
    [
        ("tcp://0.0.0.0:5556", "tcp://box.example:5555", "tcp://box.example:5556"),
        ("tcp://[::]:5556", "tcp://[fe80::1]:5555", "tcp://[fe80::1]:5556"),
        ("tcp://127.0.0.1:5556", "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"),
        ("ipc:///run/poseward/events.sock", "ipc:///run/poseward/api.sock", "ipc:///run/poseward/events.sock"),
        ("ipc:///run/poseward/events.sock", "tcp://box:5555", "ipc:///run/poseward/events.sock"),
    ],
)
def test_events_are_at_the_host_where_the_daemon_answers(told: str, requests: str, reached: str) -> None:
    """What the daemon is bound to is often no address for anybody else."""
    assert events_address(told, requests) == reached
