"""``subject.msgpack``: the movement after the motion pass, in the layout of ``frames.msgpack``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from daemon.exports.people_files import path_of, wanted
from daemon.exports.request import Request
from daemon.exports.surfaces import frames_of, surfaces
from daemon.motion.people import Motion, Person
from daemon.motion.skeleton import project
from stages.records import F32, FrameRecord, Header, Track
from stages.results import read_results
from stages.results.stream import ResultWriter


def export_subject(request: Request) -> list[Path]:
    """Write ``subject.msgpack`` (``person-3.msgpack`` for somebody chosen by name, ``people.msgpack`` for all).

    Every frame has a record, with the person where it is; surfaces are in it if they are in the results. A track's
    ``extra`` says under ``source`` which track of ``frames.msgpack`` it is from; for a frame that was filled in that
    is 0, ``between`` are the frames that it was filled from, and ``detected`` is false.

    Raises:
        ResultsError, SubjectError, NobodyError: see `daemon.exports.people_files.wanted`.
        ConfigurationError: the body's file is not here, which surfaces are posed with.
        OSError: the file cannot be written.
    """
    motion, people = wanted(request)
    everybody = motion.subject is None
    path = request.folder / "people.msgpack" if everybody else path_of(request, people[0], "msgpack")
    beside = path.with_name(f".{path.name}.part")
    try:
        writer = ResultWriter.create(beside, motion.clip.header)
        try:
            for record in _records(request, Motion(motion.clip, tuple(people), motion.subject)):
                writer.append(record)
                request.progress(record.frame + 1)
        finally:
            writer.close()
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return [path]


def _records(request: Request, motion: Motion) -> Iterator[FrameRecord]:
    with read_results(request.results) as found:
        for shown, record in zip(_shown(request, motion), found, strict=True):
            tracks = [_track(motion.clip.header, person, at, surface) for person, at, surface in shown]
            # A frame without a result has one now, if it was filled in.
            record.failed = None if tracks else record.failed
            record.tracks = tracks
            yield record


def _shown(request: Request, motion: Motion) -> Iterator[Sequence[tuple[Person, int, F32 | None]]]:
    if _has_surfaces(request.results):
        yield from surfaces(motion, request.results, request.options, raw=request.motion.raw)
    else:
        for present in frames_of(motion):
            yield [(person, at, None) for person, at in present]


def _has_surfaces(results: Path) -> bool:
    with read_results(results) as found:
        for record in found:
            for track in record.tracks:
                return track.vertices is not None
    return False


def _track(header: Header, person: Person, at: int, surface: F32 | None) -> Track:
    joints = person.joints[at]
    extra: dict[str, object] = {"source": int(person.source[at])}
    if not person.source[at]:
        seen = np.flatnonzero(~person.filled)
        after = int(np.searchsorted(seen, at))
        extra["between"] = [int(person.frames[seen[after - 1]]), int(person.frames[seen[after]])]
    return Track(
        id=person.id,
        box=person.boxes[at].astype(np.float32),
        confidence=float(person.confidence[at]),
        camera=person.camera[at].astype(np.float32),
        pose=person.pose[at].astype(np.float32),
        betas=person.betas.astype(np.float32),
        joints_3d=joints.astype(np.float32),
        joints_2d=project(joints + person.camera[at], header.focal, header.principal).astype(np.float32),
        vertices=surface,
        detected=not person.filled[at],
        extra=extra,
    )
