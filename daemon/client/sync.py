"""The client that waits: `AsyncClient` in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from daemon.client.aio import LONG, AsyncClient
from daemon.client.messages import ClientError, Page, closed
from stages.records import FrameRecord, Header

Result = TypeVar("Result")


class Client:
    """Talks to one daemon; arguments, methods and errors are those of `AsyncClient`. May be used from several
    threads."""

    def __init__(
        self,
        address: str | None = None,
        *,
        events: str | None = None,
        patience: float = 30.0,
        key: str | Path | None = None,
        server_key: str | Path | None = None,
    ) -> None:
        self._inner = AsyncClient(address, events=events, patience=patience, key=key, server_key=server_key)
        self.address = self._inner.address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="poseward-client", daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way in other threads, by ``closed``. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True

        async def finish() -> None:
            await self._inner.close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hello(self) -> dict[str, Any]:
        return self._run(self._inner.hello())

    def submit(
        self,
        path: str | PathLike[str] | None = None,
        *,
        upload: str | None = None,
        name: str | None = None,
        key: str | None = None,
        priority: int = 0,
        exports: Sequence[str] | None = None,
        recompute: bool = False,
        stream: int | None = None,
    ) -> dict[str, Any]:
        return self._run(
            self._inner.submit(
                path,
                upload=upload,
                name=name,
                key=key,
                priority=priority,
                exports=exports,
                recompute=recompute,
                stream=stream,
            )
        )

    def upload(self, path: str | PathLike[str], progress: Callable[[int, int], None] = lambda *_: None) -> str:
        return self._run(self._inner.upload(path, progress))

    def status(self, job: str | None = None, *, key: str | None = None) -> dict[str, Any]:
        return self._run(self._inner.status(job, key=key))

    def list(
        self, states: Sequence[str] | None = None, *, limit: int = 100, before: int | None = None, text: str = ""
    ) -> dict[str, Any]:
        return self._run(self._inner.list(states, limit=limit, before=before, text=text))

    def wait(
        self,
        job: str,
        timeout: float | None = None,
        progress: Callable[[dict[str, Any]], None] = lambda _job: None,
    ) -> dict[str, Any]:
        return self._run(self._inner.wait(job, timeout, progress))

    def cancel(self, job: str) -> dict[str, Any]:
        return self._run(self._inner.cancel(job))

    def retry(self, job: str) -> dict[str, Any]:
        return self._run(self._inner.retry(job))

    def results(self, job: str) -> dict[str, Any]:
        return self._run(self._inner.results(job))

    def page(
        self, job: str, start: int = 0, *, count: int = 100, vertices: bool = True, wait: float = LONG
    ) -> Page:
        return self._run(self._inner.page(job, start, count=count, vertices=vertices, wait=wait))

    def frames(self, job: str, start: int = 0, *, vertices: bool = True) -> Iterator[FrameRecord]:
        return self._iterate(self._inner.frames(job, start, vertices=vertices))

    def subject_page(
        self, job: str, who: str = "auto", start: int = 0, *, count: int = 100, vertices: bool = True,
        wait: float = LONG,
    ) -> Page:  # fmt: skip
        return self._run(self._inner.subject_page(job, who, start, count=count, vertices=vertices, wait=wait))

    def subject(
        self, job: str, who: str = "auto", start: int = 0, *, vertices: bool = True
    ) -> Iterator[FrameRecord]:
        return self._iterate(self._inner.subject(job, who, start, vertices=vertices))

    def download(
        self,
        job: str,
        name: str,
        target: str | PathLike[str],
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Path:
        return self._run(self._inner.download(job, name, target, progress))

    def image(self, data: bytes, *, vertices: bool = True, timeout: float = 60.0) -> tuple[FrameRecord, Header]:
        return self._run(self._inner.image(data, vertices=vertices, timeout=timeout))

    def health(self) -> dict[str, Any]:
        return self._run(self._inner.health())

    def reset(self, stage: str) -> None:
        self._run(self._inner.reset(stage))

    def reload(self, stage: str | None = None) -> None:
        self._run(self._inner.reload(stage))

    def drain(self, on: bool = True) -> None:
        self._run(self._inner.drain(on))

    def events(self, *topics: str) -> Iterator[tuple[str, dict[str, Any]]]:
        return self._iterate(self._inner.events(*topics))

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        left = threading.Event()

        async def heard() -> Result:
            try:
                return await work
            except ClientError:
                if left.is_set():  # nobody would fetch the error, and asyncio would say so on stderr
                    raise asyncio.CancelledError from None
                raise

        with self._lock:
            if self._closed:
                work.close()
                raise closed()
            future = asyncio.run_coroutine_threadsafe(heard(), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise closed() from None
        except BaseException:
            left.set()  # Ctrl-C
            future.cancel()
            raise

    def _iterate(self, source: AsyncIterator[Result]) -> Iterator[Result]:
        async def following() -> Result:
            return await source.__anext__()

        try:
            while True:
                try:
                    item = self._run(following())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            with contextlib.suppress(ClientError, RuntimeError):
                self._run(source.aclose())  # type: ignore[attr-defined]
