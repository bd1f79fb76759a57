"""``subject.trc`` and ``subject.mot``: markers at the joints, and joint angles, for OpenSim.

The formats as OpenSim's documentation describes them (Marker (.trc) Files; Storage (.sto) and Motion (.mot) Files).
Metres and degrees, y up. Coordinates are named as in the full-body model of A. Rajagopal et al., IEEE Transactions on
Biomedical Engineering 63 (2016).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from daemon.exports.people_files import every_frame, path_of, wanted
from daemon.exports.request import Request, appearing
from daemon.motion.angles import (
    ISB,
    Angles,
    JointNumbers,
    cardan,
    forearm,
    humerus,
    joint_angles,
    with_turned_limbs,
)
from daemon.motion.clip import F64
from daemon.motion.ground import place
from daemon.motion.people import Motion
from daemon.motion.skeleton import place_joints, world_rotations
from daemon.motion.world import Placed


def export_trc(request: Request) -> list[Path]:
    """Write a marker for each joint, a row for each frame of the clip.

    Raises:
        ResultsError, SubjectError, NobodyError: see `daemon.exports.people_files.wanted`.
        OSError: a file cannot be written.
    """
    motion, people = wanted(request)
    header, made = motion.clip.header, []
    rate = header.rate[0] / header.rate[1] if header.rate[0] else 30.0
    for person in people:
        placed = place(motion, person)
        times, pose, root = every_frame(motion, placed)
        path = path_of(request, person, "trc")
        with appearing(path) as (file,):
            names, count = header.joint_names, len(times)
            lines = [
                f"PathFileType\t4\t(X/Y/Z)\t{path.name}",
                "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames",
                f"{rate:.6f}\t{rate:.6f}\t{count}\t{len(names)}\tm\t{rate:.6f}\t1\t{count}",
                "Frame#\tTime\t" + "\t\t\t".join(names) + "\t\t",
                "\t\t" + "\t".join(f"{axis}{number + 1}" for number in range(len(names)) for axis in "XYZ"),
                "",
            ]
            file.write(("\n".join(lines) + "\n").encode())
            world = world_rotations(pose, header.joint_parents)
            joints = place_joints(world, person.offsets, header.joint_parents) + root[:, None]
            for frame in range(count):
                numbers = "\t".join(f"{value:.6f}" for value in joints[frame].ravel())
                file.write(f"{frame + 1}\t{times[frame]:.6f}\t{numbers}\n".encode())
                request.progress(frame + 1)
        made.append(path)
    return made


def export_mot(request: Request) -> list[Path]:
    """Write the model's coordinates, a row for each frame of the clip. Raises as `export_trc`, and:

    Raises:
        ValueError: the skeleton lacks a joint that the coordinates need.
    """
    motion, people = wanted(request)
    made = []
    for person in people:
        placed = place(motion, person)
        times, pose, root = every_frame(motion, placed)
        columns = coordinates(motion, placed, pose, root)
        path = path_of(request, person, "mot")
        with appearing(path) as (file,):
            head = [
                path.stem, "version=1", f"nRows={len(times)}", f"nColumns={len(columns) + 1}", "inDegrees=yes",
                "endheader", "\t".join(["time", *columns]),
            ]  # fmt: skip
            file.write(("\n".join(head) + "\n").encode())
            for frame in range(len(times)):
                numbers = [times[frame], *(values[frame] for values in columns.values())]
                file.write(("\t".join(f"{number:.6f}" for number in numbers) + "\n").encode())
                request.progress(frame + 1)
        made.append(path)
    return made


def coordinates(motion: Motion, placed: Placed, pose: F64, root: F64) -> Angles:
    """The model's coordinates by name, degrees and metres, each (F,)."""
    header, person = motion.clip.header, placed.person
    names, parents = header.joint_names, header.joint_parents
    at = JointNumbers(names)
    world = world_rotations(pose, parents)
    joints = place_joints(world, person.offsets, parents) + root[:, None]
    angles = joint_angles(Placed(person, pose, root, joints, placed.up), names, parents)
    tilt, list_, rotation = _degrees(*cardan(world[:, at["pelvis"]] @ ISB))
    found: Angles = {"pelvis_tilt": tilt, "pelvis_list": list_, "pelvis_rotation": rotation}
    found |= {f"pelvis_t{axis}": root[:, number] for number, axis in enumerate("xyz")}
    turned = with_turned_limbs(pose, person.offsets, at)
    for side, end in (("right", "r"), ("left", "l")):
        for name, ours in (
            ("hip_flexion", "hip_flexion"), ("hip_adduction", "hip_adduction"), ("hip_rotation", "hip_rotation"),
            ("knee_angle", "knee_flexion"), ("ankle_angle", "ankle_dorsiflexion"),
        ):  # fmt: skip
            found[f"{name}_{end}"] = angles[f"{side}_{ours}"]
    found["lumbar_extension"] = -angles["trunk_flexion"]
    found["lumbar_bending"] = angles["trunk_bending"]
    found["lumbar_rotation"] = angles["trunk_rotation"]
    for side, end in (("right", "r"), ("left", "l")):
        flexion, adduction, rotation = _degrees(*cardan(humerus(turned, side, at)))
        found |= {f"arm_flex_{end}": flexion, f"arm_add_{end}": adduction, f"arm_rot_{end}": rotation}
        bend, _, turn = _degrees(*cardan(forearm(turned, side, at)))
        found |= {f"elbow_flex_{end}": bend, f"pro_sup_{end}": turn}
    return found


def _degrees(*angles: F64) -> tuple[F64, ...]:
    return tuple(np.rad2deg(np.unwrap(values)) for values in angles)
