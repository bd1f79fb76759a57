"""The three addresses of the HTTP service that Poseward takes the place of: a way of moving over (docs/http.md).

They do nothing that the operations do not do; they only speak as the old service spoke.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daemon.api.messages import ApiError
from daemon.http.asking import Asking, answer, read_json


def moving_routes(asking: Asking, most: int) -> list[BaseRoute]:
    """``/health``, ``/pose/video`` with its status, and ``/pose/hybrid``; ``most`` bytes of an image."""

    async def health(_request: Request) -> Response:
        found, _ = await asking.ask("health", {})
        return await answer(
            {
                "status": "ok"
                if found["ready"] and not found["problems"]
                else "loading"
                if not found["ready"]
                else "degraded",
                "ready": found["ready"],
                "device": "cuda" if found["memory"]["device"] else "cpu",
                "models": {name: one["state"] == "ready" for name, one in found["processes"].items()},
                "backend": found["backend"],
                "problems": found["problems"],
            }
        )

    async def video(request: Request) -> Response:
        values = await read_json(request)
        path = values.get("video_path")
        if not isinstance(path, str) or not path:
            raise ApiError("bad-request", 'send {"video_path": "…"}')
        found, _ = await asking.ask("submit", {"path": path})
        return await answer(_told(found["job"]), 202)

    async def status(request: Request) -> Response:
        found, _ = await asking.ask("status", {"job": request.path_params["job"]})
        return await answer(_told(found["job"]))

    async def hybrid(request: Request) -> Response:
        values = await read_json(request, most * 4 // 3 + 4096)
        text, number = values.get("image_base64"), values.get("frame_number", 0)
        if not isinstance(text, str) or type(number) is not int:
            raise ApiError("bad-request", 'send {"image_base64": "…", "frame_number": 0}')
        try:
            # Pages send what a canvas gives: data:image/jpeg;base64,…
            image = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError("bad-request", f"image_base64 is not base64: {error}") from error
        if len(image) > most:
            raise ApiError("too-large", f"an image of {len(image)} bytes; at most {most}")
        found, _ = await asking.ask("image", {}, image)
        record, header = found["record"], found["header"]
        return await answer(
            {"frame_number": number, "people": record["tracks"], "failed": record.get("failed"), "header": header}
        )

    return [
        Route("/health", health, methods=["GET"]),
        Route("/pose/video", video, methods=["POST"]),
        Route("/pose/video/status/{job}", status, methods=["GET"]),
        Route("/pose/hybrid", hybrid, methods=["POST"]),
    ]


def _told(job: dict[str, Any]) -> dict[str, Any]:
    progress = job.get("progress") or {}
    total = progress.get("total") or 0
    done = job["state"] == "done"
    return {
        "job_id": job["id"],
        "status": job["state"],
        "progress": 1.0 if done else progress.get("committed", 0) / total if total else 0.0,
        "frames": job["frames"] if done else progress.get("committed", 0),
        "results": job["results"],
        "error": job["error"],
        "message": job["message"],
    }
