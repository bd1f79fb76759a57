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
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.names import legible
from stages.process.loop import Reporter, StageLoop
from stages.process.segment import Segment, Tally, payload_of
from stages.process.start import CHANGED, WHOLE_JOB, StageConfig, looks
from stages.process.versions import versions
from stages.protocols import Backend, Tracker, find_backend
from stages.records import Failure, FrameRecord, People
from stages.results.journal import Journal, JournalError, JournalFullError
from stages.results.stream import ResultWriter
from stages.transport.wire import (
    EndMessage,
    FrameMessage,
    WireError,
    decode_people,
    pack_value,
    unpack,
    unpack_value,
)
from supervisor.child import Link

RESULTS_NAME = "frames.msgpack"
"""Name of the growing results file in a job's work folder."""

SNAPSHOT_LAYOUT = 3
"""Raise it whenever a snapshot would be misread by the code that follows. Others are left out, and what they
held is folded again from the journal."""

Message = FrameMessage | EndMessage


class SnapshotError(Exception):
    """A snapshot that this version or backend did not write."""


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


class SourceChangedError(Exception):
    """The journal holds frames of another input."""


Doing = Callable[[int], AbstractContextManager[object]]
"""Writes into the flight recorder that this frame is being folded."""


class Fold:
    """One job's journal, tracker and results file.

    ``skipped`` maps frames on which the tracker itself has kept dying to the reason; folded as failed.
    """

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        config: StageConfig,
        info: Mapping[str, Any],
        skipped: dict[int, str],
        doing: Doing,
    ) -> None:
        width, height, fps = int(info["width"]), int(info["height"]), float(info["fps"])
        options = config.options
        self._folder = folder
        self._source = looks(info)
        self._backend = backend
        self._every = config.snapshot_every
        self._vertices = config.vertices
        self._skipped = skipped
        self._doing = doing
        self.state: bytes | None = None if backend.follower is None else b""
        """What the follower knew after the last committed frame."""
        self._tally = Tally()
        self.journal = Journal.open(folder)
        self._new_tracker = partial(backend.tracker, options, width, height, fps)
        self._tracker: Tracker
        self._writer: ResultWriter
        try:
            start = self._resume()
            if start is None:
                start = 0
                self._tracker = self._new_tracker()
                rate, variable = info.get("rate", (0, 0)), bool(info.get("variable", False))
                header = backend.header(options, width, height, fps)
                header = replace(header, rate=(int(rate[0]), int(rate[1])), variable=variable)
                self._writer = ResultWriter.create(folder / RESULTS_NAME, header)
                self.journal.discard_snapshots(-1)
                # A snapshot before the first frame: from now on there is one way of restoring only.
                self._snapshot(0)
        except BaseException:
            self.journal.close()  # its lock would keep out whoever tries again
            raise
        try:
            for frame, payload in self.journal.read(start):
                with doing(frame):
                    self._fold(frame, payload)
        except BaseException:
            self.close()
            raise

    def _resume(self) -> int | None:
        """Restore the newest snapshot that can be used, and cut the results file back to what it was then.

        Returns:
            The frame to fold on from; None where everything has to be folded from the first frame on.

        Raises:
            JournalError: no snapshot can be used, and the journal no longer goes back to the first frame.
            SourceChangedError: the newest that can be used is of a job on another input.
        """
        why = ""
        for frame, data in self.journal.snapshots():
            try:
                self._writer = ResultWriter.resume(self._folder / RESULTS_NAME, self._restore(data))
            except (MemoryError, SourceChangedError):
                raise
            except Exception as error:  # noqa: BLE001 - a tracker of another version may refuse in any way
                why = why or f"{type(error).__name__}: {error}"
                print(f"{self._folder}: the snapshot at frame {frame} is left out: {error}", file=sys.stderr)
                continue
            self.journal.discard_snapshots(frame)
            return frame
        if self.journal.first_frame > 0:
            raise JournalError(
                f"{self._folder}: no snapshot there can be used ({why}), and the journal no longer goes back to the "
                "first frame; finish the job with the version that began it, or begin anew (--fresh)"
            )
        return None

    @property
    def next_frame(self) -> int:
        return self.journal.next_frame

    def commit(self, message: FrameMessage) -> None:
        """Journal one frame, which makes it safe, then fold it."""
        payload = payload_of(message)
        with self._doing(message.frame):
            self.journal.append(message.frame, payload)
            self._fold(message.frame, payload)
            if self.next_frame % self._every == 0:
                self._snapshot(self.next_frame)

    @property
    def failed(self) -> int:
        return len(self._tally.failures)

    def finish(self) -> Tally:
        """Write what the tracker still held back, and close the results file."""
        self._write(self._tracker.finish())
        self.close()
        return self._tally

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self.journal.close()

    def _fold(self, frame: int, payload: bytes) -> None:
        # Always through the bytes, never from the live message: a replayed fold must see the very same input.
        value = unpack_value(payload)
        self.state = value.get("state", self.state)
        if value["failed"] is not None:
            stage, reason = value["failed"]
            self._tally.failures[frame] = Failure(stage, reason)
        people = People.empty() if value["people"] is None else decode_people(value["people"])
        if frame in self._skipped:
            self._tally.failures[frame] = Failure("track", self._skipped[frame])
            people = People.empty()
        self._write(self._tracker.update(frame, float(value["time"]), people))

    def _write(self, records: list[FrameRecord]) -> None:
        for record in records:
            record.failed = self._tally.failures.get(record.frame, record.failed)
            if record.failed is not None:
                record.tracks = []  # even where the tracker knows who must have been there: see encode_record
            if not self._vertices:
                for track in record.tracks:
                    track.vertices = None
            self._tally.people += len(record.tracks)
            self._tally.ids.update(track.id for track in record.tracks)
            self._writer.append(record)

    def _snapshot(self, frame: int) -> None:
        self._writer.sync()  # after a loss of power, results that are behind their snapshot would be of no use
        state = {
            "layout": SNAPSHOT_LAYOUT,
            "source": self._source,
            "backend": self._backend.name,
            "tracker": self._tracker.snapshot(),
            "state": self.state,
            "offset": self._writer.offset,
            "people": self._tally.people,
            "ids": sorted(self._tally.ids),
            "failures": [[n, f.stage, f.reason] for n, f in self._tally.failures.items()],
        }
        self.journal.snapshot(frame, pack_value(state))

    def _restore(self, data: bytes) -> int:
        """Take over a snapshot; returns the length of the results file then.

        Raises:
            SnapshotError: it is of another layout or backend.
            SourceChangedError: it is of another input.
        """
        state = unpack_value(data)
        written = (state.get("layout"), state.get("backend"))
        if written != (SNAPSHOT_LAYOUT, self._backend.name):
            raise SnapshotError(
                f"it is of layout {written[0]} and backend {written[1]}, not {SNAPSHOT_LAYOUT} and {self._backend.name}"
            )
        if (begun := state.get("source", self._source)) != self._source:
            raise SourceChangedError(f"{self._folder}: {CHANGED.format(now=self._source, then=begun)}")
        self._tracker = self._new_tracker()
        self._tracker.restore(bytes(state["tracker"]))
        self.state = state["state"]
        failures = {int(n): Failure(stage, reason) for n, stage, reason in state["failures"]}
        self._tally = Tally(int(state["people"]), set(state["ids"]), failures)
        return int(state["offset"])


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
             "seconds": time.perf_counter() - started, "failed": fold.failed},
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
            },
        )  # fmt: skip


def _error_name(error: Exception) -> str:
    """The stable name of what keeps a job from being written down."""
    if isinstance(error, SourceChangedError):
        return "source-changed"
    cause = error if isinstance(error, OSError) and error.errno else error.__cause__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "disk-full" if full or isinstance(error, JournalFullError) else "cannot-write-results"
