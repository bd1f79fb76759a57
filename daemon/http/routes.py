"""Which path stands for which operation of docs/protocol.md: the one list that is served and that OpenAPI describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daemon.api.messages import MAX_BODY, ApiError
from daemon.http.asking import Asking, answer, read_body, read_json


@dataclass(frozen=True)
class Plain:
    """One operation at one place: arguments from the path, and from the query (GET) or the JSON body (POST)."""

    method: str
    path: str
    op: str
    about: str
    defaults: Mapping[str, Any] | None = None


PLAIN = (
    Plain("GET", "/v1/hello", "hello", "Who is there, and the limits."),
    Plain("GET", "/v1/health", "health", "Stages, memory, jobs in work, problems."),
    Plain("POST", "/v1/jobs", "submit", "Queue a video: a path on the daemon's machine, or an upload."),
    Plain("GET", "/v1/jobs", "list", "Jobs, newest first."),
    Plain("GET", "/v1/jobs/{job}", "status", "One job."),
    Plain("GET", "/v1/jobs/{job}/wait", "wait", "One job, when it has ended or has more frames."),
    Plain("POST", "/v1/jobs/{job}/cancel", "cancel", "Cancel it; finished work is kept."),
    Plain("POST", "/v1/jobs/{job}/retry", "retry", "Queue a failed or cancelled one again."),
    Plain("GET", "/v1/jobs/{job}/results", "results", "The summary and the files of a job that is done."),
    Plain(
        "GET", "/v1/jobs/{job}/frames", "frames", "Records of frames, without surfaces unless vertices=true.",
        {"vertices": False},
    ),
    Plain(
        "GET", "/v1/jobs/{job}/subject", "subject", "The main person: joined, filled and smooth.", {"vertices": False}
    ),
    Plain("POST", "/v1/uploads", "upload", "Begin an upload, or learn how far it is."),
    Plain("POST", "/v1/stages/{stage}/reset", "reset", "Start a stage that has given up."),
    Plain("POST", "/v1/reload", "reload", "Restart stages with the code on disk."),
    Plain("POST", "/v1/drain", "drain", "Begin no more jobs, or begin them again."),
)  # fmt: skip


def plain_routes(asking: Asking) -> list[BaseRoute]:
    """All of `PLAIN`, as Starlette has them."""
    return [Route(one.path, _endpoint(asking, one), methods=[one.method]) for one in PLAIN]


def image_route(asking: Asking, most: int) -> Route:
    """``POST /v1/image``: the picture is the body."""

    async def image(request: Request) -> Response:
        blob = await read_body(request, most)
        found, _ = await asking.ask("image", arguments(request), blob, strict=False)
        return await answer(found)

    return Route("/v1/image", image, methods=["POST"])


def arguments(request: Request, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Those of the query; lists are written with commas."""
    found: dict[str, Any] = dict(defaults or {})
    for key, value in request.query_params.multi_items():
        found[key] = value.split(",") if key in ("states", "exports") else value
    return found


def _endpoint(asking: Asking, plain: Plain) -> Any:
    async def endpoint(request: Request) -> Response:
        if plain.method == "GET":
            values, strict = arguments(request, plain.defaults), False
        else:
            values, strict = await read_json(request, MAX_BODY), True
        for key, value in request.path_params.items():
            if values.setdefault(key, value) != value:
                raise ApiError("bad-request", f"{plain.op}: {key} stands in the path already")
        found, _ = await asking.ask(plain.op, values, strict=strict)
        return await answer(found)

    return endpoint
