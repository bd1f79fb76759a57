"""The asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from daemon.client import messages
from daemon.client.files import digest_of, load_keys
from daemon.client.messages import ClientError, Page, closed, events_address
from stages.records import FrameRecord, Header
from stages.results.stream import decode_header

QUICK = 5.0
"""Seconds that a request which needs no waiting may stay unanswered before it is sent again."""
LONG = 10.0
"""Seconds of one `wait` or `frames` request; the client asks again as long as its caller likes."""
QUIET = 5.0
"""Seconds without an event after which it is asked whether they still come from where they came from."""
SMALL = 1 << 20
"""Bytes that no daemon refuses as a message."""
DIGEST = 600.0
"""Seconds that the daemon may take for the digest of an upload. It is asked again sooner: it may have been killed."""
DIGEST_AGAIN = 60.0


class AsyncClient:
    """Talks to one daemon.

    Args:
        address: of the requests; None takes the configuration's, as the daemon does.
        events: of the events; None asks the daemon.
        patience: seconds without any answer after which a call raises ``timeout``.
        key: file with this client's secret CURVE key; ``server_key`` the daemon's public one.

    Raises:
        ConfigError: the address is none.
        OSError, ValueError: a key cannot be read.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        events: str | None = None,
        patience: float = 30.0,
        key: str | Path | None = None,
        server_key: str | Path | None = None,
    ) -> None:
        if address is None:
            address, events = default_addresses()
        self.address = address
        self._events_address = events
        self._patience = patience
        self._keys = load_keys(key, server_key)
        self._context = zmq.asyncio.Context()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._socket: zmq.asyncio.Socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up what is under way, by ``closed``. May be called twice."""
        self._closed = True
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        for future in self._asked.values():
            if not future.done():
                future.set_exception(closed())
        self._context.destroy(linger=0)

    # -- jobs --------------------------------------------------------------------------------------------

    async def hello(self) -> dict[str, Any]:
        """Who is there, and its limits."""
        return await self._ask("hello")

    async def submit(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        upload: str | None = None,
        name: str | None = None,
        key: str | None = None,
        priority: int = 0,
        exports: Sequence[str] | None = None,
        recompute: bool = False,
        stream: int | None = None,
    ) -> dict[str, Any]:
        """Queue a video by its path on the daemon's machine, or an upload; returns the job map. ``stream`` is the
        number of the video stream to read, where a file has several.

        Without a ``key`` one is made up, so that a repeated request cannot be a second job.
        """
        found = await self._ask(
            "submit",
            path=os.fspath(path) if path is not None else None,
            upload=upload,
            name=name,
            key=key or f"auto-{secrets.token_hex(16)}",
            priority=priority,
            exports=list(exports) if exports is not None else None,
            recompute=recompute or None,
            stream=stream,
        )
        return {**found["job"], "new": found["new"]}

    async def upload(
        self, path: str | os.PathLike[str], progress: Callable[[int, int], None] = lambda *_: None
    ) -> str:
        """Send a file's bytes, going on where an earlier try ended; returns the upload's id for `submit`.

        ``progress`` is told bytes sent and bytes in all.
        """
        file = Path(path)
        size, digest = await asyncio.to_thread(digest_of, file)
        chunk = int((await self.hello())["limits"]["chunk"])
        state = await self._ask("upload", name=file.name, size=size, sha256=digest)
        with file.open("rb") as stream:
            while not state["complete"]:
                progress(state["offset"], size)
                stream.seek(state["offset"])
                data = stream.read(chunk)
                upload, offset = state["upload"], state["offset"]
                # With all bytes there, an earlier try ended before the daemon had compared the digest.
                if not data and offset < size:
                    raise ClientError("upload-damaged", f"{file} became shorter while it was read")
                last = {"wait": DIGEST, "again": DIGEST_AGAIN} if offset + len(data) >= size else {}
                found = await self._ask("chunk", blob=data, upload=upload, offset=offset, **last)
                state = {**state, **found}
        progress(size, size)
        return str(state["upload"])

    async def status(self, job: str | None = None, *, key: str | None = None) -> dict[str, Any]:
        """The map of one job."""
        found: dict[str, Any] = (await self._ask("status", job=job, key=key))["job"]
        return found

    async def list(
        self, states: Sequence[str] | None = None, *, limit: int = 100, before: int | None = None, text: str = ""
    ) -> dict[str, Any]:
        """``jobs``, newest first, and ``counts`` by state."""
        return await self._ask("list", states=states, limit=limit, before=before, text=text or None)

    async def wait(
        self,
        job: str,
        timeout: float | None = None,
        progress: Callable[[dict[str, Any]], None] = lambda _job: None,
    ) -> dict[str, Any]:
        """Wait until a job has ended, or ``timeout`` seconds; returns its map. ``progress`` gets each one."""
        until = None if timeout is None else asyncio.get_running_loop().time() + timeout
        committed = -1
        while True:
            left = LONG if until is None else max(0.0, min(LONG, until - asyncio.get_running_loop().time()))
            found: dict[str, Any] = (
                await self._ask("wait", timeout=left, job=job, committed=committed if committed >= 0 else None)
            )["job"]
            progress(found)
            if found["state"] in ("done", "failed", "cancelled") or (until is not None and left == 0.0):
                return found
            committed = found.get("progress", {}).get("committed", 0)

    async def cancel(self, job: str) -> dict[str, Any]:
        """Cancel a job; what was done of it is kept for `retry`."""
        found: dict[str, Any] = (await self._ask("cancel", job=job))["job"]
        return found

    async def retry(self, job: str) -> dict[str, Any]:
        """Queue a failed or cancelled job again."""
        found: dict[str, Any] = (await self._ask("retry", job=job))["job"]
        return found

    # -- results -----------------------------------------------------------------------------------------

    async def results(self, job: str) -> dict[str, Any]:
        """Summary, folder and files of a job that is done."""
        return await self._ask("results", job=job)

    async def page(
        self, job: str, start: int = 0, *, count: int = 100, vertices: bool = True, wait: float = LONG
    ) -> Page:
        """One piece of a job's records, waiting up to ``wait`` seconds for the first."""
        return messages.page(
            await self._ask("frames", timeout=wait, job=job, start=start, count=count, vertices=vertices)
        )

    async def frames(self, job: str, start: int = 0, *, vertices: bool = True) -> AsyncIterator[FrameRecord]:
        """All records from ``start`` on, of a job that is done or still running, across restarts of the daemon."""
        end = False
        while not end:
            page = await self.page(job, start, vertices=vertices)
            for record in page.records:
                yield record
            start, end = page.next, page.end

    async def subject_page(
        self, job: str, who: str = "auto", start: int = 0, *, count: int = 100, vertices: bool = True,
        wait: float = LONG,
    ) -> Page:  # fmt: skip
        """One piece of what `subject` gives; without a header while that is being made, up to ``wait`` seconds."""
        return messages.page(
            await self._ask("subject", timeout=wait, job=job, who=who, start=start, count=count, vertices=vertices)
        )

    async def subject(
        self, job: str, who: str = "auto", start: int = 0, *, vertices: bool = True
    ) -> AsyncIterator[FrameRecord]:
        """The main person of a job that is done, or ``who`` else (a track's ID, x,y@frame, all): over all its tracks,
        gaps filled, smooth. A record for each frame from ``start`` on; docs/motion.md says more."""
        end = False
        while not end:
            page = await self.subject_page(job, who, start, vertices=vertices)
            for record in page.records:
                yield record
            start, end = page.next, page.end

    async def download(
        self,
        job: str,
        name: str,
        target: str | os.PathLike[str],
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Path:
        """Fetch a file of a job's results; ``target`` appears whole."""
        target = Path(target)
        beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with beside.open("xb") as file:
                offset, total = 0, None
                while total is None or offset < total:
                    found = await self._ask("file", job=job, name=name, offset=offset)
                    if total not in (None, found["total"]):
                        raise ClientError("results-gone", f"{name} of {job} has been replaced: fetch it again")
                    offset, total = offset + file.write(found["blob"]), found["total"]
                    if not found["blob"] and offset < total:
                        raise ClientError("results-gone", f"{name} of {job} ends at {offset} of {total} bytes")
                    progress(offset, total)
            beside.rename(target)
        finally:
            beside.unlink(missing_ok=True)
        return target

    async def image(
        self, data: bytes, *, vertices: bool = True, timeout: float = 60.0
    ) -> tuple[FrameRecord, Header]:
        """The people in one image file's bytes."""
        if len(data) > SMALL:
            most = (await self.hello())["limits"]["max_message"]
            if len(data) > most:  # the daemon would not answer, but close the connection
                raise ClientError(
                    "too-large", f"an image of {len(data)} bytes; the daemon takes {most} (api.max_message_mb)"
                )
        found = await self._ask("image", blob=data, timeout=timeout, vertices=vertices)
        return messages.record(found["record"]), decode_header(found["header"])

    # -- the daemon ------------------------------------------------------------------------------------

    async def health(self) -> dict[str, Any]:
        """State of every process, of memory, of the queue."""
        return await self._ask("health")

    async def reset(self, stage: str) -> None:
        """Start a stage that has failed."""
        await self._ask("reset", stage=stage)

    async def reload(self, stage: str | None = None) -> None:
        """Restart a stage, or all in turn, with the code that is on disk now."""
        await self._ask("reload", stage=stage)

    async def drain(self, on: bool = True) -> None:
        """Begin no more jobs; or begin them again."""
        await self._ask("drain", on=on)

    async def events(self, *topics: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Events whose topic begins with one of ``topics`` (all, without any), as they come, for ever."""
        where = await self._where_events()
        socket = self._prepare(self._context.socket(zmq.SUB))
        try:
            socket.connect(where)
            for topic in topics or ("",):
                socket.subscribe(topic)
            while True:
                if not await socket.poll(round(QUIET * 1000)):
                    with contextlib.suppress(ClientError):  # nobody is there at the moment
                        before, where = where, await self._where_events()
                        if where != before:  # another daemon has come, which publishes elsewhere
                            socket.disconnect(before)
                            socket.connect(where)
                    continue
                topic_bytes, body = await socket.recv_multipart()
                yield topic_bytes.decode(), msgpack.unpackb(body, raw=False)
        except asyncio.CancelledError:
            if self._closed:
                raise closed() from None
            raise
        finally:
            socket.close(linger=0)

    async def _where_events(self) -> str:
        """The address that was given, or that the daemon names which is there now."""
        return self._events_address or events_address(str((await self.hello())["events"]), self.address)

    # -- requests ----------------------------------------------------------------------------------------

    async def _ask(
        self,
        op: str,
        *,
        blob: bytes | None = None,
        timeout: float | None = None,
        wait: float = 0.0,
        again: float | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Send a request until it is answered.

        ``timeout`` is its own argument of that name, in seconds; ``wait`` what the daemon may take for one that has
        none. It is sent again ``again`` seconds after it should have been answered, or that late.
        """
        if timeout is not None:
            arguments["timeout"] = wait = timeout
        now = asyncio.get_running_loop().time
        patience = now() + self._patience + wait
        # However often it is sent it keeps its number: a late answer is one too.
        number = next(self._numbers)
        parts = messages.write(number, op, arguments, blob)
        try:
            while True:
                if self._closed:
                    raise closed()
                if number not in self._asked:
                    self._asked[number] = asyncio.get_running_loop().create_future()
                left = max(0.0, patience - now())
                try:
                    return await self._ask_once(
                        number, parts, min(left, QUICK + (wait if again is None else again))
                    )
                except ClientError as error:
                    # A daemon that stops in order says so; the next one answers. An image is its caller's to repeat.
                    if error.name != "busy" or op == "image" or now() >= patience:
                        raise
                    del self._asked[number]
                    await asyncio.sleep(0.2)
                except asyncio.TimeoutError:
                    if now() >= patience:
                        raise ClientError(
                            "timeout",
                            f"no answer from {self.address}: is the daemon running (`poseward serve`), and is that"
                            " its api.address?",
                        ) from None
        finally:
            self._asked.pop(number, None)

    async def _ask_once(self, number: int, parts: Sequence[bytes], wait: float) -> dict[str, Any]:
        async def answered() -> dict[str, Any]:
            await self._connect().send_multipart(parts)
            return await asyncio.shield(self._asked[number])

        return await asyncio.wait_for(answered(), wait)

    def _connect(self) -> zmq.asyncio.Socket:
        if self._socket is None:
            self._socket = self._prepare(self._context.socket(zmq.DEALER))
            self._socket.connect(self.address)
            self._reader = asyncio.create_task(self._read())
        return self._socket

    async def _read(self) -> None:
        assert self._socket is not None
        while True:
            parts = await self._socket.recv_multipart()
            try:
                number, found = messages.read(parts)
            except ClientError as error:
                number, answer = error.more.pop("id", None), error
                if (future := self._asked.get(number)) is not None and not future.done():
                    future.set_exception(answer)
            except Exception:  # noqa: BLE001  (what is no reply answers nothing: it will be asked again)
                continue
            else:
                if (future := self._asked.get(number)) is not None and not future.done():
                    future.set_result(found)

    def _prepare(self, socket: zmq.asyncio.Socket) -> zmq.asyncio.Socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 100)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20000)  # as patient as the daemon
        if self._keys is not None:
            socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = self._keys
        return socket


def default_addresses() -> tuple[str, str]:
    """The addresses that a daemon with the same configuration answers at.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    from daemon.settings.addresses import addresses, state_folder
    from daemon.settings.loading import load

    settings = load().settings
    found = addresses(settings.api, state_folder(settings))
    return found.requests, found.events
