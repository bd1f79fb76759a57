"""The track stage: messages in, in order, into the journal and the results; nothing behind it.

A frame is committed when its mesh output is in the job's journal. Everything after that, the tracker and the
results file, is a deterministic fold over the journal, so that this process can die at any moment: its
successor restores the last snapshot, cuts the results file back to the length it had then, and folds the
journal's tail again.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.names import legible
from stages.process.fold import Fold, SourceChangedError
from stages.process.loop import Reporter, StageLoop
from stages.process.segment import Segment
from stages.process.start import WHOLE_JOB, StageConfig
from stages.process.versions import versions
from stages.protocols import Backend, find_backend
from stages.results.journal import JournalError, JournalFullError
from stages.transport.wire import (
    EndMessage,
    FrameMessage,
    WireError,
    unpack,
)
from supervisor.child import Link

Message = FrameMessage | EndMessage


def main(link: Link, values: Mapping[str, Any]) -> None:
    """Entry of the track process."""
    config = StageConfig.from_map(values)
    config = replace(config, options={"threads": config.threads, **config.options})
    report = Reporter(link)
    link.phase("loading", config.backend)
    backend = find_backend(config.backend)
    backend.load_tracking(config.options, report)
    report.loading = False
    stage = Track(link, config, backend)
    link.ready(backend=config.backend, versions=versions(backend.packages.get(config.stage, ())))
    stage.run()


class Track:
    """The loop of the track process: puts frames in order, drops what it has already, commits."""

    def __init__(self, link: Link, config: StageConfig, backend: Backend) -> None:
        self._link = link
        self._config = config
        self._backend = backend
        self._faults = config.fault_plan()
        receiver = config.receiver(link.context)
        if receiver is None:
            raise ValueError("track has no pipe to receive from")
        self._receiver = receiver
        self._loop = StageLoop(link, receiver, None, self._control, self._new_epoch)
        self._folds: dict[int, Fold | Segment] = {}
        self._waiting: dict[int, dict[int, Message]] = {}
        self._skipped: dict[int, dict[int, str]] = {}
        self._finished: set[int] = set()
        """Until the owner drops them: it may have asked twice for a job, and the second request must not open again,
        and cut, what the first has finished."""

    def run(self) -> None:
        self._loop.run(self._turn)
        for fold in self._folds.values():
            fold.close()

    def _turn(self, urgent_only: bool) -> bool:
        data = self._receiver.receive(urgent=True)
        if data is None and not urgent_only:
            data = self._receiver.receive()
        if data is None:
            return False
        self._take(data)
        return True

    def _control(self, kind: str, payload: dict[str, Any]) -> None:
        job = int(payload["job"])
        if kind == "job":
            self._open(job, Path(payload["folder"]), payload["info"], payload["segment"])
        elif kind == "skip":
            self._skipped.setdefault(job, {})[int(payload["frame"])] = str(payload["reason"])
        elif kind == "drop":
            self._close(job)

    def _new_epoch(self) -> None:
        for waiting in self._waiting.values():
            waiting.clear()

    def _open(self, job: int, folder: Path, info: Mapping[str, Any], segment: list[int] | None) -> None:
        if job in self._folds or job in self._finished:
            return

        def doing(frame: int) -> AbstractContextManager[object]:
            return self._link.working({"stage": "track", "work": [[job, frame]], "batch": 1})

        skipped = self._skipped.setdefault(job, {})
        try:
            with doing(WHOLE_JOB):  # until the first frame of the journal's tail, if there is one
                fold: Fold | Segment
                if segment is None:
                    fold = Fold(folder, self._backend, self._config, info, skipped, doing)
                else:
                    fold = Segment(folder, segment[0], follows=self._backend.follower is not None)
        except (JournalError, SourceChangedError, OSError) as error:
            self._unwritable(job, error)
            return
        self._folds[job] = fold
        self._waiting[job] = {}
        self._link.send("resumed", {"job": job, "next": fold.next_frame, "state": fold.state})

    def _close(self, job: int) -> None:
        fold = self._folds.pop(job, None)
        if fold is not None:
            try:
                fold.close()
            except OSError as error:  # nobody waits for it any more, and other jobs are in work
                print(f"job {job}: its files were not closed in order: {error}", file=sys.stderr)
        self._waiting.pop(job, None)
        self._skipped.pop(job, None)
        self._finished.discard(job)

    def _take(self, data: bytes) -> None:
        try:
            message = unpack(data)
        except WireError as error:
            self._link.send("corrupt", {"reason": str(error)})
            return
        self._loop.raise_epoch(message.epoch)
        fold = self._folds.get(message.job)
        if message.epoch < self._loop.epoch or fold is None:
            return
        waiting = self._waiting[message.job]
        # The end stands where the frame after the last one would stand.
        waiting[message.frames if isinstance(message, EndMessage) else message.frame] = message
        while (ready := waiting.pop(fold.next_frame, None)) is not None:
            try:
                if isinstance(ready, EndMessage):
                    self._finish(ready, fold)
                    return
                self._commit(ready, fold)
            except (JournalError, OSError) as error:
                self._unwritable(message.job, error)
                return
        for frame in [frame for frame in waiting if frame < fold.next_frame]:
            del waiting[frame]

    def _unwritable(self, job: int, error: Exception) -> None:
        self._link.idle()
        told = {"job": job, "error": _error_name(error), "message": legible(str(error))}
        self._link.send("unwritable", told)
        self._close(job)

    def _commit(self, message: FrameMessage, fold: Fold | Segment) -> None:
        started = time.perf_counter()
        if message.frame not in self._skipped[message.job]:
            with self._link.working({"stage": "track", "work": [[message.job, message.frame]], "batch": 1}):
                self._faults.before([message.frame])
        fold.commit(message)
        self._link.send(
            "committed",
            {"job": message.job, "next": fold.next_frame, "state": fold.state,
             "seconds": time.perf_counter() - started, "failed": fold.failed,
             "latest_failure": fold.latest_failure},
        )  # fmt: skip

    def _finish(self, message: EndMessage, fold: Fold | Segment) -> None:
        with self._link.working({"stage": "track", "work": [[message.job, WHOLE_JOB]]}):
            tally = fold.finish()
        self._finished.add(message.job)
        del self._folds[message.job]
        del self._waiting[message.job]
        self._link.send(
            "finished",
            {
                "job": message.job, "frames": message.frames, "truncated": message.truncated,
                "people": tally.people, "tracks": len(tally.ids),
                "failures": [[n, f.stage, f.reason] for n, f in sorted(tally.failures.items())],
                "latest_failure": fold.latest_failure, "damaged": tally.damaged,
            },
        )  # fmt: skip


def _error_name(error: Exception) -> str:
    """The stable name of what keeps a job from being written down."""
    if isinstance(error, SourceChangedError):
        return "source-changed"
    cause = error if isinstance(error, OSError) and error.errno else error.__cause__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "disk-full" if full or isinstance(error, JournalFullError) else "cannot-write-results"
