"""The decode stage: sources in, frames into the ring, one message a frame into the pipe.

Decode is where replay starts. It remembers every frame it has emitted until that frame is committed; when
the epoch rises it emits them all again, in order, from their slots. After its own death it finds whole frames
in the ring again and decodes the rest anew, from the exact frame. Where people are followed, the first frame of a job
in an epoch carries what was known before it: the state that was committed with the frame before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.names import legible
from stages.process.loop import CORRUPT, StageLoop
from stages.process.start import WHOLE_JOB, StageConfig
from stages.records import Failure
from stages.source import Decoded, Source, SourceError, open_source
from stages.source.base import DAMAGES
from stages.transport.ring import Ring, SlotEntry
from stages.transport.wire import EndMessage, FrameMessage
from supervisor.child import Link


def main(link: Link, values: Mapping[str, Any]) -> None:
    """Entry of the decode process."""
    config = StageConfig.from_map(values)
    link.phase("loading", "source libraries")
    decode = Decode(link, config, Ring.attach(config.ring_fd))
    link.ready()
    decode.run()


@dataclass
class Pending:
    """One emitted frame that is not committed yet."""

    job: int
    frame: int
    time: float
    slot: int = -1
    generation: int = 0
    failed: str | None = None
    end: EndMessage | None = None
    damaged: str | None = None
    size: tuple[int, int] | None = None


@dataclass
class Reading:
    """One job that decode has open."""

    job: int
    source: Source
    urgent: bool
    frames: Iterator[Decoded] | None = None
    """None until the owner says from which frame on."""
    next_frame: int = 0
    stop: int | None = None
    """The frame before which it ends, where only a segment of it is wanted."""
    ended: bool = False
    committed: int = 0
    """Frames before this one are safe."""
    state: bytes | None = None
    """What a follower knew after them."""
    begins: bool = True
    """Nothing of it has been emitted yet in this epoch."""


MOST_FAILED = 1000
"""Failed frames that may be in flight. They need no slot, so that nothing else bounds them while one frame of one of
several replicas takes long."""


class Decode:
    """The loop of the decode process; it alone writes into the ring and decides which slot is free."""

    def __init__(self, link: Link, config: StageConfig, ring: Ring) -> None:
        self._link = link
        self._config = config
        self._ring = ring
        self._faults = config.fault_plan()
        self._loop = StageLoop(link, None, config.sender(link.context), self._control, self._new_epoch)
        self._readings: dict[int, Reading] = {}
        self._pending: dict[tuple[int, int], Pending] = {}  # in the order of emission
        self._replay: list[Pending] = []
        self._skipped: dict[int, dict[int, str]] = {}
        found = ring.entries()
        self._free = sorted(set(range(ring.slots)) - {entry.slot for entry in found}, reverse=True)
        self._found: dict[tuple[int, int], SlotEntry] = {(entry.job, entry.frame): entry for entry in found}

    def run(self) -> None:
        self._loop.run(self._turn)

    def _turn(self, urgent_only: bool) -> bool:
        if (pending := self._next_replay(urgent_only)) is not None:
            self._replay.remove(pending)
            self._emit(pending)
        elif (reading := self._next_reading(urgent_only)) is not None:
            self._decode_one(reading)
        else:
            return False
        return True

    # -- what the owner says -----------------------------------------------------------------------

    def _control(self, kind: str, payload: dict[str, Any]) -> None:
        if kind == "keep":
            self._keep({int(job) for job in payload["jobs"]})
            return
        job = int(payload["job"])
        if kind == "open":
            self._open(job, str(payload["source"]), bool(payload["urgent"]), payload.get("stream"))
        elif kind == "go":
            self._go(job, int(payload["start"]), payload["state"], payload["stop"])
        elif kind == "commit":
            self._commit(job, int(payload["next"]), payload["state"])
        elif kind == "skip":  # may come before the job is open
            self._skipped.setdefault(job, {})[int(payload["frame"])] = str(payload["reason"])
        elif kind == "drop":
            self._drop(job)

    def _open(self, job: int, path: str, urgent: bool, stream: int | None) -> None:
        if job in self._readings:
            return
        try:
            with self._link.working({"stage": "decode", "work": [[job, WHOLE_JOB]], "opening": path}):
                source = open_source(
                    path,
                    max_pixels=self._config.max_pixels,
                    working=self._config.working_pixels,
                    stream=None if stream is None or stream < 0 else stream,
                    threads=self._config.threads,
                    progress=self._link.progress,
                )
        except SourceError as error:
            self._link.idle()
            self._link.send("unreadable", {"job": job, "error": error.name, "message": str(error)})
            return
        self._readings[job] = Reading(job, source, urgent)
        self._link.send("opened", {"job": job, "info": source.info.to_map()})

    def _go(self, job: int, start: int, state: bytes | None, stop: int | None) -> None:
        """Begin at frame ``start``: first with what stands in the ring without a gap, then by decoding."""
        reading = self._readings.get(job)
        if reading is None or reading.frames is not None:
            return
        reading.committed, reading.state, reading.stop = start, state, stop
        frame = start
        while (entry := self._found.pop((job, frame), None)) is not None:
            pending = Pending(job, frame, entry.time, entry.slot, entry.generation)
            pending.damaged, pending.size = _read_note(entry.note)
            self._pending[job, frame] = pending
            self._replay.append(pending)
            frame += 1
        for key in [key for key in self._found if key[0] == job]:
            self._release(self._found.pop(key).slot)
        reading.next_frame = frame
        reading.frames = reading.source.frames(frame)

    def _commit(self, job: int, next_frame: int, state: bytes | None) -> None:
        reading = self._readings.get(job)
        if reading is not None and next_frame > reading.committed:
            reading.committed, reading.state = next_frame, state
        for key in [key for key in self._pending if key[0] == job and key[1] < next_frame]:
            if self._pending[key].end is None:
                self._forget(key)

    def _drop(self, job: int) -> None:
        self._skipped.pop(job, None)
        reading = self._readings.pop(job, None)
        if reading is not None:
            reading.source.close()
        for key in [key for key in self._pending if key[0] == job]:
            self._forget(key)
        for key in [key for key in self._found if key[0] == job]:
            self._release(self._found.pop(key).slot)
        self._replay = [pending for pending in self._replay if pending.job != job]

    def _keep(self, jobs: set[int]) -> None:
        """Free the slots that an earlier life filled for jobs other than these."""
        for key in [key for key in self._found if key[0] not in jobs]:
            self._release(self._found.pop(key).slot)

    def _new_epoch(self) -> None:
        self._replay = list(self._pending.values())
        for reading in self._readings.values():
            reading.begins = True

    def _forget(self, key: tuple[int, int]) -> None:
        pending = self._pending.pop(key)
        if pending.slot >= 0:
            self._release(pending.slot)
        if pending in self._replay:
            self._replay.remove(pending)

    def _release(self, slot: int) -> None:
        self._ring.clear(slot)
        self._free.append(slot)

    # -- work --------------------------------------------------------------------------------

    def _next_replay(self, urgent_only: bool) -> Pending | None:
        """Urgent jobs' frames first, then in the order in which they were emitted before."""
        for pending in self._replay:
            if self._readings[pending.job].urgent:
                return pending
        return self._replay[0] if self._replay and not urgent_only else None

    def _next_reading(self, urgent_only: bool) -> Reading | None:
        """Urgent jobs first, then by age. The last free slot is kept for urgent ones."""
        ready = [r for r in self._readings.values() if r.frames is not None and not r.ended]
        if urgent_only:
            ready = [reading for reading in ready if reading.urgent]
        full = len(self._pending) > self._ring.slots + MOST_FAILED
        for reading in sorted(ready, key=lambda r: not r.urgent):
            if len(self._free) > (0 if reading.urgent else 1) and (reading.urgent or not full):
                return reading
        return None

    def _decode_one(self, reading: Reading) -> None:
        assert reading.frames is not None
        frame = reading.next_frame
        if frame == reading.stop:
            self._end(reading)
            return
        work = [[reading.job, frame]]
        started = time.perf_counter()
        with self._link.working({"stage": "decode", "work": work, "batch": 1}):
            reason = self._skip_reason(reading, frame)
            corrupt = reason is None and self._faults.before([frame]) == "corrupt"
            decoded = self._jump(reading, reason) if reason is not None else next(reading.frames, None)
            if decoded is None:
                self._end(reading)
                return
            failed = None if decoded.failure is None else legible(decoded.failure)
            pending = Pending(reading.job, decoded.index, decoded.time, failed=failed)
            pending.damaged, pending.size = decoded.damaged, decoded.size
            if decoded.image is not None:
                pending.slot = self._free.pop()
                pending.generation = self._ring.write(
                    pending.slot, reading.job, decoded.index, decoded.time, decoded.image, _note(decoded)
                )
        reading.next_frame = decoded.index + 1
        self._pending[pending.job, pending.frame] = pending
        self._emit(pending, corrupt=corrupt)
        seconds = time.perf_counter() - started
        self._link.send("worked", {"job": reading.job, "count": 1, "seconds": seconds})

    def _skip_reason(self, reading: Reading, frame: int) -> str | None:
        """Why a frame is not to be decoded, if so: it has killed the decoder, or it builds on what has.

        Behind one such frame decoding is tried again. If that kills as well, then the cause is in what both are
        built on, and there is no use in trying before the next frame that stands by itself.
        """
        skipped = self._skipped.get(reading.job, {})
        if frame in skipped:
            return skipped[frame]
        for second in skipped:
            if second - 1 in skipped and second < frame:
                start = reading.source.next_start(second)
                if start is None or frame < start:
                    return f"it builds on frame {second}: {skipped[second]}"
        return None

    def _jump(self, reading: Reading, reason: str) -> Decoded | None:
        """Step over a frame that kills the decoder: decoding starts anew behind it. None at the end of those that
        should be behind it."""
        frame = reading.next_frame
        if frame >= reading.source.expected:
            if reading.source.info.frames is None:
                reading.source.truncated = f"whether anything is behind frame {frame} cannot be known: {reason}"
            return None
        reading.frames = reading.source.frames(frame + 1)
        return Decoded(index=frame, time=reading.source.time_of(frame), image=None, failure=reason)

    def _end(self, reading: Reading) -> None:
        reading.ended = True
        end = EndMessage(
            self._loop.epoch, reading.job, reading.next_frame, reading.source.truncated, urgent=reading.urgent
        )
        pending = Pending(reading.job, reading.next_frame, 0.0, end=end)
        self._pending[pending.job, pending.frame] = pending
        self._emit(pending)
        self._link.send("ended", {"job": reading.job, "frames": reading.next_frame})

    def _emit(self, pending: Pending, *, corrupt: bool = False) -> None:
        epoch = self._loop.epoch
        if pending.end is not None:
            pending.end.epoch = epoch
            self._loop.pass_on(pending.end)
            return
        reading = self._readings[pending.job]
        width, height = reading.source.info.working
        about = {
            "damaged": pending.damaged, "source": reading.source.name_of(pending.frame), "size": pending.size
        }  # fmt: skip
        if pending.frame < reading.committed:
            # Track has committed more than it had said when this reading began.
            self._forget((pending.job, pending.frame))
            return
        if reading.begins and pending.frame != reading.committed:
            raise RuntimeError(f"job {pending.job} goes on at {pending.frame}, not at {reading.committed}")
        failed = Failure("decode", pending.failed) if pending.failed is not None else None
        message = FrameMessage(
            epoch=epoch, job=pending.job, frame=pending.frame, time=pending.time, slot=pending.slot,
            generation=pending.generation, width=width, height=height, failed=failed,
            urgent=reading.urgent, state=reading.state if reading.begins else None,
            about={key: value for key, value in about.items() if value is not None},
        )  # fmt: skip
        reading.begins = False
        if corrupt:
            self._loop.send(CORRUPT, reading.urgent)
        else:
            self._loop.pass_on(message)


def _note(decoded: Decoded) -> tuple[int, int, int]:
    """What is to be known of a frame that is found in the ring, as its slot can hold it."""
    damaged = 0 if decoded.damaged is None else 1 + DAMAGES.index(decoded.damaged)
    return (damaged, *(decoded.size or (0, 0)))


def _read_note(note: tuple[int, int, int]) -> tuple[str | None, tuple[int, int] | None]:
    damaged, width, height = note
    return DAMAGES[damaged - 1] if damaged else None, (width, height) if width else None
