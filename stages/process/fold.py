"""One job's committed frames folded into its results: journal, tracker and results file.

Everything behind the journal is deterministic, so that the process can die at any moment: its successor restores the
last snapshot, cuts the results file back to the length it had then, and folds the journal's tail again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.process.segment import Tally, payload_of
from stages.process.start import CHANGED, StageConfig, looks
from stages.protocols import Backend, Tracker
from stages.records import Failure, FrameRecord, People
from stages.results.journal import Journal, JournalError
from stages.results.stream import ResultWriter
from stages.transport.wire import FrameMessage, decode_people, pack_value, unpack_value

RESULTS_NAME = "frames.msgpack"
"""Name of the growing results file in a job's work folder."""

SNAPSHOT_LAYOUT = 3
"""Raise it whenever a snapshot would be misread by the code that follows. Others are left out, and what they
held is folded again from the journal."""


class SnapshotError(Exception):
    """A snapshot that this version or backend did not write."""


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
        worked = info.get("working", (width, height))
        self._scale = np.array((width / worked[0], height / worked[1]), np.float32)
        """From the pixels of the frames that were worked on to those of the input."""
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
        self._about: dict[int, dict[str, Any]] = {}
        """What records are to say of their pictures, until the tracker lets go of them."""
        self.journal = Journal.open(folder)
        self._new_tracker = partial(backend.tracker, options, int(worked[0]), int(worked[1]), fps)
        self._tracker: Tracker
        self._writer: ResultWriter
        try:
            start = self._resume()
            if start is None:
                start = 0
                self._tracker = self._new_tracker()
                rate, variable = info.get("rate", (0, 0)), bool(info.get("variable", False))
                header = backend.header(options, width, height, fps)
                header = replace(
                    header, rate=(int(rate[0]), int(rate[1])), variable=variable, stream=info.get("stream")
                )
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

    @property
    def latest_failure(self) -> str:
        """In words; empty where no frame has failed."""
        return self._tally.latest_failure

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
        if value.get("about"):
            self._about[frame] = value["about"]
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
            self._tell_about(record, self._about.pop(record.frame, {}))
            self._to_input(record)
            if not self._vertices:
                for track in record.tracks:
                    track.vertices = None
            self._tally.people += len(record.tracks)
            self._tally.ids.update(track.id for track in record.tracks)
            self._writer.append(record)

    def _tell_about(self, record: FrameRecord, about: Mapping[str, Any]) -> None:
        record.source, size = about.get("source"), about.get("size")
        record.size = None if size is None else (int(size[0]), int(size[1]))
        if record.failed is None and (reason := about.get("damaged")) is not None:
            record.damaged = str(reason)
            self._tally.damage(record.frame, record.damaged)

    def _to_input(self, record: FrameRecord) -> None:
        """Where frames were scaled down, from their pixels to the input's. What is in metres stays: the focal length
        grows with the picture."""
        if (self._scale == 1).all():
            return
        for track in record.tracks:
            track.box = track.box * np.tile(self._scale, 2)
            track.joints_2d = track.joints_2d * self._scale

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
            "damaged": self._tally.damaged,
            "about": [[n, about] for n, about in self._about.items()],
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
        damaged = [list(run) for run in state.get("damaged", [])]
        self._tally = Tally(int(state["people"]), set(state["ids"]), failures, damaged)
        self._about = {int(n): dict(about) for n, about in state.get("about", [])}
        return int(state["offset"])
