"""Requests and replies on the client's side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from stages.records import FrameRecord, Header
from stages.results.stream import decode_header, decode_record

VERSION = 1


class ClientError(Exception):
    """A request that was refused or not answered. ``name`` is one of docs/protocol.md, or ``timeout`` or
    ``closed``; ``more`` is what the daemon said besides."""

    def __init__(self, name: str, message: str, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message
        self.more = dict(more or {})


def closed() -> ClientError:
    """What ends whatever is under way when its client is closed."""
    return ClientError("closed", "the client was closed")


@dataclass(frozen=True)
class Page:
    """A piece of a job's records. ``next`` is the frame to go on with; with ``end`` there are no more."""

    header: Header | None
    records: list[FrameRecord]
    next: int
    end: bool
    state: str


def write(number: int, op: str, arguments: Mapping[str, Any], blob: bytes | None) -> list[bytes]:
    """A request's parts. Arguments that are None are left out."""
    given = {name: value for name, value in arguments.items() if value is not None}
    body = msgpack.packb({"v": VERSION, "id": number, "op": op, **given})
    return [body] if blob is None else [body, blob]


def read(parts: list[bytes]) -> tuple[Any, dict[str, Any]]:
    """A reply's id and results; a blob that holds no arrays is ``blob`` in them.

    Raises:
        ClientError: the daemon refused; ``more["id"]`` is the request's.
    """
    body = msgpack.unpackb(parts[0], raw=False)
    number = body.pop("id", None)
    if not body.get("ok"):
        error = body.get("error", {})
        name, message = error.pop("name", "internal"), error.pop("message", "")
        raise ClientError(name, message, {**error, "id": number})
    if len(parts) > 1:
        body = _arrays(body, parts[1])
        body["blob"] = parts[1]
    return number, body


def record(values: Mapping[str, Any]) -> FrameRecord:
    """A record of a reply; its arrays are read-only views of the message."""
    return decode_record(values)


def page(found: Mapping[str, Any]) -> Page:
    """The reply to ``frames``."""
    return Page(
        decode_header(found["header"]) if found["header"] else None,
        [record(values) for values in found["records"]],
        found["next"],
        found["end"],
        found["state"],
    )


def _arrays(value: Any, blob: bytes) -> Any:
    """The same value with views of ``blob`` where arrays are described."""
    if isinstance(value, dict):
        if value.keys() == {"dtype", "shape", "at"}:
            dtype = np.dtype(value["dtype"])
            count = int(np.prod(value["shape"], dtype=np.int64))
            return np.frombuffer(blob, dtype, count, value["at"]).reshape(value["shape"])
        return {key: _arrays(item, blob) for key, item in value.items()}
    if isinstance(value, list):
        return [_arrays(item, blob) for item in value]
    return value


def events_address(told: str, requests: str) -> str:
    """The address of the events as this client reaches it: the daemon names the host that it is bound to, which from
    elsewhere is another one (``0.0.0.0``, a name inside of a container).

    Args:
        told: by the daemon.
        requests: at which this client reaches it.
    """
    port = re.search(r":\d+$", told)
    if port is None or not (told.startswith("tcp://") and requests.startswith("tcp://")):
        return told
    return re.sub(r":\d+$", port[0], requests)
