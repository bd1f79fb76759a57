"""Who is let in, and how long he may take: hosts, origins, the token, deadlines, and the headers of every answer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.api.messages import ApiError
from daemon.http.asking import refusal
from daemon.telemetry import logs

COOKIE = "poseward"
OPEN = ("/v1/session", "/openapi.json")
"""Paths that need no token."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:;"
    " connect-src 'self'; font-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Pages load nothing from outside, and nobody frames them."""


@dataclass(frozen=True)
class Rules:
    """Who may ask. ``token`` is empty where none is demanded; ``free`` tells paths that need none."""

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    token: str = ""
    free: Callable[[str], bool] = lambda path: path in OPEN
    most: int = 64
    stall: float = 30.0
    """Seconds for which a client may send nothing of a body, or take nothing of an answer."""

    def mark(self) -> str:
        """What the cookie of a page that has the token says."""
        return hashlib.sha256(b"poseward-session:" + self.token.encode()).hexdigest()


class Guard:
    """Refuses by name before anything is done, and ends what stalls."""

    def __init__(self, app: ASGIApp, rules: Rules, cut: Callable[[Any], None] = lambda client: None) -> None:
        self._app = app
        self._rules = rules
        self._cut = cut
        self._busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        began = stalled = False
        origin = headers.get("origin", "")

        async def within(message: Message) -> None:
            nonlocal began, stalled
            if message["type"] == "http.response.start":
                began = True
                self._dress(MutableHeaders(scope=message), origin)
            try:
                await asyncio.wait_for(send(message), self._rules.stall)
            except asyncio.TimeoutError as error:
                stalled = True
                raise ClientDisconnect from error

        async def hear() -> Message:
            if began:
                return await receive()  # an answer under way waits here only for the client to leave
            try:
                return await asyncio.wait_for(receive(), self._rules.stall)
            except asyncio.TimeoutError as error:
                raise ApiError("too-slow", f"nothing of the body came for {self._rules.stall:.0f} s") from error

        try:
            response = self._check(scope, headers)
            if response is None and self._busy >= self._rules.most:
                raise ApiError(
                    "too-many-clients", f"{self._busy} requests are answered already (http.max_clients)"
                )
            self._busy += 1
            try:
                await (response or self._app)(scope, hear, within)
            finally:
                self._busy -= 1
        except ApiError as error:
            if not began:
                await refusal(error)(scope, receive, within)
        except ClientDisconnect:
            pass
        except Exception as error:  # noqa: BLE001
            if stalled or isinstance(error.__cause__, ApiError):
                return  # refused in the middle of an answer: its length tells that it is not whole
            logs.get("http").exception("defect", path=scope["path"])
            if not began:
                defect = ApiError(
                    "internal", f"a defect of the daemon ({type(error).__name__}); its log has the trace"
                )
                await refusal(defect)(scope, receive, within)
        finally:
            if stalled:
                logs.get("http").warning("too-slow", client=str(scope.get("client")), path=scope["path"])
                self._cut(scope.get("client"))

    def _check(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to who may not, or to a browser that asks whether it may."""
        host = headers.get("host", "")
        if not self._knows_host(host):
            raise ApiError("host-refused", f"Host is {host[:100]!r}: add its name to http.hosts if it is yours")
        origin = headers.get("origin", "")
        foreign = origin not in ("", f"http://{host}", f"https://{host}")
        if foreign and origin not in self._rules.origins:
            raise ApiError("origin-refused", f"pages of {origin[:100]!r} may not ask: add it to http.origins")
        if (
            not origin
            and headers.get("sec-fetch-site") == "cross-site"
            and headers.get("sec-fetch-mode") != "navigate"
        ):
            raise ApiError("origin-refused", "another site's page may not ask: add its origin to http.origins")
        if scope["method"] == "OPTIONS":
            return Response(status_code=204)
        if self._rules.token and not self._rules.free(scope["path"]) and not self._has_token(headers):
            raise ApiError("no-token", "send the header Authorization: Bearer TOKEN, with the token of http.token")
        return None

    def _knows_host(self, host: str) -> bool:
        # A name of somebody else's that leads here is how a foreign page gets past its origin; numbers cannot lie.
        name = (
            urlsplit(f"//{host}").hostname if host and host.isascii() and not set(host) & set(" @/\\?#") else None
        )
        if name is None:
            return False
        if name == "localhost" or name in self._rules.hosts:
            return True
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return False

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and same(given.strip(), self._rules.token):
            return True
        with contextlib.suppress(CookieError):
            found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            return found is not None and same(found.value, self._rules.mark())
        return False

    def _dress(self, headers: MutableHeaders, origin: str) -> None:
        headers.setdefault("Content-Security-Policy", POLICY)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers.setdefault("Cache-Control", "no-store")
        if origin in self._rules.origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, PUT"
            headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, Range"
            headers["Access-Control-Expose-Headers"] = "Content-Range, Content-Length, Accept-Ranges"
            headers["Access-Control-Max-Age"] = "600"
            headers.add_vary_header("Origin")
        else:
            headers["Cross-Origin-Resource-Policy"] = "same-origin"


def same(given: str, wanted: str) -> bool:
    """Compares without telling by its time how much was right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


async def open_session(request: Request, rules: Rules) -> Response:
    """``POST /v1/session``: a page that knows the token gets a cookie, for what cannot send headers (video, events)."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if rules.token and not (kind.lower() == "bearer" and same(given.strip(), rules.token)):
        raise ApiError("no-token", "this is not the token")
    response = Response(status_code=204)
    if rules.token:
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, rules.mark(), httponly=True, samesite="strict", secure=secure)
    return response
