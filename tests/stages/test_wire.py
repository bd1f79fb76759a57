"""Values and messages survive the wire exactly, and nothing hostile gets through it."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.records import Detections, Failure, People
from stages.transport.wire import (
    DTYPES,
    VERSION,
    EndMessage,
    FrameMessage,
    WireError,
    decode_people,
    encode_people,
    pack,
    pack_value,
    unpack,
    unpack_value,
)

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text(max_size=20) | st.binary(max_size=20)
)  # fmt: skip
arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
keys = st.text(max_size=8) | st.integers(-100, 100)
values = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(values)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert same(value, unpack_value(pack_value(value)))


def test_arrays_of_any_layout_arrive_little_endian_and_contiguous() -> None:
    base = np.arange(24, dtype=">f4").reshape(4, 6)
    for array in (base, base.T, base[::2, ::-1], np.asfortranarray(base)):
        found = unpack_value(pack_value(array))
        assert found.dtype.str == "<f4"
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, array)


def test_decoded_arrays_share_the_memory_of_their_bytes() -> None:
    found = unpack_value(pack_value(np.arange(10, dtype=np.float32)))
    assert not found.flags.owndata
    assert not found.flags.writeable


def test_scalars_and_tuples_become_plain() -> None:
    found = unpack_value(pack_value((np.float32(0.5), np.int64(3), np.bool_(True))))
    assert found == [0.5, 3, True]
    assert [type(item) for item in found] == [float, int, bool]


@pytest.mark.parametrize(
    "value",
    [
        object(), {1, 2}, np.array([None]), np.array(["text"]), np.zeros(2, "V4"), np.zeros(2, "M8[s]"), 2**64,
        {"dtype": 1, "shape": 2, "data": 3}, {(1, 2): 3}, np.zeros((1,) * 17), {1.5: 2},
    ],
)  # fmt: skip
def test_what_cannot_travel_is_refused_by_the_sender(value: Any) -> None:
    with pytest.raises(WireError):
        pack_value([value])


def array_map(dtype: Any = "<f4", shape: Any = (2,), data: Any = bytes(8)) -> bytes:
    return bytes(msgpack.packb({"dtype": dtype, "shape": shape, "data": data}))


@pytest.mark.parametrize(
    "data",
    [
        array_map(dtype="|O"), array_map(dtype="<U2"), array_map(dtype=">f4"), array_map(dtype="f4,f4"),
        array_map(dtype=4), array_map(dtype=[["a", "<f4"]]), array_map(shape=(3,)), array_map(shape=(-2,)),
        array_map(shape=(-1, -2)), array_map(shape=2), array_map(shape=(2.0,)), array_map(shape=(True, 2)),
        array_map(shape=(2**62, 2**62)), array_map(shape=(0, 2**63), data=b""), array_map(data="12345678"),
        array_map(shape=(1,) * 40 + (2,)), array_map(shape=("2",)), array_map(data=b"1234567"),
        b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\x81\x90\x01", b"\xd4\x05\x00", b"\xa1\xff",
        b"\x91" * 5000 + b"\x01",
    ],
)  # fmt: skip
def test_contradictory_bytes_are_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack_value(data)


def test_a_length_that_lies_reserves_no_memory() -> None:
    tracemalloc.start()
    try:
        for lie in (b"\xc6\xff\xff\xff\xff1", b"\xdd\xff\xff\xff\xff1", b"\xdf\xff\xff\xff\xff1"):
            with pytest.raises(WireError):
                unpack_value(lie)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        unpack(data)


def people(count: int, seed: int = 0, vertices: int | None = 5) -> People:
    chance = np.random.default_rng(seed)

    def some(*shape: int) -> Any:
        return chance.normal(size=(count, *shape)).astype(np.float32)

    return People(
        some(4), some(), some(3), some(24, 3, 3), some(10), some(24, 3), some(24, 2),
        None if vertices is None else some(vertices, 3), {"uv": some(2, 4), "name": "x"},
    )  # fmt: skip


def full_message(count: int = 2) -> FrameMessage:
    found = Detections(np.ones((count, 4), np.float32), np.ones(count, np.float32), {"mask": [b"rle"] * count})
    return FrameMessage(
        3, 1, 7, 0.25, 4, 10, 1920, 1080, found, people(count), Failure("mesh", "it would not")
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_full_message_arrives_whole(count: int) -> None:
    sent = full_message(count)
    found = unpack(pack(sent))
    assert isinstance(found, FrameMessage)
    assert (found.epoch, found.job, found.frame, found.time) == (3, 1, 7, 0.25)
    assert (found.slot, found.generation, found.width, found.height) == (4, 10, 1920, 1080)
    assert found.failed == sent.failed
    assert found.people is not None and found.detections is not None
    assert same(vars(found.people), vars(sent.people))
    assert same(vars(found.detections), vars(sent.detections))


def test_an_end_message_arrives_whole() -> None:
    sent = EndMessage(2, 1, 100, "cut off", {"codec": "h264"})
    assert unpack(pack(sent)) == sent


def changed(**changes: Any) -> bytes:
    return pack_value({**unpack_value(pack(full_message())), **changes})


def test_another_version_is_refused_by_its_number() -> None:
    with pytest.raises(WireError, match=rf"version {VERSION + 1}.*version {VERSION}"):
        unpack(changed(version=VERSION + 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"}, {"epoch": -1}, {"epoch": "1"}, {"job": True}, {"frame": 1.5}, {"time": float("nan")},
        {"time": None}, {"slot": -2}, {"width": None}, {"urgent": 1}, {"failed": "why"}, {"failed": ["mesh", 3]},
        {"people": 3}, {"people": {}}, {"detections": []}, {"version": None},
    ],
)  # fmt: skip
def test_wrong_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        unpack(changed(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"pose": np.zeros((2, 23, 3, 3), np.float32)}, {"boxes": np.zeros((2, 4))}, {"vertices": [1]},
        {"scores": np.zeros(3, np.float32)}, {"vertices": np.zeros((3, 5, 3), np.float32)}, {"extra": [1]},
        {"camera": None}, {"vertices": np.zeros((2, 5, 2), np.float32)},
    ],
)  # fmt: skip
def test_people_that_contradict_themselves_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        decode_people({**encode_people(people(2)), **changes})


def test_people_of_a_wrong_shape_are_refused_by_the_sender() -> None:
    wrong = people(2)
    wrong.betas = wrong.betas[:, :9]
    with pytest.raises(WireError, match="betas"):
        encode_people(wrong)
