"""The sockets of the API and the thread that serves them.

The thread answers by itself what only needs the store or files; what needs the pipeline is handed to the daemon's
loop, and the reply follows when that is done (`Later`). It never waits for anything but its poller.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import zmq

from daemon.api.messages import (
    ApiError,
    Operation,
    read_id,
    read_request,
    write_error,
    write_event,
    write_reply,
)
from daemon.api.sockets import Sockets
from daemon.settings.addresses import Addresses
from daemon.settings.schema import ApiSettings
from daemon.telemetry import logs

TURN = 0.25
"""Longest turn in seconds: deadlines are checked this often."""
HELD_TURN = 0.01
"""Longest turn while replies are kept for clients whose queues are full."""
MOST_REQUESTS = 64
"""Requests taken in one turn, so that events and deadlines have theirs."""

Reply = tuple[Mapping[str, Any], bytes | None]
Listener = Callable[[str, Mapping[str, Any]], None]
"""Hears every event: its topic, and the map with ``daemon``, ``seq`` and ``time``. Must not wait."""


@dataclass
class Later:
    """A reply that is not there yet.

    ``attempt`` makes it, or None while it cannot; it is called when ``job`` changes, when ``future`` is done, and
    with ``last`` true at the deadline: then it answers with what there is, or raises.
    """

    attempt: Callable[[bool], Reply | None]
    timeout: float
    job: str | None = None
    future: Future[Any] | None = None
    dropped: Callable[[], None] = lambda: None


class Handler(Protocol):
    """Does what is asked; see `daemon.api.operations`."""

    def handle(self, client: bytes, operation: Operation, blob: bytes, own: bool = False) -> Reply | Later: ...
    def subscribed(self, topic: str, wanted: bool) -> None: ...
    def changed(self, job: str) -> Iterable[tuple[str, dict[str, Any]]]: ...
    def gone(self, client: bytes) -> None: ...
    def close(self) -> None: ...


@dataclass
class _Pending:
    client: bytes
    answer: Callable[[Reply | ApiError], None]
    later: Later
    deadline: float


class Server:
    """Answers requests and publishes events in a thread of its own.

    Args:
        where: the two addresses.
        settings: keys and limits.
        handler: does what is asked; used only in the server's thread.

    Raises:
        ConfigError: an address is in use or cannot be bound, a key file cannot be read or is open to others.
    """

    def __init__(self, where: Addresses, settings: ApiSettings, handler: Handler) -> None:
        self.instance = uuid.uuid4().hex[:12]
        self._settings = settings
        self._handler = handler
        self._sockets = Sockets(where, settings)
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pending: dict[int, _Pending] = {}
        self._tickets = 0
        self._sequence = 0
        self._stopping = False
        self._log = logs.get("api")
        self._listeners: list[Listener] = []
        self.moved = time.monotonic()
        """When the thread last finished a turn."""
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more; replies under way get half a second. May be called twice."""
        if self._stopping:
            return
        self._stopping = True
        self._ring()
        if self._thread.is_alive():
            self._thread.join()
        self._sockets.close()
        self._wake, closed = -1, self._wake  # others may still ring
        os.close(closed)

    @property
    def connections(self) -> int:
        """Clients that are connected now."""
        return len(self._sockets.clients)

    def publish(self, topic: str, values: dict[str, Any]) -> None:
        """Send an event to whoever has subscribed. From any thread; never waits."""
        self._tell("event", (topic, values))

    def touch(self, job: str) -> None:
        """A job has changed: requests that wait for it are looked at. From any thread; never waits."""
        self._tell("touch", job)

    # -- for other doors in this process: HTTP ------------------------------------------------------------

    def ask(self, client: bytes, operation: Operation, blob: bytes = b"") -> Future[Reply]:
        """Have an operation done for ``client``, whom no socket knows. From any thread; never waits.

        The future's error is an `ApiError`. Who cancels it wants the answer no more.
        """
        future: Future[Reply] = Future()
        if self._stopping:
            future.set_exception(_stops())
        else:
            self._tell("ask", (client, operation, blob, future))
        return future

    def part(self, client: bytes) -> None:
        """Nobody waits for answers to ``client`` any more: what was kept for it is let go. From any thread."""
        self._tell("part", client)

    def listen(self, heard: Listener) -> None:
        """Hear every event, called in the server's thread. Before `start` only."""
        self._listeners.append(heard)

    # -- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        sockets = self._sockets
        poller = zmq.Poller()
        for socket in (sockets.router, sockets.events, sockets.monitor, self._wake):
            poller.register(socket, zmq.POLLIN)
        while not self._stopping:
            ready = dict(poller.poll(round((HELD_TURN if sockets.holds else TURN) * 1000)))
            try:
                if self._wake in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                if sockets.monitor in ready:
                    sockets.part()
                if sockets.events in ready:
                    self._hear_subscriptions()
                self._take_inbox()
                if sockets.router in ready:
                    self._hear()
                self._check_deadlines()
                sockets.send_held()
                self._forget_gone()
                sockets.read_keys()
            except Exception:  # noqa: BLE001
                self._log.exception("defect")  # one bad turn must not silence the daemon
            self.moved = time.monotonic()
        self._take_inbox()
        for ticket in list(self._pending):
            self._refuse(ticket, _stops())
        self._handler.close()

    def _hear(self) -> None:
        for _ in range(MOST_REQUESTS):
            if (request := self._sockets.receive()) is None:
                return
            if not self._sockets.is_deaf(request[0]):
                self._serve(*request)

    def _serve(self, client: bytes, parts: list[bytes]) -> None:
        envelope = [b""] if len(parts) > 1 and parts[0] == b"" else []
        parts = parts[len(envelope) :]
        number: int | str | None = None

        def answer(made: Reply | ApiError) -> None:
            found = write_error(number, made) if isinstance(made, ApiError) else write_reply(number, *made)
            self._sockets.send(client, [*envelope, *found])

        def answer_late(made: Reply | ApiError) -> None:
            if (known := self._sockets.clients.get(client)) is not None:
                known.waiting -= 1
            answer(made)

        try:
            number = read_id(parts[0]) if parts else None
            self._sockets.admit(client)
            if not 1 <= len(parts) <= 2:
                raise ApiError("bad-request", f"{len(parts)} parts; a request has one, or two with a blob")
            request = read_request(parts[0], parts[1] if len(parts) == 2 else None)
            made = self._handler.handle(client, request.operation, request.blob, self._sockets.own)
            if isinstance(made, Later):
                self._count_waiting(client, made)
                self._defer(client, made, answer_late)
            else:
                answer(made)
        except ApiError as error:
            answer(error)
        except Exception as error:  # noqa: BLE001
            self._log.exception("defect", client=client.hex())
            answer(_internal(error))

    def _serve_inside(self, client: bytes, operation: Operation, blob: bytes, future: Future[Reply]) -> None:
        def answer(made: Reply | ApiError) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if isinstance(made, ApiError):
                future.set_exception(made)
            else:
                future.set_result(made)

        if future.cancelled():
            return
        try:
            made = self._handler.handle(client, operation, blob)
            if isinstance(made, Later):
                self._defer(client, made, answer)
            else:
                answer(made)
        except ApiError as error:
            answer(error)
        except Exception as error:  # noqa: BLE001
            self._log.exception("defect", client=repr(client))
            answer(_internal(error))

    def _count_waiting(self, client: bytes, later: Later) -> None:
        known = self._sockets.clients[client]
        if known.waiting >= self._settings.max_waiting:
            later.dropped()
            raise ApiError(
                "too-many-waiting",
                f"{known.waiting} requests of this client wait already (api.max_waiting): wait for some first",
            )
        known.waiting += 1

    def _defer(self, client: bytes, later: Later, answer: Callable[[Reply | ApiError], None]) -> None:
        self._tickets += 1
        ticket = self._tickets
        self._pending[ticket] = _Pending(client, answer, later, time.monotonic() + later.timeout)
        if later.future is not None:
            later.future.add_done_callback(lambda _: self._tell("future", ticket))
        else:
            self._try(ticket)

    def _try(self, ticket: int, last: bool = False) -> None:
        pending = self._pending[ticket]
        try:
            made = pending.later.attempt(last)
        except ApiError as error:
            self._refuse(ticket, error)
        except Exception as error:  # noqa: BLE001
            self._log.exception("defect", client=pending.client.hex())
            self._refuse(ticket, _internal(error))
        else:
            if made is not None:
                self._settle(ticket, made)
            elif last:
                self._refuse(ticket, ApiError("deadline-exceeded", "it was not done in time"))

    def _refuse(self, ticket: int, error: ApiError) -> None:
        self._pending[ticket].later.dropped()
        self._settle(ticket, error)

    def _settle(self, ticket: int, made: Reply | ApiError) -> None:
        self._pending.pop(ticket).answer(made)

    def _forget_gone(self) -> None:
        """Nothing is done or kept for who has gone: who comes and goes would else leave more each time."""
        gone = {self._sockets.gone.pop() for _ in range(len(self._sockets.gone))} - self._sockets.clients.keys()
        if gone:
            self._forget(gone)

    def _forget(self, gone: set[bytes]) -> None:
        for ticket, pending in list(self._pending.items()):
            if pending.client in gone:
                del self._pending[ticket]
                pending.later.dropped()
        for client in gone:
            self._handler.gone(client)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for ticket, pending in list(self._pending.items()):
            if now >= pending.deadline:
                self._try(ticket, last=True)

    def _take_inbox(self) -> None:
        touched: set[str] = set()
        while True:
            try:
                kind, what = self._inbox.get_nowait()
            except queue.Empty:
                break
            if kind == "event":
                topic, values = what
                self._emit(topic, values)
                if topic.startswith("job."):
                    touched.add(topic[4:])
            elif kind == "touch":
                touched.add(what)
            elif kind == "future" and what in self._pending:
                self._try(what)
            elif kind == "ask":
                self._serve_inside(*what)
            elif kind == "part":
                self._forget({what})
        if not touched:
            return
        for ticket, pending in list(self._pending.items()):
            if pending.later.job in touched:
                self._try(ticket)
        for job in touched:
            for topic, values in self._handler.changed(job):
                self._emit(topic, values)

    def _emit(self, topic: str, values: Mapping[str, Any]) -> None:
        self._sequence += 1
        stamped = {"daemon": self.instance, "seq": self._sequence, "time": time.time(), **values}
        for heard in self._listeners:
            heard(topic, stamped)
        with contextlib.suppress(zmq.Again):
            self._sockets.events.send_multipart(
                [topic.encode("ascii", "replace"), write_event(stamped)], zmq.NOBLOCK
            )

    def _hear_subscriptions(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                message = self._sockets.events.recv(zmq.NOBLOCK)
                if message[:1] in (b"\x00", b"\x01") and len(message) < 256:
                    self._handler.subscribed(message[1:].decode("ascii", "replace"), message[0] == 1)

    def _tell(self, kind: str, what: Any) -> None:
        self._inbox.put((kind, what))
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.eventfd_write(self._wake, 1)


def _internal(error: Exception) -> ApiError:
    return ApiError("internal", f"a defect of the daemon ({type(error).__name__}); its log has the trace")


def _stops() -> ApiError:
    return ApiError("busy", "the daemon stops: ask again when it is back")
