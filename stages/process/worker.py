"""The detect and mesh stages: messages in, a batch through the backend, messages out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stages.process.chain import Chain
from stages.process.faults import FaultPlan
from stages.process.loop import CORRUPT, Reporter, StageLoop
from stages.process.start import StageConfig
from stages.process.versions import versions
from stages.protocols import find_backend
from stages.records import Detections, Failure, Frame
from stages.transport.pipes import Receiver
from stages.transport.ring import Ring, StaleSlot
from stages.transport.wire import EndMessage, FrameMessage, WireError, pack, unpack
from supervisor.batching import BatchController
from supervisor.child import Link

Process = Callable[[list[Frame], list[FrameMessage]], None]
"""Runs a batch and writes what it found into the messages."""


def main(link: Link, values: Mapping[str, Any]) -> None:
    """Entry of a detect or mesh process."""
    config = StageConfig.from_map(values)
    options = {"threads": config.threads, **config.options}
    report = Reporter(link)
    link.phase("loading", config.backend)
    backend = find_backend(config.backend)
    process: Process
    if config.stage == "detect":
        detector = backend.detector(options, report)

        def process(frames: list[Frame], messages: list[FrameMessage]) -> None:
            for message, found in zip(messages, detector.detect(frames), strict=True):
                message.detections = found
    elif backend.follower is not None:
        follower = backend.follower(options, report)

        def process(frames: list[Frame], messages: list[FrameMessage]) -> None:
            for frame, message in zip(frames, messages, strict=True):
                people, message.state = follower.follow(frame, _detections(message), message.state or b"")
                message.people = people if config.vertices else _without_vertices(people)
                message.detections = None
    else:
        regressor = backend.mesh(options, report)

        def process(frames: list[Frame], messages: list[FrameMessage]) -> None:
            detections = [_detections(message) for message in messages]
            for message, people in zip(messages, regressor.regress(frames, detections), strict=True):
                message.people = people if config.vertices else _without_vertices(people)
                message.detections = None

    report.loading = False
    link.phase("warming", config.backend)
    receiver = config.receiver(link.context)
    if receiver is None:
        raise ValueError(f"{config.stage} has no pipe to receive from")
    chain = Chain(backend.group) if config.stage == "mesh" and backend.follower is not None else None
    worker = Worker(link, config, receiver, Ring.attach(config.ring_fd), process, chain)
    link.ready(backend=config.backend, versions=versions(backend.packages.get(config.stage, ())))
    worker.run()


def _detections(message: FrameMessage) -> Detections:
    if message.detections is None:
        raise ValueError(f"frame {message.frame} reached the mesh stage without detections")
    return message.detections


def _without_vertices(people: Any) -> Any:
    people.vertices = None
    return people


def is_out_of_memory(error: BaseException) -> bool:
    """`MemoryError`, or torch's ``OutOfMemoryError`` by its name (torch need not be installed here)."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class Worker:
    """The loop of one detect or mesh process.

    A batch holds up to as many frames as the controller allows; a frame under suspicion of having killed
    the stage is worked on alone, and one that is to be skipped passes through marked as failed. What was found in
    the latest frames is kept: when they come again because another stage has died, it is sent again.

    With a chain, people are followed: frames are worked on one after the other, each knowing what the chain hands on.
    """

    def __init__(
        self,
        link: Link,
        config: StageConfig,
        receiver: Receiver,
        ring: Ring,
        process: Process,
        chain: Chain | None = None,
    ) -> None:
        self._link = link
        self._stage = config.stage
        self._receiver = receiver
        self._ring = ring
        self._process = process
        self._chain = chain
        self._batch = BatchController(config.batch)
        self._faults: FaultPlan = config.fault_plan()
        self._loop = StageLoop(link, receiver, config.sender(link.context), self._control, self._new_epoch)
        self._urgent: deque[FrameMessage | EndMessage] = deque()
        self._inbox: deque[FrameMessage | EndMessage] = deque()
        self._isolated: set[tuple[int, int]] = set()
        self._skipped: dict[tuple[int, int], str] = {}
        self._found: dict[tuple[int, int], tuple[FrameMessage, bytes | None]] = {}
        """By job and frame, with the state before it, oldest first: as many as can be in flight."""

    def run(self) -> None:
        self._loop.run(self._turn)

    def _turn(self, urgent_only: bool) -> bool:
        self._receive()
        inbox = self._urgent or self._inbox
        if not inbox or (urgent_only and inbox is not self._urgent):
            return False
        self._work(inbox)
        return True

    def _control(self, kind: str, payload: dict[str, Any]) -> None:
        job = int(payload["job"])
        if kind == "isolate":
            self._isolated.update((job, int(frame)) for frame in payload["frames"])
        elif kind == "skip":
            self._skipped[job, int(payload["frame"])] = str(payload["reason"])
        elif kind == "drop":
            self._isolated = {key for key in self._isolated if key[0] != job}
            self._skipped = {key: why for key, why in self._skipped.items() if key[0] != job}
            self._found = {key: found for key, found in self._found.items() if key[0] != job}
            if self._chain is not None:
                self._chain.drop(job)

    def _new_epoch(self) -> None:
        if self._chain is not None:
            self._chain.clear()
        for inbox in (self._urgent, self._inbox):
            current = [message for message in inbox if message.epoch >= self._loop.epoch]
            inbox.clear()
            inbox.extend(current)

    def _receive(self) -> None:
        """Take in up to a batch of what is urgent, and of the rest."""
        for urgent, inbox in ((True, self._urgent), (False, self._inbox)):
            while len(inbox) < self._batch.size and (data := self._receiver.receive(urgent)) is not None:
                try:
                    message = unpack(data)
                except WireError as error:
                    # What it was cannot be known: only a replay of all that is uncommitted makes it good.
                    self._link.send("corrupt", {"reason": str(error)})
                    continue
                self._loop.raise_epoch(message.epoch)
                if message.epoch != self._loop.epoch:
                    continue
                if self._chain is None or isinstance(message, EndMessage):
                    inbox.append(message)
                else:
                    inbox.extend(self._chain.put(message))

    def _work(self, inbox: deque[FrameMessage | EndMessage]) -> None:
        """Take the next message, or the next batch, off an inbox."""
        first = inbox[0]
        if isinstance(first, EndMessage):
            self._loop.pass_on(first)
            inbox.popleft()
            return
        if self._chain is not None:
            first.state = self._chain.before(first.job, first.frame)
        if first.failed is not None:
            self._loop.pass_on(inbox.popleft())
            return
        reason = self._skipped.get((first.job, first.frame))
        if reason is not None:
            inbox.popleft()
            first.failed = Failure(self._stage, reason)
            first.detections = first.people = None
            self._loop.pass_on(first)
            return
        if self._is_found(first):
            inbox.popleft()
            found, _ = self._found[first.job, first.frame]
            found.epoch = first.epoch
            if self._chain is None:
                found.state = first.state  # it may not have been the first of its epoch then
            self._hand_on(found)
            self._loop.pass_on(found)
            self._link.send("worked", {"job": first.job, "count": 1, "seconds": 0.0})
            return
        batch = self._take_batch(inbox)
        frames: list[Frame] = []
        messages: list[FrameMessage] = []
        for message in batch:
            try:
                image = self._ring.view(message.slot, message.generation)
            except StaleSlot:
                # Of a frame that was committed, or of a job that was cancelled.
                if self._chain is not None:
                    self._ask_again(message, inbox)
                    return
                continue
            frames.append(Frame(image, message.frame, message.time))
            messages.append(message)
        if messages:
            self._run_batch(frames, messages, inbox)

    def _is_found(self, message: FrameMessage) -> bool:
        """Whether this very frame, still in the same slot, was worked on in an earlier epoch."""
        found, before = self._found.get((message.job, message.frame), (None, None))
        if found is None or (self._chain is not None and before != message.state):
            return False
        return (found.slot, found.generation) == (message.slot, message.generation)

    def _hand_on(self, message: FrameMessage) -> None:
        if self._chain is not None:
            self._chain.after(message.job, message.state or b"")

    def _ask_again(self, message: FrameMessage, inbox: deque[FrameMessage | EndMessage]) -> None:
        """What follows a frame that cannot be worked on cannot be either, before a replay."""
        assert self._chain is not None
        self._chain.drop(message.job)
        others = [other for other in inbox if isinstance(other, EndMessage) or other.job != message.job]
        inbox.clear()
        inbox.extend(others)
        self._link.send("gap", {"job": message.job, "frame": message.frame})

    def _take_batch(self, inbox: deque[FrameMessage | EndMessage]) -> list[FrameMessage]:
        batch: list[FrameMessage] = []
        most = self._batch.size if self._chain is None else 1
        while inbox and len(batch) < most:
            message = inbox[0]
            if isinstance(message, EndMessage) or message.failed is not None:
                break
            key = (message.job, message.frame)
            alone = key in self._isolated or key in self._skipped
            if batch and (alone or self._is_found(message)):
                break
            batch.append(message)
            inbox.popleft()
            if alone:
                break
        return batch

    def _run_batch(
        self, frames: list[Frame], messages: list[FrameMessage], inbox: deque[FrameMessage | EndMessage]
    ) -> None:
        # Blame is laid on (job, frame): urgent images of several jobs may share a batch.
        work = [[m.job, m.frame] for m in messages]
        before = [m.state for m in messages]
        started = time.perf_counter()
        try:
            with self._link.working({"stage": self._stage, "work": work, "batch": len(work)}):
                corrupt = self._faults.before([m.frame for m in messages]) == "corrupt"
                self._process(frames, messages)
                # Within: of a result that cannot travel its frame is to blame.
                packed = [pack(message) for message in messages]
        except Exception as error:
            if not is_out_of_memory(error) or self._batch.out_of_memory():
                raise
            self._link.idle()  # a new epoch may take these frames away, and then nothing is being done
            self._link.send("shrunk", {"batch": self._batch.size, "reason": f"{type(error).__name__}: {error}"})
            inbox.extendleft(reversed(messages))
            return
        if len(messages) >= self._batch.size:  # a smaller one says nothing about whether the next size would fit
            self._batch.succeeded()
        seconds = time.perf_counter() - started
        for message, data, state in zip(messages, packed, before, strict=True):
            if self._ring.check(message.slot, message.generation):
                self._hand_on(message)
                self._loop.send(CORRUPT if corrupt else data, message.urgent)
                self._found[message.job, message.frame] = message, state
            elif self._chain is not None:
                self._ask_again(message, inbox)
        while len(self._found) > self._ring.slots:
            del self._found[next(iter(self._found))]
        self._report(messages, seconds)

    def _report(self, messages: Sequence[FrameMessage], seconds: float) -> None:
        share = seconds / len(messages)
        done: dict[int, int] = {}
        for message in messages:
            done[message.job] = done.get(message.job, 0) + 1
        for job, count in done.items():
            self._link.send("worked", {"job": job, "count": count, "seconds": share * count})
        self._link.metrics(batch=float(self._batch.size))
