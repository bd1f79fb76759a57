"""uvicorn's connections, of which none may be open for nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

LOOK_EVERY = 10.0
IDLE_LOOKS = 3
"""Looks in a row that find no whole request asked for: then the connection is closed."""


class Connections:
    """The open connections by their client's address; `protocol` makes the class that uvicorn is given."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[Any, asyncio.Transport] = {}

    def cut(self, client: Any) -> None:
        """Close a connection whose client takes nothing any more, without waiting for what it was to take."""
        if (transport := self._open.get(tuple(client or ()))) is not None:
            transport.abort()

    def protocol(self) -> type[H11Protocol]:
        known, most = self._open, self._most

        class Connection(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                self._idle = 0
                if len(known) >= most:
                    transport.abort()
                    return
                known[self.client] = transport
                self._timer = self.loop.call_later(LOOK_EVERY, self._look)

            def connection_lost(self, exc: Exception | None) -> None:
                if known.get(self.client) is self.transport:
                    del known[self.client]
                    self._timer.cancel()
                super().connection_lost(exc)

            def _look(self) -> None:
                # Headers that come byte by byte, and connections of those who say nothing.
                self._idle = self._idle + 1 if self.cycle is None or self.cycle.response_complete else 0
                if self._idle >= IDLE_LOOKS:
                    self.transport.abort()
                else:
                    self._timer = self.loop.call_later(LOOK_EVERY, self._look)

        return Connection
