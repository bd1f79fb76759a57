"""``PUT /v1/uploads/{upload}?offset=N``: the bytes of an upload, of any length, resumed where they broke off."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.api.messages import ApiError
from daemon.api.uploads import CHUNK
from daemon.http.asking import Asking, answer


def upload_route(asking: Asking) -> Route:
    """The body is handed on in chunks as it comes, so that no more than one chunk is in memory."""

    async def endpoint(request: Request) -> Response:
        upload = request.path_params["upload"]
        text = request.query_params.get("offset", "0")
        if not text.isdecimal() or len(text) > 18:
            raise ApiError("bad-request", f"chunk: offset is {text[:40]!r}: a number of bytes")
        offset = int(text)
        pending = bytearray()
        state = None
        async for piece in request.stream():
            pending += piece
            while len(pending) >= CHUNK:
                state, offset = await _add(asking, upload, offset, bytes(pending[:CHUNK]))
                del pending[:CHUNK]
        if pending or state is None:
            state, _ = await _add(asking, upload, offset, bytes(pending))
        return await answer(state)

    return Route("/v1/uploads/{upload}", endpoint, methods=["PUT"])


async def _add(asking: Asking, upload: str, offset: int, chunk: bytes) -> tuple[dict[str, object], int]:
    found, _ = await asking.ask("chunk", {"upload": upload, "offset": offset}, chunk)
    if chunk and found["offset"] != offset + len(chunk):
        raise ApiError("wrong-offset", f"the upload goes on at {found['offset']}", **found)
    return dict(found), int(found["offset"])
