"""The whole pipeline in one thread and one process, under a schedule: for tests of the epoch rule.

Owner, decode, detect, mesh and track are the real ones, with the real ring, journal and results file. Only what is
between them is not: pipes, control links, the supervisor, the source and the clock are played here, so that a test
decides who takes the next turn, who dies in the middle of what, and which messages are lost, doubled, damaged or
come again long after their time.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

import stages.owner.active
import stages.owner.pipeline
import stages.process.decode
import stages.process.fold
import stages.process.track
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed
from stages.owner.pipeline import Pipeline
from stages.owner.processes import stage_of
from stages.process.chain import Chain
from stages.process.decode import Decode
from stages.process.fold import Fold
from stages.process.loop import CORRUPT
from stages.process.start import StageConfig
from stages.process.track import Track
from stages.process.worker import Worker
from stages.records import Detections
from stages.results.journal import Journal
from stages.settings import PipelineSettings, StageSettings
from stages.source import Decoded, SourceInfo
from stages.source.base import DAMAGES
from stages.transport.ring import Ring
from stages.transport.wire import FrameMessage, unpack
from supervisor import events as ev
from supervisor.spec import ProcessSpec
from tests.stages.blocks import BACKEND, Cubes
from tests.stages.following_blocks import BACKEND as FOLLOWING
from tests.stages.following_blocks import Followed

SIDE = 4
"""Pixels of a frame's side."""


class Killed(BaseException):
    """SIGKILL, at a point where it would hurt."""


@dataclass
class Pipe:
    """One lane of one receiver's pipe."""

    room: int
    open: bool = False
    queue: deque[bytes] = field(default_factory=deque)
    ever: list[bytes] = field(default_factory=list)


class Sender:
    def __init__(self, pipes: list[tuple[Pipe, Pipe]], process: Process) -> None:
        self._pipes = pipes
        self._process = process
        self._point = process.point
        self._turn = 0

    def send(self, data: bytes, urgent: bool = False) -> bool:
        if data != CORRUPT:
            assert unpack(data).epoch == self._process.stage._loop.epoch, (
                "a message of an older epoch was passed on"
            )
        self._point()
        for _ in self._pipes:
            self._turn += 1
            pipe = self._pipes[self._turn % len(self._pipes)][0 if urgent else 1]
            if pipe.open and len(pipe.queue) < pipe.room:
                pipe.queue.append(data)
                pipe.ever.append(data)
                self._point()
                return True
        return False


class Receiver:
    def __init__(self, lanes: tuple[Pipe, Pipe]) -> None:
        self._lanes = lanes

    def receive(self, urgent: bool = False) -> bytes | None:
        pipe = self._lanes[0 if urgent else 1]
        return pipe.queue.popleft() if pipe.queue else None


class Link:
    """A stage's control link; says everything to its `Process`, and may be where it dies."""

    context = None
    stopping = False

    def __init__(self, process: Process) -> None:
        self._process = process

    def send(self, kind: str, payload: dict[str, Any]) -> None:
        self._process.point()
        self._process.out.append(ev.Message(self._process.name, kind, payload))
        self._process.point()

    def receive(self, timeout: float) -> tuple[str, dict[str, Any]] | None:
        return self._process.heard.popleft() if self._process.heard else None

    @contextmanager
    def working(self, activity: dict[str, Any]) -> Iterator[None]:
        self._process.activity = activity
        self._process.point()
        yield
        self._process.point()
        self._process.activity = None

    def idle(self) -> None:
        self._process.activity = None

    def progress(self) -> None: ...

    def metrics(self, **values: float) -> None: ...


class Process:
    """One stage process: alive, or dead and waiting to be started."""

    def __init__(self, world: World, spec: ProcessSpec) -> None:
        self.world = world
        self.name = spec.name
        self.config = SimConfig(**StageConfig.from_map(spec.config).__dict__)
        self.config.bind(self)
        self.out: deque[ev.Event] = deque()
        self.told: deque[tuple[str, dict[str, Any]]] = deque()
        """Sent by the owner, on its way."""
        self.heard: deque[tuple[str, dict[str, Any]]] = deque()
        self.activity: dict[str, Any] | None = None
        self.stage: Any = None
        self.fuse: int | None = None

    def start(self) -> None:
        link: Any = Link(self)
        if self.config.listens:
            for pipe in self.world.lanes(self.config.listens):
                pipe.open = True
        ring = self.world.ring()
        if stage_of(self.name) == "decode":
            self.stage = Decode(link, self.config, ring)
        elif stage_of(self.name) == "track":
            self.stage = WatchedTrack(link, self.config, FOLLOWING if self.world.follows else BACKEND)
        else:
            receiver: Any = self.config.receiver(link.context)
            chain = Chain() if self.world.follows and stage_of(self.name) == "mesh" else None
            work = detect if stage_of(self.name) == "detect" else regress if chain is None else follow
            self.stage = Worker(link, self.config, receiver, ring, work, chain)
        self.out.append(ev.Ready(self.name, 0.0))

    def step(self, fuse: int | None = None) -> bool:
        """One turn of the stage's loop; with a fuse, it dies at the fuse-th point where that would hurt."""
        self.fuse = fuse
        try:
            return bool(self.stage._loop.step(self.stage._turn))
        except Killed:
            self.world.bury(self)
            return True
        finally:
            self.fuse = None

    def point(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0 and self.world.may_die(self):
                raise Killed


class WatchedTrack(Track):
    def _commit(self, message: FrameMessage, fold: Fold) -> None:
        assert message.epoch == self._loop.epoch, "a message of an older epoch was committed"
        super()._commit(message, fold)


class SimConfig(StageConfig):
    """Pipes of this world instead of sockets."""

    def bind(self, process: Process) -> None:
        object.__setattr__(self, "process", process)

    def receiver(self, context: Any) -> Any:
        return Receiver(self.process.world.lanes(self.listens)) if self.listens else None  # type: ignore[attr-defined]

    def sender(self, context: Any) -> Any:
        process: Process = self.process  # type: ignore[attr-defined]
        return Sender([process.world.lanes(path) for path in self.feeds], process) if self.feeds else None


class Source:
    """As many frames as the path's name says, each of one colour, some damaged and some of another size."""

    truncated = None

    def __init__(self, path: str) -> None:
        self.expected = self._frames = int(Path(path).name)
        self.info = SourceInfo(
            "video", 2 * SIDE, 2 * SIDE, Fraction(30), self._frames, 0, "none", self._frames / 30, (SIDE, SIDE)
        )  # fmt: skip

    def frames(self, start: int = 0) -> Iterator[Decoded]:
        for index in range(start, self._frames):
            image = np.full((SIDE, SIDE, 3), 10 + index, np.uint8)
            damaged, size = DAMAGES[index % 2] if index % 3 == 1 else None, (7, 9) if index % 4 == 1 else None
            yield Decoded(index, self.time_of(index), image, damaged=damaged, size=size)

    def time_of(self, frame: int) -> float:
        return frame / 30

    def name_of(self, frame: int) -> str | None:
        return f"{frame}.png" if frame % 2 else None

    def next_start(self, frame: int) -> int | None:
        return frame + 1

    def close(self) -> None: ...


def detect(frames: Any, messages: Any) -> None:
    for message in messages:
        message.detections = Detections(np.array([[0, 0, SIDE, SIDE]], np.float32), np.ones(1, np.float32))


def regress(frames: Any, messages: Any) -> None:
    found = Cubes({}, lambda detail, fraction=None: None).regress(frames, [m.detections for m in messages])
    for message, people in zip(messages, found, strict=True):
        message.people, message.detections = people, None


def follow(frames: Any, messages: Any) -> None:
    (frame,), (message,) = frames, messages
    follower = Followed({}, lambda detail, fraction=None: None)
    message.people, message.state = follower.follow(frame, message.detections, message.state)
    message.detections = None


class World:
    """The pipeline under a schedule. A context manager.

    Args:
        folder: of the jobs' work folders.
        jobs: frames of each job; those behind the first are urgent.
        most_deaths: that a frame may meet at a stage; three make it poison.
        follows: the backend follows people, and two processes of detect deliver to one of mesh.
    """

    def __init__(
        self,
        folder: Path,
        jobs: tuple[int, ...],
        most_deaths: int = 2,
        replicas: int = 2,
        *,
        follows: bool = False,
    ) -> None:
        self.now = 0.0
        self.follows = follows
        self.pipes: dict[str, Pipe] = {}
        self.processes: dict[str, Process] = {}
        self.events: list[JobEvent] = []
        self.deaths: Counter[tuple[str, int, int]] = Counter()
        self.journaled: dict[str, list[int]] = {}
        self._most_deaths = most_deaths
        self._journals: list[Any] = []
        self._rings: list[Ring] = []
        self._folder = folder
        self._stack = ExitStack()
        self._next: Process | None = None
        self._settings = PipelineSettings(
            backend=FOLLOWING.name if follows else BACKEND.name, slots=5, max_pixels=SIDE * SIDE, ring_mb=1,
            pipe_depth=1, snapshot_every=4, max_failed_fraction=1.0,
            detect=StageSettings(batch=2, replicas=replicas if follows else 1),
            mesh=StageSettings(batch=3, replicas=replicas),
        )  # fmt: skip
        self._jobs = jobs

    def __enter__(self) -> World:
        patch = self._stack.enter_context
        clock = SimpleNamespace(monotonic=lambda: self.now)
        world = self

        class Supervisor(PlayedSupervisor):
            def __init__(self, runtime: Path, on_event: Any, *, wake: int | None = None) -> None:
                super().__init__(world, on_event)

        class Watched(Journal):
            @classmethod
            def open(cls, folder: Path) -> Journal:
                journal = super().open(folder)
                world._journals.append(journal)
                return journal

            def append(self, frame: int, payload: bytes) -> None:
                world.processes["track"].point()
                super().append(frame, payload)
                world.journaled.setdefault(self._folder.name, []).append(frame)
                world.processes["track"].point()

        patch(mock.patch.object(stages.owner.pipeline, "Supervisor", Supervisor))
        patch(mock.patch.object(stages.owner.pipeline, "make_runtime", lambda base: self._folder / "runtime"))
        patch(mock.patch.object(stages.owner.pipeline, "time", clock))
        patch(mock.patch.object(stages.owner.active, "time", clock))
        patch(mock.patch.object(stages.process.fold, "Journal", Watched))
        patch(mock.patch.object(stages.process.decode, "open_source", lambda path, **_: Source(path)))
        patch(mock.patch.object(os, "fsync", lambda fd: None))
        self.pipeline = Pipeline(self._settings, self.events.append)
        for process in self.processes.values():
            process.start()
        for number, frames in enumerate(self._jobs):
            work = self._folder / f"job{number}"
            work.mkdir(parents=True)
            self.pipeline.submit(Job(work.name, f"/{frames}", str(work), urgent=number > 0))
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes.values():
            self._release(process)
        for ring in self._rings:
            ring.close()
        self.pipeline.close()
        self._stack.close()

    def lanes(self, path: str) -> tuple[Pipe, Pipe]:
        """The urgent one, and that of the rest."""
        return self.pipes[f"{path}!"], self.pipes[path]

    def ring(self) -> Ring:
        self._rings.append(Ring.attach(self.pipeline._ring.fd))
        return self._rings[-1]

    # -- what a schedule may do ----------------------------------------------------------------------------

    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if process.stage is not None]

    def startable(self) -> list[Process]:
        """Dead, and the owner knows."""
        return [process for process in self.processes.values() if process.stage is None and not process.out]

    def may_die(self, process: Process) -> bool:
        """A third death on a frame makes it poison, and on the job as a whole lets the job fail."""
        doing = (process.activity or {}).get("work", ())
        return all(
            self.deaths[stage_of(process.name), job, frame] < (self._most_deaths if frame >= 0 else 2)
            for job, frame in doing
        )

    def bury(self, process: Process, lost: int = 0) -> None:
        """A process has died: what it held is gone, and with it some of what it had sent or was sent."""
        work = (process.activity or {}).get("work", ())
        for job, frame in work:
            self.deaths[stage_of(process.name), job, frame] += 1
        self._release(process)
        for _ in range(min(lost % 3, len(process.out))):
            process.out.pop()
        process.told.clear()
        process.heard.clear()
        if process.config.listens:
            for pipe in self.lanes(process.config.listens):
                pipe.open = False
                for _ in range(max(0, len(pipe.queue) - lost % 2)):
                    pipe.queue.popleft()
        for path in process.config.feeds:
            for pipe in self.lanes(path):
                if lost % 5 > 1 and pipe.queue:
                    pipe.queue.pop()
        report = ev.ExitReport(
            ev.ExitKind.SIGNAL, 1, None, 9, "killed by SIGKILL", "working", process.activity, None, ()
        )
        process.activity = None
        process.out.append(ev.Died(process.name, report, 0.0))

    def hear(self, process: Process) -> None:
        """The owner's turn: it takes in the next thing that this process has to say."""
        self._next = process
        self.pipeline.step(0.0)

    def played(self) -> None:
        """What the supervisor's turn comes to: see `hear`."""
        process, self._next = self._next, None
        if process is not None and process.out:
            self.pipeline._on_supervisor(process.out.popleft())

    def meddle(self, pipe: Pipe, what: int, which: int) -> None:
        """Lose, double, damage or repeat a message."""
        if what == 0 and pipe.queue:
            del pipe.queue[which % len(pipe.queue)]
        elif what == 1 and pipe.queue:
            pipe.queue.append(pipe.queue[which % len(pipe.queue)])
        elif what == 2 and pipe.queue:
            pipe.queue[which % len(pipe.queue)] = CORRUPT
        elif what == 3 and pipe.ever and pipe.open:
            pipe.queue.insert(which % (len(pipe.queue) + 1), pipe.ever[which % len(pipe.ever)])

    def finish(self, most_rounds: int = 600) -> None:
        """Fair turns for all, without further accidents, until every job has ended."""
        for _ in range(most_rounds):
            ended = self.ended() == len(self._jobs)
            moved, sent = False, sum(len(pipe.ever) for pipe in self.pipes.values())
            for process in self.processes.values():
                moved |= bool(process.out or process.told)
                for _ in range(len(process.out)):
                    self.hear(process)
                if process.stage is None:
                    process.start()
                    moved = True  # that it is ready has not been heard yet
                process.heard.extend(process.told)
                process.told.clear()
                moved |= process.step()
            if not moved and sent == sum(len(pipe.ever) for pipe in self.pipes.values()):
                if ended:
                    return
                self.now += 30.0  # longer than a stall may last
                self.pipeline.step(0.0)
        raise AssertionError(f"not done after {most_rounds} rounds: {self.events[-20:]}")

    def kept(self) -> dict[str, Any]:
        """What is still held of any job: nothing, after the last has ended."""
        found: dict[str, Any] = {
            "ring": self.pipeline._ring.entries(),
            "deaths": self.pipeline._blamed._ledger._deaths,
        }
        for name, process in self.processes.items():
            for attribute in ("_readings", "_pending", "_replay", "_skipped", "_isolated", "_found", "_inbox",
                              "_urgent", "_folds", "_waiting", "_finished"):  # fmt: skip
                if attribute != "_found" or name == "decode":  # of workers: a bounded memory
                    found[f"{name}.{attribute}"] = getattr(process.stage, attribute, None)
        free = self._settings.slots - len(self.processes["decode"].stage._free)
        return {name: what for name, what in {**found, "slots": free}.items() if what}

    def ended(self) -> int:
        return sum(isinstance(event, JobDone | JobFailed) for event in self.events)

    def results(self, number: int) -> Path:
        return self._folder / f"job{number}" / "frames.msgpack"

    def _release(self, process: Process) -> None:
        """What the kernel does with a dead process's descriptors."""
        process.stage = None
        if process.name == "track":
            for journal in self._journals:
                if journal._segment >= 0:
                    os.close(journal._segment)
                    os.close(journal._lock)
                    journal._segment = -1
            self._journals.clear()


class PlayedSupervisor:
    """Stands for `Supervisor`: the world decides what happens."""

    def __init__(self, world: World, on_event: Any) -> None:
        self._world = world

    def add(self, spec: ProcessSpec) -> None:
        process = Process(self._world, spec)
        if process.config.listens:
            for lane in (f"{process.config.listens}!", process.config.listens):
                self._world.pipes[lane] = Pipe(2 * process.config.depth)
        self._world.processes[spec.name] = process

    def step(self, timeout: float) -> None:
        self._world.played()

    def send(self, name: str, kind: str, payload: Mapping[str, Any]) -> bool:
        process = self._world.processes[name]
        if process.stage is not None:
            process.told.append((kind, dict(payload)))
        return True

    def states(self) -> dict[str, Any]:
        return {name: SimpleNamespace(busy_seconds=0.0, phase="working") for name in self._world.processes}

    def reset(self, name: str) -> None: ...

    def stop(self, grace: float) -> None: ...
