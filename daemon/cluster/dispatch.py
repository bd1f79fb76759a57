"""The process that talks to Ray: stations out, segments to them, their records onto the front's disk.

It keeps nothing that a successor could not find again: finished segments stand in files of their own in the job's work
folder, and when all are there they become the job's journal, which the front's pipeline folds. Wherever it dies, the
next one goes on with what is missing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from daemon.cluster.plan import Plan, Segment
from daemon.cluster.station import NotHereError, SegmentError, Station
from daemon.jobs import summary
from stages.results.journal import Journal, JournalError
from stages.source import SourceError, open_source
from supervisor.child import Link

NAMESPACE = "poseward"
TURN = 0.1
"""Longest wait for an answer in seconds."""
REPORT_EVERY = 1.0
STAFF_EVERY = 2.0
CHUNK = 64 << 20
"""Bytes of an input that travel as one object."""
TRIES = 2
"""Stations on which a segment may fail before its job does."""


@dataclass
class Task:
    """A job whose segments are being worked on."""

    id: str
    source: dict[str, Any]
    folder: Path
    chunks: list[Any] = field(default_factory=list)
    failures: dict[Segment, int] = field(default_factory=dict)

    @property
    def segments(self) -> Path:
        return self.folder / "segments"


@dataclass
class Hand:
    """A station as the dispatcher knows it. ``host`` is empty until it has introduced itself."""

    name: str
    actor: Any
    host: str = ""
    refusal: str = ""
    segments: int = 0
    since: float = 0.0


def main(link: Link, values: Mapping[str, Any]) -> None:
    """Entry of the dispatching process."""
    link.phase("loading", "ray")
    import ray

    link.phase("warming", f"cluster {values['address']}")
    ray.init(
        address=values["address"], namespace=NAMESPACE, log_to_driver=False, configure_logging=False,
        logging_level=logging.WARNING,
    )  # fmt: skip
    dispatch = Dispatch(link, values, ray)
    link.ready()
    dispatch.run()


class Dispatch:
    """The loop. Everything that Ray does is asked for and picked up later; nothing here waits for one answer."""

    def __init__(self, link: Link, values: Mapping[str, Any], ray: Any) -> None:
        self._link = link
        self._values = values
        self._ray = ray
        self._plan = Plan(int(values["ahead"]))
        self._tasks: dict[str, Task] = {}
        self._hands: dict[str, Hand] = {}
        self._asked: dict[Any, tuple[str, Segment | None]] = {}
        """Ray references that are waited for: the station, and its segment (None: its introduction)."""
        self._due: dict[str, float] = {}
        self._numbers = 0
        self._remote = ray.remote(Station).options(
            num_cpus=values["cpus"], num_gpus=values["gpus"], memory=int(values["memory_mb"]) << 20 or None,
            max_concurrency=4, scheduling_strategy="SPREAD",
        )  # fmt: skip

    def run(self) -> None:
        """Until the owner says stop. Stations end with this process: Ray sees to it."""
        while not self._link.stopping:
            while (heard := self._link.receive()) is not None:
                self._hear(*heard)
            if self._is_due("staff", STAFF_EVERY):
                self._staff()
            self._pick_up()
            for hand in self._hands.values():
                if hand.host and not hand.refusal and self._plan.of(hand.name) is None:
                    self._give(hand)
            if self._is_due("report", REPORT_EVERY):
                self._report()
        self._ray.shutdown()

    # -- jobs ----------------------------------------------------------------------------------------------

    def _hear(self, kind: str, payload: dict[str, Any]) -> None:
        if kind == "job":
            self._take(
                str(payload["job"]), Path(payload["source"]), Path(payload["folder"]), int(payload["priority"])
            )
        elif kind == "drop":
            self._drop(str(payload["job"]))

    def _take(self, job: str, path: Path, folder: Path, priority: int) -> None:
        if job in self._tasks:
            return
        try:
            with self._link.working({"stage": "dispatch", "job": job}):
                source = open_source(
                    path, max_pixels=int(self._values["max_pixels"]), progress=self._link.progress
                )
                frames = source.info.frames
                source.close()
                identity = summary.identify(path, self._link.progress)
                task = Task(job, {"path": str(path), **identity}, folder)
                have = self._journaled(task)
        except (SourceError, OSError, JournalError) as error:
            self._link.idle()
            # One machine's pipeline says best what is wrong with an input.
            self._link.send("local", {"job": job, "why": str(error)})
            return
        if frames is None:
            self._link.send("local", {"job": job, "why": "how many frames it has is known only at its end"})
            return
        group = int(self._values["group"])
        length = -(-int(self._values["segment_frames"]) // group) * group if group else frames
        done = {first for first, _ in _kept(task.segments)}
        part = self._plan.add(job, frames, max(length, 1), done, priority)
        part.done |= {segment for segment in part.segments if segment.stop <= have}
        self._tasks[job] = task
        if part.complete:
            self._gather(task)

    def _drop(self, job: str) -> None:
        """Nobody wants it any more. Stations finish what they have begun; their answers are not picked up."""
        self._plan.drop(job)
        self._tasks.pop(job, None)

    @staticmethod
    def _journaled(task: Task) -> int:
        """How many frames stand in the job's journal already, from a time when it ran on one machine."""
        journal = Journal.open(task.folder)
        try:
            return journal.next_frame
        finally:
            journal.close()

    def _gather(self, task: Task) -> None:
        """All segments are there: make them the job's journal."""
        frames = 0
        try:
            with self._link.working({"stage": "dispatch", "job": task.id}):
                journal = Journal.open(task.folder)
                try:
                    for _, records in _kept(task.segments):
                        self._link.progress()
                        for frame, payload in records:
                            if frame == journal.next_frame:
                                journal.append(frame, payload)
                    frames = journal.next_frame
                finally:
                    journal.close()
                shutil.rmtree(task.segments, ignore_errors=True)
        except (JournalError, OSError) as error:
            self._link.idle()
            self._fail(task, "cannot-write-results", str(error))
            return
        self._drop(task.id)
        self._link.send("gathered", {"job": task.id, "frames": frames})

    def _fail(self, task: Task, error: str, message: str) -> None:
        self._drop(task.id)
        self._link.send("failed", {"job": task.id, "error": error, "message": message})

    # -- stations ------------------------------------------------------------------------------------------

    def _staff(self) -> None:
        """As many stations as the cluster has room for: nodes may come and go."""
        for _ in range(self._room() - len(self._hands)):
            self._numbers += 1
            name = f"station-{self._numbers}"
            actor = self._remote.remote(self._values["settings"], self._values["wanted"])
            self._hands[name] = Hand(name, actor)
            self._asked[actor.introduce.remote()] = (name, None)

    def _room(self) -> int:
        if most := int(self._values["stations"]):
            return most
        offers = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = {"CPU": self._values["cpus"], "GPU": self._values["gpus"]}
        room = 0
        for offer in offers:
            room += min((int(offer.get(kind, 0) // need) for kind, need in needs.items() if need), default=1)
        return room

    def _give(self, hand: Hand) -> None:
        segment = self._plan.assign(hand.name)
        if segment is None:
            return
        task = self._tasks[segment.job]
        hand.since = time.monotonic()
        self._ask(hand, task, segment)

    def _ask(self, hand: Hand, task: Task, segment: Segment) -> None:
        reference = hand.actor.work.remote(task.source, segment.first, segment.stop, task.chunks)
        self._asked[reference] = (hand.name, segment)

    def _pick_up(self) -> None:
        if not self._asked:
            time.sleep(TURN)
            return
        ready, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=TURN)
        for reference in ready:
            name, segment = self._asked.pop(reference)
            hand = self._hands.get(name)
            if hand is None:
                continue
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                self._refused(hand, segment, error.cause)
            except self._ray.exceptions.RayError as error:  # the actor is gone, or its node
                self._lost(hand, error)
            else:
                if segment is None:
                    self._introduced(hand, answer)
                else:
                    self._answered(hand, segment, answer)

    def _introduced(self, hand: Hand, answer: Mapping[str, Any]) -> None:
        hand.host, hand.refusal = str(answer["host"]), str(answer["refusal"])
        state = "refused" if hand.refusal else "joined"
        self._tell(state, f"{hand.name} on {hand.host}{': ' + hand.refusal if hand.refusal else ''}")

    def _answered(self, hand: Hand, segment: Segment, records: bytes) -> None:
        hand.segments += 1
        if self._plan.finished(hand.name) is None:
            return  # another was faster, or the job is gone
        task = self._tasks[segment.job]
        try:
            _keep(task.segments, segment.first, records)
        except OSError as error:
            self._fail(task, "disk-full", f"{task.segments}: {error.strerror}")
            return
        part = self._plan.part(segment.job)
        if part is not None and part.complete:
            self._gather(task)

    def _refused(self, hand: Hand, segment: Segment | None, error: BaseException) -> None:
        """A station could not do it: with the input's bytes it may, or another station may."""
        task = self._tasks.get(segment.job) if segment is not None else None
        if segment is None or task is None or self._plan.of(hand.name) != segment:
            self._plan.lost(hand.name)
            return
        if isinstance(error, NotHereError) and not task.chunks:
            self._send_bytes(task, str(error))
        if isinstance(error, NotHereError) and task.chunks:
            self._ask(hand, task, segment)
            return
        self._plan.lost(hand.name)
        task.failures[segment] = failures = task.failures.get(segment, 0) + 1
        self._tell("segment failed", f"{task.id} from frame {segment.first} on {hand.host}: {error}")
        if failures >= TRIES:
            named = isinstance(error, SegmentError)
            self._fail(task, error.name if named else "segment-failed", f"{hand.host}: {error}")  # type: ignore[attr-defined]

    def _send_bytes(self, task: Task, why: str) -> None:
        path = Path(task.source["path"])
        self._tell("sending", f"{path.name} by Ray's object store: {why}")
        with self._link.working({"stage": "dispatch", "job": task.id}), path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self._link.progress()
                task.chunks.append(self._ray.put(chunk))

    def _lost(self, hand: Hand, error: BaseException) -> None:
        self._plan.lost(hand.name)
        del self._hands[hand.name]
        self._tell("lost", f"{hand.name} on {hand.host or 'a node'}: {str(error).splitlines()[0]}")

    # -- what is told --------------------------------------------------------------------------------------

    def _tell(self, state: str, message: str) -> None:
        self._link.send("told", {"state": state, "message": message})

    def _report(self) -> None:
        jobs = {}
        for job in self._tasks:
            if (part := self._plan.part(job)) is not None:
                jobs[job] = {"frames": part.frames_done, "done": len(part.done), "segments": len(part.segments)}
        hands = []
        for hand in self._hands.values():
            at = self._plan.of(hand.name)
            doing = "" if at is None else f"{at.job} {at.first} to {at.stop - 1}"
            told = {"name": hand.name, "host": hand.host, "refusal": hand.refusal, "doing": doing}
            hands.append({**told, "segments": hand.segments})
        self._link.send("cluster", {"jobs": jobs, "stations": hands})

    def _is_due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every
        return True


def _keep(folder: Path, first: int, records: bytes) -> None:
    """One finished segment, whole or not at all."""
    folder.mkdir(exist_ok=True)
    beside = folder / f"{first:012d}.part"
    try:
        with beside.open("wb") as file:
            file.write(zlib.crc32(records).to_bytes(4, "little") + records)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / f"{first:012d}")
    finally:
        beside.unlink(missing_ok=True)


def _kept(folder: Path) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """The finished segments, in order: first frame and records. Damaged ones are removed, and come again."""
    for path in sorted(folder.glob("[0-9]*[0-9]")) if folder.is_dir() else ():
        data = path.read_bytes()
        if zlib.crc32(data[4:]).to_bytes(4, "little") != data[:4]:
            with contextlib.suppress(OSError):
                path.unlink()
            continue
        yield int(path.name), [(int(frame), payload) for frame, payload in msgpack.unpackb(data[4:])]
