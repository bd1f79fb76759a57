"""Streams that go on for as long as a job does: frames, as msgpack or as JSON lines, and events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgpack
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from daemon.api.messages import ApiError, inside
from daemon.http.asking import Asking, to_json
from daemon.http.routes import arguments

AT_ONCE = 50
PATIENCE = 20.0
"""Seconds that one look for further frames waits."""
MOST_EVENTS = 500
"""Events kept for a listener that is slow; then the oldest are left out, as its ``seq`` shows."""
ALIVE_EVERY = 15.0
TOPICS = ("job.", "stage.", "memory", "daemon")


def frames_routes(asking: Asking) -> list[Route]:
    """``frames.msgpack`` and ``frames.ndjson`` of a job, done or running: the header, then every frame."""

    def route(name: str, kind: str, vertices: bool, pack: Any) -> Route:
        async def stream(request: Request) -> Response:
            values = arguments(request, {"start": 0, "vertices": vertices})
            if unknown := values.keys() - {"start", "vertices"}:
                raise ApiError(
                    "bad-request", f"{name} has no argument {min(unknown)[:64]!r}; it has start, vertices"
                )
            values["job"] = request.path_params["job"]
            maps = _maps(asking, values)
            first = await anext(maps)  # what is refused is refused before the answer begins

            async def pieces() -> AsyncIterator[bytes]:
                yield await run_in_threadpool(pack, first)
                async for one in maps:
                    yield await run_in_threadpool(pack, one)

            return StreamingResponse(pieces(), media_type=kind)

        return Route(f"/v1/jobs/{{job}}/{name}", stream, methods=["GET"])

    return [
        route("frames.msgpack", "application/msgpack", True, _packed),
        route("frames.ndjson", "application/x-ndjson", False, lambda value: to_json(value) + b"\n"),
    ]


def _packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value, default=inside))


async def _maps(asking: Asking, values: dict[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
    """The header, then the records, asked for only as fast as they are taken."""
    headed = False
    async with asking.client() as ask:
        while True:
            found, _ = await ask("frames", {**values, "count": AT_ONCE, "timeout": PATIENCE}, strict=False)
            if found["header"] is not None and not headed:
                headed = True
                yield {"poseward": 1, **found["header"]}
            for record in found["records"]:
                yield record
            if found["end"]:
                return
            values["start"] = found["next"]


class Events:
    """Hands the API's events to everybody who listens over HTTP. `heard` is called in the API's thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening: dict[asyncio.Queue[tuple[str, Mapping[str, Any]]], tuple[str, ...]] = {}

    def heard(self, topic: str, values: Mapping[str, Any]) -> None:
        loop = self._loop
        if loop is not None and self._listening and topic.startswith(TOPICS):
            try:
                loop.call_soon_threadsafe(self._hand_out, topic, dict(values))
            except RuntimeError:
                self._loop = None  # it is closed: nobody listens

    def _hand_out(self, topic: str, values: Mapping[str, Any]) -> None:
        for queue, topics in self._listening.items():
            if topic.startswith(topics):
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait((topic, values))

    async def endpoint(self, request: Request) -> Response:
        """``GET /v1/events``: server-sent events, named ``job``, ``stage``, ``memory``, ``daemon``."""
        self._loop = asyncio.get_running_loop()
        wanted = tuple(filter(None, request.query_params.get("topics", "").split(","))) or TOPICS
        if wrong := [one for one in wanted if not one.startswith(TOPICS)]:
            raise ApiError("bad-request", f"no topic {wrong[0][:64]!r}; there are {', '.join(TOPICS)}")
        queue: asyncio.Queue[tuple[str, Mapping[str, Any]]] = asyncio.Queue(MOST_EVENTS)

        async def pieces() -> AsyncIterator[bytes]:
            self._listening[queue] = wanted
            try:
                yield b"retry: 1000\n: poseward\n\n"
                while True:
                    try:
                        topic, values = await asyncio.wait_for(queue.get(), ALIVE_EVERY)
                    except asyncio.TimeoutError:
                        yield b": alive\n\n"
                        continue
                    kind = topic.partition(".")[0]
                    head = f"event: {kind}\nid: {values['seq']}\ndata: ".encode()
                    yield head + to_json({"topic": topic, **values}) + b"\n\n"
            finally:
                self._listening.pop(queue, None)

        return StreamingResponse(pieces(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
