"""What travels in the pipes and the journal: versioned msgpack maps, arrays as dtype, shape and raw bytes.

An array is the map ``{"dtype": "<f4", "shape": [2, 3], "data": b"…"}``, always little-endian and
C-contiguous. It is decoded without copying its data, so decoded arrays are read-only.

Whatever is wrong with received bytes is a `WireError`: nothing is trusted that was not checked, and no memory
is reserved on the word of a message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgpack
import numpy as np

from stages.records import F32, Detections, Failure, People

VERSION = 2
"""Version of the messages. Processes of different versions refuse each other by name."""

MAX_DIMENSIONS = 16
"""More than any array here has, and fewer than numpy allows."""

DTYPES = {
    name: np.dtype(name)
    for name in (
        "|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16",
    )
}  # fmt: skip
"""The element types that travel; anything with pointers or fields in it does not."""

_ARRAY_KEYS = frozenset(("dtype", "shape", "data"))


class WireError(Exception):
    """Bytes that are not a value or message of this version, or a value that cannot travel."""


# -- values ------------------------------------------------------------------------------------------


def pack_value(value: Any) -> bytes:
    """Encode nested dicts, lists, tuples, None, booleans, numbers, strings, bytes and numpy arrays.

    Tuples come back as lists, numpy scalars as Python numbers. Equal values give equal bytes, as long as
    their dicts were filled in the same order.

    Raises:
        WireError: something else is in it, a number beyond 64 bits, or a dict with the keys of an array.
    """
    try:
        return bytes(msgpack.packb(_plain(value), use_bin_type=True))
    except (OverflowError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"value cannot travel: {error}") from error


def unpack_value(data: bytes) -> Any:
    """Decode what `pack_value` made.

    Raises:
        WireError: the bytes are cut, too long, nested too deeply, or hold an array that contradicts itself.
    """
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            object_hook=_from_map,
            ext_hook=_refuse_extension,
            timestamp=1,
        )
    except WireError:
        raise
    # msgpack raises ValueErrors of its own besides; TypeError is a map key that cannot be one.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"malformed value of {len(data)} bytes: {type(error).__name__}: {error}") from error


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, np.ndarray):
        return _array_map(value)
    if isinstance(value, Mapping):
        if value.keys() == _ARRAY_KEYS:
            raise WireError("a map with exactly the keys dtype, shape and data would come back as an array")
        for key in value:
            if not isinstance(key, str | int):
                raise WireError(f"map keys must be strings or integers, not {type(key).__name__}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise WireError(f"a {type(value).__name__} cannot travel")


def _array_map(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    little = array.dtype.newbyteorder("<")
    if little.str not in DTYPES:
        raise WireError(f"an array of dtype {array.dtype} cannot travel; known are {', '.join(DTYPES)}")
    if array.ndim > MAX_DIMENSIONS:
        raise WireError(f"an array of {array.ndim} dimensions cannot travel; at most {MAX_DIMENSIONS} do")
    return {
        "dtype": little.str,
        "shape": list(array.shape),
        "data": array.astype(little, order="C", copy=False).tobytes(),
    }


def _from_map(values: dict[Any, Any]) -> Any:
    if values.keys() != _ARRAY_KEYS:
        return values
    name, shape, data = values["dtype"], values["shape"], values["data"]
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise WireError(f"array of dtype {name!r}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise WireError(f"array shape must be a list of at most {MAX_DIMENSIONS} sizes")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise WireError(f"array shape {shape} must be integers from 0")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise WireError(f"array of dtype {name} and shape {shape} does not fit its data ({size})")
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # an empty array with sizes beyond numpy's
        raise WireError(f"array shape {shape}: {error}") from error


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError(f"msgpack extension {code} ({len(data)} bytes)")


# -- detections and people -----------------------------------------------------------------------------

_PEOPLE_SHAPES: dict[str, tuple[int, ...]] = {
    "boxes": (4,), "scores": (), "camera": (3,), "pose": (24, 3, 3), "betas": (10,), "joints_3d": (24, 3),
    "joints_2d": (24, 2),
}  # fmt: skip
_DETECTION_SHAPES: dict[str, tuple[int, ...]] = {"boxes": (4,), "scores": ()}


def encode_people(people: People) -> dict[str, Any]:
    """`People` as a map that `pack_value` takes; float arrays become float32.

    Raises:
        WireError: an array has not the shape that `People` says.
    """
    values = _encode(people, _PEOPLE_SHAPES)
    if people.vertices is not None:
        vertices = np.asarray(people.vertices, np.float32)
        _check_vertices(vertices, len(values["scores"]))
        values["vertices"] = vertices
    return values


def decode_people(values: Any) -> People:
    """The inverse of `encode_people`, after `unpack_value`.

    Raises:
        WireError: a field is missing or has another dtype or shape.
    """
    arrays = _decode(values, _PEOPLE_SHAPES, "people")
    vertices = values.get("vertices")
    if vertices is not None:
        _check_vertices(vertices, len(arrays["scores"]))
    return People(**arrays, vertices=vertices, extra=_extra(values))


def encode_detections(detections: Detections) -> dict[str, Any]:
    """`Detections` as a map that `pack_value` takes; raises `WireError` as `encode_people` does."""
    return _encode(detections, _DETECTION_SHAPES)


def decode_detections(values: Any) -> Detections:
    """The inverse of `encode_detections`; raises `WireError` as `decode_people` does."""
    return Detections(**_decode(values, _DETECTION_SHAPES, "detections"), extra=_extra(values))


def _encode(record: Detections | People, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    values: dict[str, Any] = {name: np.asarray(getattr(record, name), np.float32) for name in shapes}
    count = len(record)
    for name, shape in shapes.items():
        if values[name].shape != (count, *shape):
            raise WireError(f"{name} has shape {values[name].shape}, not {(count, *shape)}")
    if record.extra:
        values["extra"] = record.extra
    return values


def _decode(values: Any, shapes: Mapping[str, tuple[int, ...]], what: str) -> dict[str, F32]:
    if not isinstance(values, dict):
        raise WireError(f"{what} must be a map, not {type(values).__name__}")
    arrays: dict[str, F32] = {}
    count: int | None = None
    for name, shape in shapes.items():
        array = values.get(name)
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != len(shape) + 1:
            raise WireError(f"{what}.{name} must be a float32 array of shape (N, {', '.join(map(str, shape))})")
        count = len(array) if count is None else count
        if array.shape != (count, *shape):
            raise WireError(f"{what}.{name} has shape {array.shape}, not {(count, *shape)}")
        arrays[name] = array
    return arrays


def _check_vertices(array: Any, count: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 3:
        raise WireError("people.vertices must be a float32 array of shape (N, V, 3)")
    if len(array) != count or array.shape[2] != 3:
        raise WireError(f"people.vertices has shape {array.shape}, not ({count}, V, 3)")


def _extra(values: dict[str, Any]) -> dict[str, Any]:
    extra = values.get("extra", {})
    if not isinstance(extra, dict):
        raise WireError(f"extra must be a map, not {type(extra).__name__}")
    return extra


# -- messages ------------------------------------------------------------------------------------------


@dataclass
class FrameMessage:
    """One frame on its way through the stages.

    ``slot`` and ``generation`` say where its pixels stand in the ring (-1: nowhere); ``time`` is in seconds,
    ``width`` and ``height`` in pixels. What is ``urgent`` travels in the pipes' urgent lanes. A stage fills in what
    it found, or why there is nothing. ``state`` is a follower's (`stages.protocols.Follower`): before mesh it stands in
    the first frame of a job that decode emits in an epoch, and is what was known before that frame; behind mesh it
    stands in every frame, and is what was known after it.
    """

    epoch: int
    job: int
    frame: int
    time: float
    slot: int = -1
    generation: int = 0
    width: int = 0
    height: int = 0
    detections: Detections | None = None
    people: People | None = None
    failed: Failure | None = None
    urgent: bool = False
    state: bytes | None = None
    about: dict[str, Any] = field(default_factory=dict)
    """What the record is to say of the picture: ``damaged``, ``source`` and ``size`` of `FrameRecord`, where there are
    any."""


@dataclass
class EndMessage:
    """Follows a job's last frame: ``frames`` is how many there are, ``truncated`` why not more."""

    epoch: int
    job: int
    frames: int
    truncated: str | None = None
    info: dict[str, Any] = field(default_factory=dict)
    urgent: bool = False


Message: TypeAlias = FrameMessage | EndMessage


def pack(message: Message) -> bytes:
    """Encode a message.

    Raises:
        WireError: it holds something that cannot travel.
    """
    values: dict[str, Any] = {
        "version": VERSION, "epoch": message.epoch, "job": message.job, "urgent": message.urgent
    }  # fmt: skip
    if isinstance(message, EndMessage):
        values |= {
            "kind": "end",
            "frames": message.frames,
            "truncated": message.truncated,
            "info": message.info,
        }
        return pack_value(values)
    values |= {
        "kind": "frame", "frame": message.frame, "time": message.time, "slot": message.slot,
        "generation": message.generation, "width": message.width, "height": message.height,
    }  # fmt: skip
    if message.detections is not None:
        values["detections"] = encode_detections(message.detections)
    if message.people is not None:
        values["people"] = encode_people(message.people)
    if message.failed is not None:
        values["failed"] = [message.failed.stage, message.failed.reason]
    if message.state is not None:
        values["state"] = message.state
    if message.about:
        values["about"] = message.about
    return pack_value(values)


def unpack(data: bytes) -> Message:
    """Decode a message.

    Raises:
        WireError: the bytes are no message, or one of another version.
    """
    values = unpack_value(data)
    if not isinstance(values, dict):
        raise WireError(f"a message must be a map, not {type(values).__name__}")
    version = values.get("version")
    if version != VERSION:
        raise WireError(f"message of version {version!r}, but this process speaks version {VERSION}")
    kind = values.get("kind")
    if kind == "end":
        return EndMessage(
            epoch=_integer(values, "epoch"),
            job=_integer(values, "job"),
            frames=_integer(values, "frames"),
            truncated=_text_or_none(values, "truncated"),
            info=_map(values, "info"),
            urgent=_flag(values, "urgent"),
        )
    if kind != "frame":
        raise WireError(f"message of unknown kind {kind!r}")
    detections, people = values.get("detections"), values.get("people")
    return FrameMessage(
        epoch=_integer(values, "epoch"),
        job=_integer(values, "job"),
        frame=_integer(values, "frame"),
        time=_number(values, "time"),
        slot=_integer(values, "slot", least=-1),
        generation=_integer(values, "generation"),
        width=_integer(values, "width"),
        height=_integer(values, "height"),
        detections=None if detections is None else decode_detections(detections),
        people=None if people is None else decode_people(people),
        failed=_failure(values.get("failed")),
        urgent=_flag(values, "urgent"),
        state=_bytes_or_none(values, "state"),
        about=_map(values, "about") if "about" in values else {},
    )


def _integer(values: dict[str, Any], key: str, least: int = 0) -> int:
    value = values.get(key)
    if type(value) is not int or value < least:
        raise WireError(f"{key} must be an integer from {least}, not {_shortly(value)}")
    return value


def _number(values: dict[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f"{key} must be a finite number, not {_shortly(value)}")
    return float(value)


def _flag(values: dict[str, Any], key: str) -> bool:
    value = values.get(key)
    if not isinstance(value, bool):
        raise WireError(f"{key} must be true or false, not {_shortly(value)}")
    return value


def _text_or_none(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise WireError(f"{key} must be text, not {_shortly(value)}")
    return value


def _bytes_or_none(values: dict[str, Any], key: str) -> bytes | None:
    value = values.get(key)
    if value is not None and not isinstance(value, bytes):
        raise WireError(f"{key} must be bytes, not {_shortly(value)}")
    return value


def _map(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    if not isinstance(value, dict):
        raise WireError(f"{key} must be a map, not {_shortly(value)}")
    return value


def _failure(value: Any) -> Failure | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(item, str) for item in value):
        raise WireError(f"failed must be a stage and a reason, not {_shortly(value)}")
    return Failure(*value)


def _shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
