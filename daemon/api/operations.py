"""What each operation of docs/protocol.md does. Runs in the API's thread; what needs the pipeline is `Port.call`ed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from daemon.api import messages as ms
from daemon.api.frame_events import FrameEvents
from daemon.api.messages import DEADLINE, ApiError, plain_record
from daemon.api.paths import resolve
from daemon.api.server import Later, Reply
from daemon.api.streams import Streams
from daemon.api.subjects import Subjects, made_subject
from daemon.api.uploads import CHUNK, Uploads
from daemon.jobs import summary
from daemon.jobs.images import ImageFailed
from daemon.jobs.store import JobStore, State, StoredJob, StoreError, Submission
from daemon.settings.loading import Loaded
from stages.records import Header
from stages.results import ResultsError, read_results
from stages.results.stream import encode_header
from stages.settings import STAGES

Result = TypeVar("Result")


class Port(Protocol):
    """What the API needs of the daemon. Everything here may be called from the API's thread."""

    loaded: Loaded

    def call(self, work: Callable[[], Result]) -> Future[Result]: ...
    def hello(self) -> dict[str, Any]: ...
    def health(self) -> dict[str, Any]: ...
    def job_map(self, job: StoredJob) -> dict[str, Any]: ...
    def progress(self, job: str) -> dict[str, Any] | None: ...
    def growing(self, job: str) -> Path | None: ...
    def draining(self) -> bool: ...
    def results_away(self) -> str | None: ...
    def cancel(self, job: str) -> StoredJob | None: ...
    def retry(self, job: str) -> StoredJob | None: ...
    def image(self, data: bytes, timeout: float) -> Future[Path]: ...
    def reset(self, stage: str) -> None: ...
    def reload(self, stages: Iterable[str]) -> None: ...
    def drain(self, on: bool) -> None: ...
    def known_exports(self) -> Iterable[str]: ...


class Operations:
    """The `daemon.api.server.Handler` of a daemon."""

    def __init__(self, port: Port, store: JobStore, uploads: Uploads) -> None:
        self._port = port
        self._store = store
        self._uploads = uploads
        self._streams = Streams()
        self._subjects = Subjects(lambda: port.loaded.settings)
        self._slow = ThreadPoolExecutor(1, "pw-digest")
        self._events = FrameEvents(port, store, self._streams)

    def handle(self, client: bytes, operation: ms.Operation, blob: bytes, own: bool = False) -> Reply | Later:
        """Do one operation; ``own``: for somebody who has the daemon's own rights on this machine.

        Raises:
            ApiError: it is refused.
        """
        try:
            return self._handle(client, operation, blob, own)
        except StoreError as error:
            raise ApiError(error.name, str(error)) from error

    def _handle(self, client: bytes, operation: ms.Operation, blob: bytes, own: bool) -> Reply | Later:
        match operation:
            case ms.Hello():
                return self._port.hello(), None
            case ms.Submit():
                return self._submit(operation, own)
            case ms.Upload():
                return self._uploads.begin(operation.name, operation.size, operation.sha256).as_map(), None
            case ms.Chunk():
                return self._chunk(operation, blob)
            case ms.Image():
                return self._image(operation, blob)
            case ms.Status():
                return {"job": self._port.job_map(self._find(operation.job, operation.key))}, None
            case ms.Listing():
                return self._list(operation)
            case ms.Wait():
                return self._wait(operation)
            case ms.Cancel():
                return self._change(operation.job, self._port.cancel)
            case ms.Retry():
                return self._change(operation.job, self._retry)
            case ms.Results():
                return self._results(operation.job)
            case ms.File():
                return self._file(operation)
            case ms.Frames():
                return self._frames(client, operation)
            case ms.Subject():
                return self._subject(client, operation)
            case ms.Health():
                return self._later(self._port.health, lambda found: found)
            case ms.Reset():
                return self._later(lambda: self._port.reset(_stage(operation.stage)), lambda _: {})
            case ms.Reload():
                stages = STAGES if operation.stage is None else (_stage(operation.stage),)
                return self._later(lambda: self._port.reload(stages), lambda _: {})
            case ms.Drain():
                return self._later(lambda: self._port.drain(operation.on), lambda _: {})
        raise ApiError("unknown-op", operation.op)

    def subscribed(self, topic: str, wanted: bool) -> None:
        self._events.subscribed(topic, wanted)

    def changed(self, job: str) -> Iterable[tuple[str, dict[str, Any]]]:
        return self._events.changed(job)

    def gone(self, client: bytes) -> None:
        """A client is not connected any more."""
        self._streams.forget(client)

    def close(self) -> None:
        self._streams.close()
        self._subjects.close()
        self._slow.shutdown(wait=False, cancel_futures=True)

    # -- jobs ------------------------------------------------------------------------------------------

    def _submit(self, asked: ms.Submit, own: bool) -> Reply:
        settings = self._port.loaded.settings.api
        if asked.key is not None and (known := self._store.by_key(asked.key)) is not None:
            return {"job": self._port.job_map(known), "new": False}, None
        if (asked.path is None) == (asked.upload is None):
            raise ApiError("bad-request", "submit: either path or upload, and not both")
        if self._port.draining():
            raise ApiError(
                "draining", "the daemon takes no new jobs at the moment (`poseward drain --off` ends that)"
            )
        options: dict[str, Any] = {}
        if asked.exports is not None:
            known_exports = list(self._port.known_exports())
            for name in asked.exports:
                if name not in known_exports:
                    raise ApiError(
                        "bad-request", f"submit: no export {name!r}; there are {', '.join(known_exports)}"
                    )
            options["exports"] = asked.exports
        if asked.recompute:
            options["recompute"] = True
        if asked.stream is not None:
            options["stream"] = asked.stream
        if asked.upload is not None:
            upload = self._uploads.state(asked.upload)
            path, name, origin = self._uploads.used(upload), upload.name, "upload"
        else:
            assert asked.path is not None
            path, origin = resolve(asked.path, None if own else settings.roots), "api"
            name = path.name
        wanted = Submission(
            str(path), (asked.name or name).replace("\0", "_"), origin, asked.priority, asked.key, options
        )
        job, new = self._store.add(wanted, most_waiting=settings.max_queue)
        return {"job": self._port.job_map(job), "new": new}, None

    def _find(self, job: str | None, key: str | None = None) -> StoredJob:
        if (job is None) == (key is None):
            raise ApiError("bad-request", "either job or key, and not both")
        found = self._store.get(job) if job is not None else self._store.by_key(key or "")
        if found is None:
            raise ApiError("no-such-job", f"no job {job or key!r}: `poseward status` lists them")
        return found

    def _list(self, asked: ms.Listing) -> Reply:
        states = [State(state) for state in asked.states or ()]
        jobs = self._store.jobs(states, limit=asked.limit, before=asked.before, text=asked.text)
        return {"jobs": [self._port.job_map(job) for job in jobs], "counts": self._store.counts()}, None

    def _wait(self, asked: ms.Wait) -> Later:
        self._find(asked.job)

        def attempt(last: bool) -> Reply | None:
            job = self._port.job_map(self._find(asked.job))
            further = asked.committed is not None and job.get("progress", {}).get("committed", 0) > asked.committed
            return ({"job": job}, None) if last or further or State(job["state"]).final else None

        return Later(attempt, float(asked.timeout), job=asked.job)

    def _change(self, job: str, change: Callable[[str], StoredJob | None]) -> Later:
        self._find(job)
        return self._later(
            lambda: change(job), lambda found: {"job": self._port.job_map(found or self._find(job))}
        )

    def _retry(self, job: str) -> StoredJob:
        """A job that is in the queue or in work stays as it is: its client may have lost the answer, and asks again."""
        if (moved := self._port.retry(job)) is not None:
            return moved
        found = self._find(job)
        if found.state is State.DONE:
            raise ApiError(
                "wrong-state", f"{job} is done: submit its video again, with recompute, to compute anew"
            )
        if found.state.final:
            raise ApiError(
                "busy", f"{job} is {found.state.value}, but what was in work has not ended yet: ask again"
            )
        return found

    # -- results -----------------------------------------------------------------------------------------

    def _done(self, job: str) -> tuple[StoredJob, Path]:
        found = self._find(job)
        if found.state is not State.DONE or found.results is None:
            raise ApiError(
                "not-ready", f"{job} is {found.state.value}: {found.message or 'it has no results yet'}"
            )
        folder = Path(found.results)
        with self._reading(folder):
            if not folder.is_dir():
                raise FileNotFoundError
        if found.fetched is None:
            self._store.fetched(job)
        return found, folder

    @contextlib.contextmanager
    def _reading(self, folder: Path) -> Iterator[None]:
        """What is not there was removed, or is on a disk that is not there: that must not look the same."""
        try:
            yield
        except (OSError, ResultsError, summary.SummaryError) as error:
            away = self._port.results_away()
            if away is not None:
                raise ApiError("results-away", away) from error
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise ApiError("results-away", f"{folder}: {error.strerror}: look at that disk") from error
            if folder.exists():
                raise ApiError("results-gone", str(error)) from error
            raise ApiError(
                "results-gone", f"{folder} was removed; submit the video again with recompute"
            ) from error

    def _results(self, job: str) -> Reply:
        found, folder = self._done(job)
        with self._reading(folder):
            content = summary.read_summary(folder)
            files = [
                {"name": path.name, "bytes": path.stat().st_size}
                for path in sorted(folder.iterdir())
                if path.is_file() and not path.name.startswith(".")
            ]
        described = {"job": self._port.job_map(found), "summary": content, "folder": str(folder), "files": files}
        return described, None

    def _file(self, asked: ms.File) -> Reply:
        _, folder = self._done(asked.job)
        path = folder / asked.name
        if (
            path.parent != folder
            or path.name != asked.name
            or asked.name.startswith(".")
            or path.is_symlink()
            or not path.is_file()
        ):
            raise ApiError("no-such-file", f"the results of {asked.job} have no file {asked.name!r}")
        with self._reading(folder), path.open("rb") as file:
            total = path.stat().st_size
            file.seek(asked.offset)
            data = file.read(min(CHUNK, CHUNK if asked.size is None else asked.size))
        return {"name": asked.name, "offset": asked.offset, "total": total}, data

    def _frames(self, client: bytes, asked: ms.Frames) -> Later:
        def attempt(last: bool) -> Reply | None:
            found = self._frames_now(client, asked)
            return found if last or found[0]["records"] or found[0]["end"] else None

        return Later(attempt, float(asked.timeout), job=asked.job)

    def _frames_now(self, client: bytes, asked: ms.Frames) -> Reply:
        job = self._find(asked.job)
        if job.state in (State.FAILED, State.CANCELLED):  # also while somebody waits: an end would look like all
            raise ApiError("not-ready", f"{asked.job} is {job.state.value}: {job.message or 'it has no results'}")
        folder: Path | None
        if done := job.state is State.DONE:
            job, folder = self._done(asked.job)
        else:
            folder = self._port.growing(asked.job)
        header: Header | None = None
        records: list[dict[str, Any]] = []
        following = asked.start
        if folder is not None:
            try:
                with self._reading(folder) if done else contextlib.nullcontext():
                    header, records, following = self._streams.read(
                        client,
                        asked.job,
                        folder / summary.FRAMES,
                        asked.start,
                        asked.count,
                        vertices=asked.vertices,
                    )
            except ResultsError:
                pass  # not there yet
        total = job.frames if done else None
        end = job.state.final and (total is None or following >= total)
        if end:
            self._streams.forget(client, asked.job)
        described = {
            "header": encode_header(header) if header is not None else None,
            "records": records,
            "next": following,
            "end": end,
            "state": job.state.value,
        }
        return described, None

    def _subject(self, client: bytes, asked: ms.Subject) -> Later:
        job, folder = self._done(asked.job)
        future = self._subjects.find(folder, asked.who)

        def attempt(last: bool) -> Reply | None:
            header: Header | None = None
            records: list[dict[str, Any]] = []
            following = asked.start
            if future.done():
                with self._reading(folder):
                    path = made_subject(future)
                    header, records, following = self._streams.read(
                        client, f"{job.id} {path.name}", path, asked.start, asked.count, vertices=asked.vertices
                    )
            elif not last:
                return None
            described = {
                "header": encode_header(header) if header is not None else None,
                "records": records,
                "next": following,
                "end": header is not None and following >= (job.frames or 0),
                "state": job.state.value,
            }
            return described, None

        return Later(attempt, float(asked.timeout), future=future)

    # -- uploads and images ------------------------------------------------------------------------------

    def _chunk(self, asked: ms.Chunk, blob: bytes) -> Reply | Later:
        state = self._uploads.add(asked.upload, asked.offset, blob)
        if state.complete or state.offset < state.size:
            return state.as_map(), None
        future = self._slow.submit(self._uploads.finish, asked.upload)
        return Later(lambda _: (future.result().as_map(), None) if future.done() else None, 600.0, future=future)

    def _image(self, asked: ms.Image, blob: bytes) -> Later:
        if not blob:
            raise ApiError("bad-request", "image: the second part is empty")
        try:
            future = self._port.image(blob, float(asked.timeout))
        except ImageFailed as error:
            raise ApiError(error.name, str(error)) from error

        def attempt(_last: bool) -> Reply | None:
            if not future.done():
                return None
            try:
                folder = future.result()
            except ImageFailed as error:
                raise ApiError(error.name, str(error)) from error
            try:
                with read_results(folder / "work" / summary.FRAMES) as results:
                    record = next(iter(results))
                    made = {
                        "record": plain_record(record, vertices=asked.vertices), "header": encode_header(results.header)
                    }  # fmt: skip
                return made, None
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        def dropped() -> None:
            future.cancel()

        return Later(attempt, float(asked.timeout) + DEADLINE, future=future, dropped=dropped)

    # -- the daemon's loop -------------------------------------------------------------------------------

    def _later(self, work: Callable[[], Result], describe: Callable[[Result], dict[str, Any]]) -> Later:
        future = self._port.call(work)

        def attempt(_last: bool) -> Reply | None:
            if not future.done():
                return None
            try:
                return describe(future.result()), None
            except StoreError as error:
                raise ApiError(error.name, str(error)) from error

        return Later(attempt, DEADLINE, future=future)


def _stage(name: str) -> str:
    if name not in STAGES:
        raise ApiError("no-such-stage", f"no stage {name!r}; there are {', '.join(STAGES)}")
    return name
