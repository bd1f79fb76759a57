"""Files about one person: whose they are, what they are called, and every frame of the clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from daemon.exports.request import Request
from daemon.motion.clip import F64
from daemon.motion.people import Motion, Person, read_motion
from daemon.motion.world import Placed


class NobodyError(ValueError):
    """There is nobody in the results whom the export could be about."""


def wanted(request: Request) -> tuple[Motion, list[Person]]:
    """The motion, and those people that are wanted.

    Raises:
        ResultsError: the results cannot be read.
        SubjectError: nobody is meant by the choice of the subject.
        NobodyError: there is nobody at all.
    """
    motion = read_motion(request.results, request.motion)
    if not motion.people:
        raise NobodyError(f"{request.results}: nobody is in it")
    return motion, list(motion.wanted())


def path_of(request: Request, person: Person, suffix: str) -> Path:
    """``subject.bvh``, or ``person-3.bvh`` where somebody was chosen by name or everybody is wanted."""
    one = request.motion.subject == "auto"
    return request.folder / (f"subject.{suffix}" if one else f"person-{person.id}.{suffix}")


def every_frame(motion: Motion, placed: Placed) -> tuple[F64, F64, F64]:
    """Times (F,), rotations (F, J, 3, 3) and root places (F, 3) of every frame of the clip, or, where its rate is
    variable, at its constant nominal rate: for formats that know no gaps and one distance between frames. Before its
    first sight a person stands in its first pose, after the last in the last, and in between it moves evenly."""
    clip, person = motion.clip, placed.person
    rate = clip.header.rate[0] / clip.header.rate[1] if clip.header.rate[0] else 30.0
    count = len(clip.times)
    if clip.header.variable and count > 1:
        count = 1 + int(np.floor(float(clip.times[-1]) * rate + 1e-6))
    constant = np.arange(count) / rate
    at = constant if clip.header.variable else clip.times
    if not clip.header.variable and len(person.frames) == len(at):
        return constant, placed.pose, placed.root
    known = person.times
    if len(known) == 1:
        return constant, np.repeat(placed.pose, count, axis=0), np.repeat(placed.root, count, axis=0)
    inside = np.clip(at, known[0], known[-1])
    root = np.column_stack([np.interp(inside, known, placed.root[:, axis]) for axis in range(3)])
    pose = np.stack(
        [
            Slerp(known, Rotation.from_matrix(placed.pose[:, joint]))(inside).as_matrix()
            for joint in range(placed.pose.shape[1])
        ],
        axis=1,
    )
    return constant, pose, root
