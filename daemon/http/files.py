"""Files of results with ranges, and the input itself: what a ``<video>`` plays and seeks in."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from daemon.api.messages import ApiError
from daemon.api.uploads import CHUNK
from daemon.http.asking import Asking

KINDS = {
    ".msgpack": "application/msgpack", ".mp4": "video/mp4", ".glb": "model/gltf-binary",
    ".jsonl": "application/x-ndjson", ".mkv": "video/x-matroska", ".mov": "video/mp4", ".webm": "video/webm",
    ".json": "application/json",
}  # fmt: skip
SAFE = ("video/", "image/png", "image/jpeg", "application/", "model/", "text/plain", "text/csv")
"""Kinds that a browser may be told; what could be a page of somebody else's is bytes."""
PIECE = 1 << 18


def kind_of(name: str) -> str:
    """The media type of a file, by its name."""
    found = KINDS.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0] or ""
    return (
        found
        if found.startswith(SAFE) and "xml" not in found and "script" not in found
        else "application/octet-stream"
    )


def wanted(request: Request, total: int) -> tuple[int, int, bool]:
    """First byte and byte after the last that a request's ``Range`` asks for, and whether it is a part.

    Several ranges, and units that are not bytes, are answered with the whole, as RFC 9110 allows.

    Raises:
        ApiError: ``range-refused``: there are no such bytes.
    """
    text = request.headers.get("range", "")
    match = re.fullmatch(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*", text)
    if match is None or match[0].strip() == "bytes=-" or request.headers.get("if-range"):
        return 0, total, False
    first, last = match[1], match[2]
    if first == "":
        start, end = max(0, total - int(last)), total
    else:
        start, end = int(first), min(total, int(last) + 1) if last else total
    if start >= end:
        raise ApiError("range-refused", f"bytes {text[6:60]} of {total}", total=total)
    return start, end, True


def ranged(
    request: Request, total: int, kind: str, pieces: Callable[[int, int], AsyncIterator[bytes]]
) -> Response:
    """The answer with the bytes asked for; ``pieces`` gives those from its first argument up to its second."""
    start, end, part = wanted(request, total)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(None, status, headers, kind)
    return StreamingResponse(pieces(start, end), status, headers, kind)


def serve_path(request: Request, path: Path, kind: str | None = None) -> Response:
    """A file of the disk, in pieces.

    Raises:
        ApiError: ``no-such-file``.
    """
    try:
        total = path.stat().st_size
    except OSError as error:
        raise ApiError("no-such-file", f"{path.name}: {error.strerror}") from error

    async def pieces(start: int, end: int) -> AsyncIterator[bytes]:
        with await run_in_threadpool(path.open, "rb") as file:
            file.seek(start)
            while start < end and (data := await run_in_threadpool(file.read, min(PIECE, end - start))):
                start += len(data)
                yield data

    return ranged(request, total, kind or kind_of(path.name), pieces)


def file_route(asking: Asking) -> Route:
    """``GET /v1/jobs/{job}/files/{name}``: a file of a job's results."""

    async def endpoint(request: Request) -> Response:
        asked: dict[str, Any] = dict(request.path_params)
        found, _ = await asking.ask("file", {**asked, "offset": 0, "size": 0})

        async def pieces(start: int, end: int) -> AsyncIterator[bytes]:
            while start < end:
                _, data = await asking.ask("file", {**asked, "offset": start, "size": min(CHUNK, end - start)})
                if not data:
                    return  # it was cut while it was read; the length that was said shows it
                start += len(data)
                yield data

        return ranged(request, found["total"], kind_of(asked["name"]), pieces)

    return Route("/v1/jobs/{job}/files/{name}", endpoint, methods=["GET"])


def video_route(asking: Asking) -> Route:
    """``GET /v1/jobs/{job}/video``: the input that a job was given, where it still is."""

    async def endpoint(request: Request) -> Response:
        found, _ = await asking.ask("status", {"job": request.path_params["job"]})
        return serve_path(request, input_of(found["job"]))

    return Route("/v1/jobs/{job}/video", endpoint, methods=["GET"])


def input_of(job: dict[str, Any]) -> Path:
    """The file of a job's input.

    Raises:
        ApiError: ``no-such-file``: it is not there any more, or is not what it was.
    """
    path = Path(job["source"])
    if not path.is_file() or (job["bytes"] is not None and path.stat().st_size != job["bytes"]):
        raise ApiError("no-such-file", f"the input of {job['id']} is not where it was, or is a folder")
    return path
