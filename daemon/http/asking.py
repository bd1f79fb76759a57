"""From HTTP to the API's thread and back: operations asked for, errors as answers."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from daemon.api.messages import MAX_BODY, MAX_DEPTH, ApiError, Operation, plain, read_operation
from daemon.api.server import Reply

STATUS: Mapping[str, int] = {
    "bad-request": 400, "wrong-version": 400, "no-token": 401, "path-refused": 403, "host-refused": 403,
    "origin-refused": 403, "unknown-op": 404, "no-such-page": 404, "wrong-method": 405, "not-ready": 409,
    "wrong-state": 409, "results-gone": 410, "too-large": 413, "range-refused": 416, "upload-damaged": 422,
    "too-slow": 408, "too-many-clients": 429, "too-many-waiting": 429, "internal": 500, "busy": 503,
    "queue-full": 503, "draining": 503, "results-away": 503, "deadline-exceeded": 504, "disk-full": 507,
}  # fmt: skip
"""The HTTP status of each error's name; what is not here is 404 if it begins with ``no-such-``, else 422."""
ANSWER_WITHIN = 660.0
"""Seconds after which an answer that the API's thread owes is given up: longer than any deadline of its own."""


class Asker(Protocol):
    """The API's server, see `daemon.api.server.Server`."""

    def ask(self, client: bytes, operation: Operation, blob: bytes = b"") -> Future[Reply]: ...
    def part(self, client: bytes) -> None: ...


class Asking:
    """Operations done by the API's thread for requests of an asyncio loop."""

    def __init__(self, server: Asker) -> None:
        self._server = server
        self._numbers = itertools.count()

    async def ask(self, name: str, values: Mapping[str, Any], blob: bytes | None = None, **more: Any) -> Reply:
        """Do one operation; ``more`` are `read_operation`'s.

        Raises:
            ApiError: it is refused.
        """
        async with self.client() as ask:
            found: Reply = await ask(name, values, blob, **more)
        return found

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Callable[..., Any]]:
        """Somebody who asks several times, such as for frames in order: what is kept for him is let go at the end."""
        me = b"http-%d" % next(self._numbers)

        async def ask(name: str, values: Mapping[str, Any], blob: bytes | None = None, **more: Any) -> Reply:
            operation = read_operation(name, values, blob, **more)
            future = asyncio.wrap_future(self._server.ask(me, operation, blob or b""))
            try:
                return await asyncio.wait_for(future, ANSWER_WITHIN)
            except asyncio.TimeoutError as error:
                raise ApiError("deadline-exceeded", "it was not done in time") from error

        try:
            yield ask
        finally:
            self._server.part(me)


def status_of(name: str) -> int:
    """The HTTP status of an error's name."""
    return STATUS.get(name, 404 if name.startswith("no-such-") else 422)


def refusal(error: ApiError) -> Response:
    """An error as an answer."""
    told = {"name": error.name, "message": str(error), **error.more}
    headers = {"WWW-Authenticate": "Bearer"} if error.name == "no-token" else None
    return Response(to_json({"error": told}), status_of(error.name), headers, "application/json")


async def answer(value: Any, status: int = 200) -> Response:
    """A map as JSON; made in another thread, for arrays take their time."""
    return Response(await run_in_threadpool(to_json, value), status, media_type="application/json")


def to_json(value: Any) -> bytes:
    """JSON in UTF-8, arrays as lists; numbers that are none become null."""
    try:
        return json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(plain(value)), separators=(",", ":"), ensure_ascii=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


async def read_body(request: Request, most: int) -> bytes:
    """The whole body.

    Raises:
        ApiError: ``too-large``; `ClientDisconnect` where it ends early.
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise ApiError("too-large", f"a body of {said} bytes; at most {most}")
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > most:
            raise ApiError("too-large", f"a body of more than {most} bytes")
    return bytes(found)


async def read_json(request: Request, most: int = MAX_BODY) -> dict[str, Any]:
    """The body's JSON object; an empty body is an empty one.

    Raises:
        ApiError: ``bad-request`` or ``too-large``.
    """
    body = await read_body(request, most)
    if not body:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # forms of foreign pages need no leave to be sent, this kind does
        raise ApiError("bad-request", f"Content-Type is {kind or 'missing'}: send JSON as application/json")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError("bad-request", f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise ApiError("bad-request", "the body must be a JSON object")
    if _deeper(values, MAX_DEPTH):
        raise ApiError("bad-request", f"the body is nested more than {MAX_DEPTH} deep")
    return values


def _deeper(value: Any, most: int) -> bool:
    if isinstance(value, dict | list):
        return most == 0 or any(
            _deeper(item, most - 1) for item in (value.values() if isinstance(value, dict) else value)
        )
    return False


__all__ = [
    "Asker",
    "Asking",
    "ClientDisconnect",
    "answer",
    "read_body",
    "read_json",
    "refusal",
    "status_of",
    "to_json",
]
