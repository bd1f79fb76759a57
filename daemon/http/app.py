"""All pages and operations of the gateway in one ASGI application."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from daemon.api.messages import ApiError
from daemon.http.asking import Asking, answer, refusal
from daemon.http.clip import FILES, PEOPLE, Prepared, about
from daemon.http.files import file_route, serve_path, video_route
from daemon.http.guard import Guard, Rules, open_session
from daemon.http.moving import moving_routes
from daemon.http.openapi import openapi_routes
from daemon.http.routes import image_route, plain_routes
from daemon.http.streams import Events, frames_routes
from daemon.http.uploads import upload_route
from stages.protocols import ConfigurationError
from stages.results import ResultsError


def make_app(
    asking: Asking,
    events: Events,
    rules: Rules,
    registry: CollectorRegistry,
    prepared: Prepared,
    most_image: int,
    cut: Callable[[object], None],
) -> ASGIApp:
    """The application; ``most_image`` bytes of an image, ``cut`` closes a client's connection."""

    async def session(request: Request) -> Response:
        return await open_session(request, rules)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [
        *plain_routes(asking),
        image_route(asking, most_image),
        *frames_routes(asking),
        file_route(asking),
        video_route(asking),
        upload_route(asking),
        Route("/v1/events", events.endpoint, methods=["GET"]),
        Route("/v1/session", session, methods=["POST"]),
        Route("/v1/jobs/{job}/view/{people}/{name}", _view(asking, prepared), methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        *moving_routes(asking, most_image),
        *openapi_routes(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: no_page, ApiError: _refused})
    app.router.redirect_slashes = False
    return Guard(app, rules, cut)


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refusal(error)


def no_page(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself, by name."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        return refusal(
            ApiError("wrong-method", f"{request.url.path[:200]} takes no {request.method[:20]}: see /docs")
        )
    return refusal(ApiError("no-such-page", f"there is no {request.url.path[:200]}: see /docs"))


def _view(asking: Asking, prepared: Prepared) -> Callable[[Request], object]:
    async def endpoint(request: Request) -> Response:
        job, people, name = (request.path_params[key] for key in ("job", "people", "name"))
        if people not in PEOPLE or name not in ("clip.json", *FILES):
            raise ApiError("no-such-page", f"there is no {request.url.path[:200]}: see /docs")
        found, _ = await asking.ask("results", {"job": job})
        folder, known = Path(found["folder"]), found["job"]
        if name == "clip.json":
            told = await run_in_threadpool(about, folder, known["name"])
            base = f"/v1/jobs/{job}"
            overlay = told["overlay"] and f"{base}/files/{told['overlay']}"
            source = Path(known["source"])
            video = f"{base}/video" if source.is_file() else None
            return await answer({**told, "overlay": overlay, "video": video})
        try:
            path = await run_in_threadpool(prepared.file, known["same_as"] or job, folder, people, name)
        except (ResultsError, ConfigurationError, OSError) as error:
            raise ApiError("not-ready", f"{name} of {job}: {error}") from error
        return serve_path(request, path)

    return endpoint
