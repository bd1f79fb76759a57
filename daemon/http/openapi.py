"""The gateway described: ``/openapi.json``, and a page made of it."""

from __future__ import annotations

import dataclasses
import html
import re
import typing
from typing import Any

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daemon.api.messages import OPERATIONS
from daemon.http.asking import STATUS, answer
from daemon.http.routes import PLAIN
from daemon.jobs import summary

_TEXT = {"type": "string"}
_BINARY = {"type": "string", "format": "binary"}
_ANY = {"type": "object"}

_JSON, _BYTES = "application/json", "application/octet-stream"
_PICTURE = {_BYTES: {"schema": _BINARY}}


def _object(needed: str, **properties: Any) -> dict[str, Any]:
    return {_JSON: {"schema": {"type": "object", "properties": properties, "required": [needed]}}}


_OLD_VIDEO = _object("video_path", video_path=_TEXT)
_OLD_IMAGE = _object("image_base64", image_base64=_TEXT, frame_number={"type": "integer"})

OTHERS: tuple[tuple[str, str, str, str, dict[str, Any] | None], ...] = (
    ("GET", "/v1/events", "What happens; topics=job.,stage.,memory,daemon.", "text/event-stream", None),
    ("GET", "/v1/jobs/{job}/frames.msgpack", "Every frame from start on, as it is made.", _BYTES, None),
    ("GET", "/v1/jobs/{job}/frames.ndjson", "The same, a JSON object a line.", _BYTES, None),
    ("GET", "/v1/jobs/{job}/files/{name}", "A file of the results; takes Range.", _BYTES, None),
    ("GET", "/v1/jobs/{job}/video", "The input, where it still is; takes Range.", "video/mp4", None),
    ("GET", "/v1/jobs/{job}/view/{people}/{name}", "The web export, see docs/web-format.md.", _BYTES, None),
    ("PUT", "/v1/uploads/{upload}", "Bytes of an upload, from offset on.", _JSON, _PICTURE),
    ("POST", "/v1/image", "One image, its people in the answer.", _JSON, _PICTURE),
    ("POST", "/v1/session", "A cookie for pages that know the token.", _JSON, None),
    ("GET", "/metrics", "Figures for Prometheus.", "text/plain", None),
    ("GET", "/health", "As the older service said it.", _JSON, None),
    ("POST", "/pose/video", "As the older service took a video.", _JSON, _OLD_VIDEO),
    ("GET", "/pose/video/status/{job}", "How far that is.", _JSON, None),
    ("POST", "/pose/hybrid", "As the older service took an image.", _JSON, _OLD_IMAGE),
)
"""Method, path, what it is, what it answers with, and the body it takes, of what is no plain operation."""


def describe() -> dict[str, Any]:
    """The whole description, OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for plain in PLAIN:
        fields = _fields(plain.op)
        inside = set(re.findall(r"{(\w+)}", plain.path))
        entry: dict[str, Any] = {
            "operationId": plain.op,
            "summary": plain.about,
            "responses": _responses("application/json"),
        }
        entry["parameters"] = [_in_path(name) for name in sorted(inside)]
        rest = {name: field for name, field in fields.items() if name not in inside}
        if plain.method == "GET":
            entry["parameters"] += [
                {"name": name, "in": "query", "required": needed, "schema": schema}
                for name, (schema, needed) in rest.items()
            ]
        elif rest:
            schema = {
                "type": "object",
                "properties": {name: schema for name, (schema, _) in rest.items()},
                "required": [name for name, (_, needed) in rest.items() if needed],
            }
            entry["requestBody"] = {"content": {"application/json": {"schema": schema}}}
        paths.setdefault(plain.path, {})[plain.method.lower()] = entry
    for method, path, about, kind, body in OTHERS:
        entry = {"summary": about, "responses": _responses(kind)}
        entry["parameters"] = [_in_path(name) for name in re.findall(r"{(\w+)}", path)]
        if body is not None:
            entry["requestBody"] = {"required": True, "content": body}
        paths.setdefault(path, {})[method.lower()] = entry
    told = _object("name", name=_TEXT, message=_TEXT)[_JSON]["schema"]
    error = _object("error", error=told)[_JSON]["schema"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Poseward",
            "version": summary.versions()["poseward"],
            "description": "See docs/http.md.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": error},
        },
        "security": [{}, {"token": []}],
    }


def _fields(op: str) -> dict[str, tuple[dict[str, Any], bool]]:
    hints = typing.get_type_hints(OPERATIONS[op], include_extras=True)
    return {
        field.name: (TypeAdapter(hints[field.name]).json_schema(), field.default is dataclasses.MISSING)
        for field in dataclasses.fields(OPERATIONS[op])
    }


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _responses(kind: str) -> dict[str, Any]:
    schema = _ANY if kind == "application/json" else _BINARY
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    codes = ", ".join(f"{name} {code}" for name, code in STATUS.items())
    return {
        "200": {"description": "Done.", "content": {kind: {"schema": schema}}},
        "default": {
            "description": f"Refused, by name: {codes}; what is not found 404; else 422.",
            "content": error,
        },
    }


def openapi_routes() -> list[BaseRoute]:
    """``/openapi.json`` and ``/docs``."""
    found = describe()

    async def spec(_request: Request) -> Response:
        return await answer(found)

    async def page(_request: Request) -> Response:
        return Response(_page(found), media_type="text/html")

    return [Route("/openapi.json", spec, methods=["GET"]), Route("/docs", page, methods=["GET"])]


def _page(found: dict[str, Any]) -> str:
    rows = []
    for path, methods in found["paths"].items():
        for method, entry in methods.items():
            named = [
                f"{one['name']}{'' if one['required'] else '?'}"
                for one in entry["parameters"]
                if one["in"] == "query"
            ]
            for kind, body in entry.get("requestBody", {}).get("content", {}).items():
                properties = body["schema"].get("properties")
                needed = body["schema"].get("required", [])
                named += (
                    [f"{name}{'' if name in needed else '?'}" for name in properties] if properties else [kind]
                )
            cells = (method.upper(), path, ", ".join(named), entry["summary"])
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Poseward: HTTP</title>'
        "<h1>Poseward over HTTP</h1><p>For programs: <a href=\"openapi.json\">openapi.json</a>. Errors are"
        " <code>{error: {name, message}}</code>.</p><table><tr><th>Method<th>Path<th>Takes<th>Is</tr>"
        + "".join(rows) + "</table></html>"
    )  # fmt: skip
