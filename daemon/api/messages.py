"""Requests and replies as bytes. Nothing here trusts what it reads.

A request's body is a msgpack map; each operation's arguments are one dataclass, validated strictly. Arrays of a
reply stand in its second part, each at a multiple of 8 bytes, so that clients use them where they lie.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgpack
import numpy as np
from annotated_types import Ge, Interval, Le, MaxLen, MinLen
from pydantic import TypeAdapter, ValidationError

VERSION = 1
MAX_BODY = 1 << 20
MAX_TEXT = 1 << 16
MAX_DEPTH = 32
MAX_ITEMS = 10_000
ALIGN = 8
DEADLINE = 10.0
"""Seconds within which a request that names no ``timeout`` is answered."""

Id = Annotated[str, MinLen(1), MaxLen(64)]
Timeout = Annotated[float | int, Interval(ge=0, le=600)]
Offset = Annotated[int, Interval(ge=0, le=1 << 62)]


class ApiError(Exception):
    """A request that is refused: ``name`` is one of docs/protocol.md, ``more`` goes into the error map."""

    def __init__(self, name: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.name = name
        self.more = more


@dataclass(frozen=True)
class Operation:
    """Base of all operations; ``op`` is its name, ``blob`` whether a second part is demanded."""

    op: ClassVar[str]
    blob: ClassVar[bool] = False


@dataclass(frozen=True)
class Hello(Operation):
    op = "hello"


@dataclass(frozen=True)
class Submit(Operation):
    op = "submit"
    path: Annotated[str, MaxLen(4096)] | None = None
    upload: Id | None = None
    name: Annotated[str, MinLen(1), MaxLen(255)] | None = None
    key: Annotated[str, MinLen(1), MaxLen(200)] | None = None
    priority: Annotated[int, Interval(ge=-100, le=100)] = 0
    exports: Annotated[list[Id], MaxLen(16)] | None = None
    recompute: bool = False
    stream: Annotated[int, Interval(ge=0, le=1 << 16)] | None = None


@dataclass(frozen=True)
class Upload(Operation):
    op = "upload"
    name: Annotated[str, MinLen(1), MaxLen(255)]
    size: Annotated[int, Interval(ge=1, le=1 << 62)]
    sha256: Annotated[str, MinLen(64), MaxLen(64)]


@dataclass(frozen=True)
class Chunk(Operation):
    op = "chunk"
    blob = True
    upload: Id
    offset: Offset


@dataclass(frozen=True)
class Image(Operation):
    op = "image"
    blob = True
    vertices: bool = True
    timeout: Timeout = 60.0


@dataclass(frozen=True)
class Status(Operation):
    op = "status"
    job: Id | None = None
    key: Annotated[str, MinLen(1), MaxLen(200)] | None = None


@dataclass(frozen=True)
class Listing(Operation):
    op = "list"
    states: Annotated[list[Literal["queued", "running", "done", "failed", "cancelled"]], MaxLen(5)] | None = None
    limit: Annotated[int, Interval(ge=1, le=1000)] = 100
    before: Annotated[int, Ge(0), Le(1 << 62)] | None = None
    text: Annotated[str, MaxLen(255)] = ""


@dataclass(frozen=True)
class Wait(Operation):
    op = "wait"
    job: Id
    timeout: Timeout = DEADLINE
    committed: Offset | None = None


@dataclass(frozen=True)
class Cancel(Operation):
    op = "cancel"
    job: Id


@dataclass(frozen=True)
class Retry(Operation):
    op = "retry"
    job: Id


@dataclass(frozen=True)
class Results(Operation):
    op = "results"
    job: Id


@dataclass(frozen=True)
class File(Operation):
    op = "file"
    job: Id
    name: Annotated[str, MinLen(1), MaxLen(255)]
    offset: Offset = 0
    size: Offset | None = None


@dataclass(frozen=True)
class Frames(Operation):
    op = "frames"
    job: Id
    start: Offset = 0
    count: Annotated[int, Interval(ge=1, le=100_000)] = 100
    timeout: Timeout = 0.0
    vertices: bool = True


@dataclass(frozen=True)
class Subject(Operation):
    op = "subject"
    job: Id
    who: Id = "auto"
    start: Offset = 0
    count: Annotated[int, Interval(ge=1, le=100_000)] = 100
    timeout: Timeout = DEADLINE
    vertices: bool = True


@dataclass(frozen=True)
class Health(Operation):
    op = "health"


@dataclass(frozen=True)
class Reset(Operation):
    op = "reset"
    stage: Id


@dataclass(frozen=True)
class Reload(Operation):
    op = "reload"
    stage: Id | None = None


@dataclass(frozen=True)
class Drain(Operation):
    op = "drain"
    on: bool


OPERATIONS: Mapping[str, type[Operation]] = {
    kind.op: kind
    for kind in (
        Hello, Submit, Upload, Chunk, Image, Status, Listing, Wait, Cancel, Retry, Results, File, Frames, Subject,
        Health, Reset, Reload, Drain,
    )
}  # fmt: skip
_ADAPTERS = {
    name: {
        field: TypeAdapter(hint)
        for field, hint in typing.get_type_hints(kind, include_extras=True).items()
        if typing.get_origin(hint) is not ClassVar
    }
    for name, kind in OPERATIONS.items()
}
_REQUIRED = {
    name: [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    for name, kind in OPERATIONS.items()
}


@dataclass(frozen=True)
class Request:
    """A request that has been read. ``id`` is the client's; ``operation`` has valid arguments."""

    id: int | str
    operation: Operation
    blob: bytes = b""


def read_id(body: bytes) -> int | str | None:
    """The id of a request, as far as one can be found: for the reply that refuses it."""
    try:
        found = _unpack(body).get("id")
    except ApiError:
        return None
    return found if _is_id(found) else None


def read_request(body: bytes, blob: bytes | None) -> Request:
    """Read one request.

    Raises:
        ApiError: ``bad-request``, ``wrong-version``, ``unknown-op`` or ``too-large``.
    """
    values = _unpack(body)
    if values.pop("v", None) != VERSION:
        raise ApiError("wrong-version", f"v must be {VERSION}", versions=[VERSION])
    number = values.pop("id", None)
    if not _is_id(number):
        raise ApiError("bad-request", "id must be an unsigned integer or a text of at most 64 characters")
    name = values.pop("op", None)
    if not isinstance(name, str) or name not in OPERATIONS:
        close = (
            difflib.get_close_matches(name, OPERATIONS, n=1) if isinstance(name, str) and len(name) < 64 else []
        )
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(OPERATIONS)}"
        raise ApiError("unknown-op", f"no operation {str(name)[:64]!r}{hint}")
    return Request(number, read_operation(name, values, blob), blob or b"")


def read_operation(name: str, values: Mapping[str, Any], blob: bytes | None, *, strict: bool = True) -> Operation:
    """One operation of `OPERATIONS` with its arguments; where they are not ``strict``, numbers may be texts.

    Raises:
        ApiError: ``bad-request``.
    """
    kind = OPERATIONS[name]
    if unknown := [str(key)[:64] for key in values if key not in _ADAPTERS[name]]:
        known = ", ".join(_ADAPTERS[name]) or "none"
        raise ApiError("bad-request", f"{name} has no argument {unknown[0]!r}; it has {known}")
    if kind.blob and blob is None:
        raise ApiError("bad-request", f"{name} needs a second part: the bytes")
    if blob and not kind.blob:
        raise ApiError("bad-request", f"{name} takes no second part")
    if missing := [field for field in _REQUIRED[name] if field not in values]:
        raise ApiError("bad-request", f"{name} needs {missing[0]}")
    arguments = {}
    for field, value in values.items():
        try:
            arguments[field] = _ADAPTERS[name][field].validate_python(value, strict=strict)
        except ValidationError as error:
            raise ApiError("bad-request", f"{name}: {field}: {error.errors()[0]['msg']}") from error
    return kind(**arguments)


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= 64
    return type(value) is int and value >= 0


def _unpack(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY:
        raise ApiError("too-large", f"a body of {len(body)} bytes; at most {MAX_BODY}")
    try:
        values = msgpack.unpackb(
            body, raw=False, strict_map_key=True, use_list=True, max_str_len=MAX_TEXT, max_bin_len=MAX_TEXT,
            max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0,
        )  # fmt: skip
    except Exception as error:  # msgpack has many: ValueErrors of several kinds, RecursionError, …
        raise ApiError("bad-request", f"the body is not msgpack within the limits: {str(error)[:200]}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ApiError("bad-request", "the body must be a map with texts as keys")
    _check_depth(values)
    return values


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ApiError("bad-request", f"the body is nested more than {MAX_DEPTH} deep")


# -- replies -----------------------------------------------------------------------------------------------


def write_reply(number: int | str | None, results: Mapping[str, Any], blob: bytes | None = None) -> list[bytes]:
    """The parts of a reply; arrays in ``results`` make the blob, unless one is given."""
    body: dict[str, Any] = {"v": VERSION, "id": number, "ok": True, **results}
    if blob is not None:
        return [msgpack.packb(body, default=_text), blob]
    arrays = bytearray()
    body = _lift(body, arrays)
    packed = msgpack.packb(body, default=_text)
    return [packed, bytes(arrays)] if arrays else [packed]


def write_error(number: int | str | None, error: ApiError) -> list[bytes]:
    """The reply to a request that is refused."""
    told = {"name": error.name, "message": str(error), **error.more}
    return [msgpack.packb({"v": VERSION, "id": number, "ok": False, "error": _clean(told)}, default=_text)]


def write_event(values: Mapping[str, Any]) -> bytes:
    """The second part of an event; arrays stand inside the map."""
    return bytes(msgpack.packb(_clean({"v": VERSION, **values}), default=inside))


def _lift(value: Any, arrays: bytearray) -> Any:
    """The same value with each array's elements moved to ``arrays``."""
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        arrays += bytes(-len(arrays) % ALIGN)
        at = len(arrays)
        arrays += little.tobytes()
        return {"dtype": little.dtype.str, "shape": list(value.shape), "at": at}
    if isinstance(value, Mapping):
        return {_text(key) if isinstance(key, str) else key: _lift(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_lift(item, arrays) for item in value]
    return _text(value) if isinstance(value, str) else value


def _clean(value: Any) -> Any:
    """Texts that are not UTF-8 (file names) with the replacement character."""
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """The same value as JSON has it: arrays as nested lists, numbers in them to a millionth."""
    if isinstance(value, np.ndarray):
        return (value.astype(np.float64).round(6) if value.dtype.kind == "f" else value).tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, bool | int | float) else _text(value)


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace" if value.isascii() else "surrogateescape").decode(
            "utf-8", "replace"
        )
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def inside(value: Any) -> Any:
    """msgpack's ``default`` for arrays that stand inside the map."""
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        return {"dtype": little.dtype.str, "shape": list(value.shape), "data": little.tobytes()}
    return _text(value)


def plain_record(record: Any, *, vertices: bool) -> dict[str, Any]:
    """A `FrameRecord` as the map that clients get, arrays as they are."""
    from stages.results.stream import encode_record

    found = encode_record(record)
    if not vertices:
        for track in found["tracks"]:
            track.pop("vertices", None)
    return found
