"""A real HTTP server in a thread that serves bytes from memory and misbehaves as it is told."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DATE = "Tue, 05 Sep 2023 10:00:00 GMT"


@dataclass(frozen=True)
class Act:
    """How one request is answered; the default is as it should be."""

    status: int = 0
    """This status and no content; 0 is the file."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside or instead of the right ones; an empty value leaves one out."""
    body: bytes | None = None
    """Instead of the file's content."""
    ranges: bool = True
    """Whether a Range is heeded."""
    shift: int = 0
    """A range begins so many bytes later than asked."""
    cut: int | None = None
    """After so many bytes the connection is ended."""
    reset: bool = False
    """Ended hard: the client gets ECONNRESET."""
    stall: bool = False
    """Instead of being ended, the connection stays open and silent."""
    drip: float = 0.0
    """Seconds between two halves of a kilobyte."""
    chunked: bool = False


GOOD = Act()


class Server:
    """``files`` by path. ``acts`` are for the next requests; after those, every one is answered by ``usual``."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.acts: deque[Act] = deque()
        self.usual = GOOD
        self.asked: list[tuple[str, str | None]] = []
        """Path and Range of each request."""
        self.versions: list[str | None] = []
        """If-Range of each request."""
        self.stalled = threading.Event()
        """Set when a connection has gone silent."""
        self.over = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        act = self.acts.popleft() if self.acts else self.usual
        asked = handler.headers.get("Range")
        self.asked.append((handler.path, asked))
        self.versions.append(handler.headers.get("If-Range"))
        handler.close_connection = True
        if act.status:
            handler.send_response(act.status)
            for name, value in {"Content-Length": "0", **act.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            return
        content = self.files.get(handler.path)
        if content is None:
            handler.send_error(404)
            return
        headers = {"Last-Modified": DATE, "Content-Type": "application/octet-stream", **act.headers}
        start = 0
        changed = handler.headers.get("If-Range") not in (None, headers["Last-Modified"], headers.get("ETag"))
        if asked and act.ranges and not changed:
            start = int(asked.removeprefix("bytes=").removesuffix("-")) + act.shift
        if start >= len(content) > 0:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = act.body if act.body is not None else content[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers.setdefault("Content-Length", str(len(body)))
        if act.chunked:
            headers |= {"Transfer-Encoding": "chunked", "Content-Length": ""}
        handler.send_response(206 if start else 200)
        for name, value in {**headers, **act.headers}.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        self._send(handler, act, body)

    def _send(self, handler: BaseHTTPRequestHandler, act: Act, body: bytes) -> None:
        body = body if act.cut is None else body[: act.cut]
        try:
            if act.chunked:
                handler.wfile.write(
                    b"%x\r\n%s\r\n" % (len(body), body) + (b"0\r\n\r\n" if act.cut is None else b"")
                )
            elif act.drip:
                for at in range(0, len(body), 512):
                    handler.wfile.write(body[at : at + 512])
                    if self.over.wait(act.drip):
                        return
            else:
                handler.wfile.write(body)
            handler.wfile.flush()
            if act.stall:
                self.stalled.set()
                self.over.wait(120)
        except OSError:
            pass  # the client has gone
        if act.reset:
            # Lingering for no time ends the connection with RST.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Server]:
    server = Server(files)
    try:
        yield server
    finally:
        server.close()
