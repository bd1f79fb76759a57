"""A machine of the cluster: the usual supervised pipeline, which works on segments that the front sends.

Runs as a Ray actor. It promises what a pipeline on one machine promises: a stage that dies is restarted, what it
lost is replayed, and a frame that keeps killing it is skipped by name. If the station itself dies, its segment is
given to another.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgpack
from pydantic import TypeAdapter

from daemon.jobs import summary
from daemon.jobs.mailbox import Mailbox
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed, StageEvent
from stages.owner.pipeline import Pipeline
from stages.protocols import ConfigurationError, find_backend
from stages.results.journal import Journal
from stages.settings import PipelineSettings

TURN = 0.2
"""Longest turn of the pipeline's loop in seconds."""
UNCOMPARED = ("python", "env", "nice", "preload")
"""Settings of a stage that may differ between machines without changing a result."""


class SegmentError(Exception):
    """A segment that cannot be done: ``name`` as `stages.owner.jobs.JobFailed` has it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name, self.message = name, message


class NotHereError(Exception):
    """This machine does not see the input under its path, or sees another file there: the bytes are wanted."""


def describe(settings: PipelineSettings) -> dict[str, str]:
    """What must be the same on all machines for their results to be the same, by names that a person understands."""
    found = {f"version of {package}": version for package, version in summary.versions().items()}
    try:
        backend = find_backend(settings.backend)
        for file in backend.files(settings.options, thorough=False):
            size = file.path.stat().st_size if file.path.is_file() else "missing"
            found[f"model file {file.path.name}"] = str(size)
    except ConfigurationError as error:
        found["backend"] = str(error)
    return found


class Station:
    """One pipeline and a thread that runs its loop. Its methods are called by Ray, several at a time.

    Args:
        values: the front's pipeline settings as a plain map, which another version can read, and be refused.
        wanted: the front's `describe`.
    """

    def __init__(self, values: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
        self.refusal = ""
        self._folder = Path(tempfile.mkdtemp(prefix="pw-"))  # short, for sockets
        self._copies: dict[str, Path] = {}
        self._copying = threading.Lock()
        self._known: set[tuple[str, str]] = set()
        self._jobs: dict[str, Future[JobDone]] = {}
        self._said: deque[str] = deque(maxlen=20)
        self._mailbox = Mailbox()
        self._pipeline: Pipeline | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._numbers = 0
        try:
            settings = _settings(values)
        except (KeyError, TypeError, ValueError) as error:
            self.refusal = f"it does not understand the front's settings ({error!r}): install the same version"
            return
        self.refusal = "; ".join(
            f"{key} is {own}, the front's is {wanted.get(key, 'unknown')}"
            for key, own in describe(settings).items()
            if own != wanted.get(key)
        )
        if not self.refusal:
            self._pipeline = Pipeline(
                settings, self._on_event, runtime=self._folder, wake=self._mailbox.descriptor
            )
            self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)
            self._thread.start()

    def introduce(self) -> dict[str, Any]:
        """Who this is, and why it is of no use, if so."""
        return {"host": socket.gethostname(), "pid": os.getpid(), "refusal": self.refusal}

    def status(self) -> dict[str, Any]:
        """What it does, for `poseward top`."""
        if self._pipeline is None:
            return {"refusal": self.refusal}
        found = self._mailbox.call(self._pipeline.status).result(TURN * 50)
        processes = {name: state.phase for name, state in found["processes"].items()}
        return {"processes": processes, "said": list(self._said)}

    def work(self, source: Mapping[str, Any], first: int, stop: int, chunks: Sequence[Any] = ()) -> bytes:
        """The journal of some frames.

        Args:
            source: ``path`` and ``sha256`` of the input.
            first: the first frame.
            stop: the frame after the last one; the input may end before it.
            chunks: Ray references of the input's bytes, where this machine does not see its path.

        Returns:
            A msgpack list of (frame, payload) as `stages.results.journal.Journal` has them.

        Raises:
            NotHereError: the input is not there under its path; to be called again with its bytes.
            SegmentError: it failed here as it would have failed on one machine.
        """
        if self._pipeline is None:
            raise SegmentError("station-refused", self.refusal)
        path = self._locate(source, chunks)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            self._submit(path, Path(folder), first, stop).result()
            journal = Journal.open(Path(folder), first)
            try:
                records: bytes = msgpack.packb(list(journal.read(first)))
            finally:
                journal.close()
        return records

    def close(self) -> None:
        """End its processes. A station that Ray ends needs no such word: its processes end with it."""
        self._closing = True
        if self._thread is not None:
            self._mailbox.ring()
            self._thread.join()
        self._mailbox.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- inside --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # One thread starts the stages and lives as long as they do: the kernel ends them with it.
        assert self._pipeline is not None
        self._pipeline.start()
        while not self._closing:
            self._pipeline.step(TURN)
            self._mailbox.empty()
        self._pipeline.close()

    def _submit(self, path: Path, folder: Path, first: int, stop: int) -> Future[JobDone]:
        pipeline = self._pipeline
        assert pipeline is not None
        future: Future[JobDone] = Future()

        def submit() -> None:
            self._numbers += 1
            name = f"segment-{self._numbers}"
            self._jobs[name] = future
            pipeline.submit(Job(name, str(path), str(folder), segment=(first, stop)))

        self._mailbox.call(submit)
        return future

    def _on_event(self, event: JobEvent) -> None:
        if isinstance(event, StageEvent):
            self._said.append(f"{event.stage} {event.state}: {event.message}")
        elif isinstance(event, JobDone):
            self._jobs.pop(event.job).set_result(event)
        elif isinstance(event, JobFailed):
            self._jobs.pop(event.job).set_exception(SegmentError(event.error, event.message))

    def _locate(self, source: Mapping[str, Any], chunks: Sequence[Any]) -> Path:
        path, digest = Path(source["path"]), str(source["sha256"])
        with self._copying:
            if digest in self._copies:
                return self._copies[digest]
            if not chunks:
                if not self._is_here(path, digest):
                    raise NotHereError(f"{socket.gethostname()} does not see {path} with the front's content")
                return path
            import ray

            copy = self._folder / f"{digest[:16]}-{path.name}"
            if shutil.disk_usage(self._folder).free < int(source["bytes"]):
                raise SegmentError(
                    "disk-full", f"{socket.gethostname()}: no room in {self._folder} for {path.name}"
                )
            with copy.open("wb") as file:
                for chunk in chunks:
                    file.write(ray.get(chunk))
            for older in list(self._copies)[:-1]:
                self._copies.pop(older).unlink(missing_ok=True)
            self._copies[digest] = copy
            return copy

    def _is_here(self, path: Path, digest: str) -> bool:
        if (str(path), digest) in self._known:
            return path.exists()
        try:
            same = bool(summary.identify(path)["sha256"] == digest)
        except OSError:
            return False
        if same:
            self._known.add((str(path), digest))
        return same


def to_map(settings: PipelineSettings) -> dict[str, Any]:
    """The front's settings for `Station`. What belongs to the front's machine alone is left out."""
    values = asdict(settings)
    for stage in ("decode", "detect", "mesh", "track"):
        for name in UNCOMPARED:
            del values[stage][name]
    return values


def _settings(values: Mapping[str, Any]) -> PipelineSettings:
    settings = TypeAdapter(PipelineSettings).validate_python(values)
    # A segment may be all damage: whether that is too much is judged over the whole job, by the front.
    return replace(settings, max_failed_fraction=1.0)
