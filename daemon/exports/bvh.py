"""``subject.bvh``: a person's skeleton and movement, for Blender, MotionBuilder, Maya and most of the rest.

Metres, y up, the rest pose a T facing z. The root has Xposition Yposition Zposition Zrotation Xrotation Yrotation,
all other joints the three rotations, in degrees: the joint's matrix is Rz Rx Ry. Biovision's format as M. Meredith
and S. Maddock describe it in "Motion capture file formats explained" (University of Sheffield, 2001).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from daemon.exports.people_files import every_frame, path_of, wanted
from daemon.exports.request import Request, appearing
from daemon.motion.angles import cardan
from daemon.motion.clip import F64
from daemon.motion.ground import place

TIP = 0.6
"""A bone that ends a chain reaches beyond its joint by this part of the bone before it."""


def export_bvh(request: Request) -> list[Path]:
    """Write a file for each person that is wanted; a frame for each of the clip.

    Raises:
        ResultsError, SubjectError, NobodyError: see `daemon.exports.people_files.wanted`.
        OSError: a file cannot be written.
    """
    motion, people = wanted(request)
    header, made = motion.clip.header, []
    for person in people:
        times, pose, root = every_frame(motion, place(motion, person))
        path = path_of(request, person, "bvh")
        with appearing(path) as (file,):
            text = "".join(hierarchy(header.joint_names, header.joint_parents, person.offsets))
            step = header.rate[1] / header.rate[0] if header.rate[0] else 1 / 30
            file.write(f"{text}MOTION\nFrames: {len(times)}\nFrame Time: {step:.9f}\n".encode())
            order = depth_first(header.joint_parents)
            angles = unwrapped(pose[:, order])
            for frame in range(len(times)):
                numbers = [*root[frame], *angles[frame].ravel()]
                file.write((" ".join(f"{number:.6f}" for number in numbers) + "\n").encode())
                request.progress(frame + 1)
        made.append(path)
    return made


def unwrapped(pose: F64) -> F64:
    """Rotations (N, J, 3, 3) as angles about z, x, y (N, J, 3) in degrees, without jumps in time where that can be."""
    angles = np.stack(cardan(pose), axis=-1)
    # The same rotation by other angles, where that is nearer to the frame before: a turn through the poles.
    for frame in range(1, len(angles)):
        other = np.stack(
            [angles[frame, :, 0] + np.pi, np.pi - angles[frame, :, 1], angles[frame, :, 2] + np.pi], axis=1
        )
        both = np.stack([angles[frame], other])
        both += 2 * np.pi * np.round((angles[frame - 1] - both) / (2 * np.pi))
        nearest = np.abs(both - angles[frame - 1]).sum(axis=2).argmin(axis=0)
        angles[frame] = both[nearest, np.arange(len(nearest))]
    return np.rad2deg(angles)


def hierarchy(names: Sequence[str], parents: Sequence[int], offsets: F64) -> Iterator[str]:
    """The first part of the file, line by line."""

    def lines(joint: int, level: int) -> Iterator[str]:
        tab = "\t" * level
        yield f"{tab}{'JOINT' if level else 'ROOT'} {names[joint]}\n{tab}{{\n"
        yield f"{tab}\tOFFSET {' '.join(f'{value:.6f}' for value in offsets[joint])}\n"
        turns = "Zrotation Xrotation Yrotation"
        yield f"{tab}\tCHANNELS " + (f"3 {turns}\n" if level else f"6 Xposition Yposition Zposition {turns}\n")
        children = [child for child, parent in enumerate(parents) if parent == joint]
        for child in children:
            yield from lines(child, level + 1)
        if not children:
            tip = " ".join(f"{value:.6f}" for value in TIP * offsets[joint])
            yield f"{tab}\tEnd Site\n{tab}\t{{\n{tab}\t\tOFFSET {tip}\n{tab}\t}}\n"
        yield f"{tab}}}\n"

    yield "HIERARCHY\n"
    yield from lines(parents.index(-1), 0)


def depth_first(parents: Sequence[int]) -> list[int]:
    """Joints in the order in which `hierarchy` names them."""

    def below(joint: int) -> Iterator[int]:
        yield joint
        for child, parent in enumerate(parents):
            if parent == joint:
                yield from below(child)

    return list(below(parents.index(-1)))
