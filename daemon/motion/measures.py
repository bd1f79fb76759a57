"""All that is measured of one person: angles, their velocities, the centre of mass, speeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daemon.motion.angles import Angles, joint_angles, rate_of_change, velocities
from daemon.motion.clip import F64
from daemon.motion.ground import place
from daemon.motion.mass import centre_of_mass
from daemon.motion.people import Motion, Person
from daemon.motion.world import Placed

SPEEDS = ("pelvis", "head", "left_wrist", "right_wrist", "left_knee", "right_knee", "left_ankle", "right_ankle")
"""Joints whose speeds are given."""


@dataclass(frozen=True)
class Measures:
    """Of N frames: ``angles`` in degrees and ``velocities`` in degrees a second by name, each (N,); ``centre_of_mass``
    (N, 3) metres in the world of ``placed``; ``speeds`` in metres a second by name, each (N,). Nothing is measured
    across a gap."""

    placed: Placed
    angles: Angles
    velocities: Angles
    centre_of_mass: F64
    speeds: Angles


def measure(motion: Motion, person: Person, up: str = "y") -> Measures:
    """Measure a person.

    Raises:
        ValueError: the results' skeleton lacks a joint that is needed; names it.
    """
    header = motion.clip.header
    placed = place(motion, person, up)
    angles = joint_angles(placed, header.joint_names, header.joint_parents)
    centre = centre_of_mass(placed.joints, header.joint_names)
    places = {"centre_of_mass": centre}
    places |= {name: placed.joints[:, header.joint_names.index(name)] for name in SPEEDS}
    turning: Angles = {name: np.zeros(len(person.frames)) for name in angles}
    speeds: Angles = {name: np.zeros(len(person.frames)) for name in places}
    for first, last in person.spans():
        span = slice(first, last + 1)
        times = person.times[span]
        part = velocities({name: values[span] for name, values in angles.items()}, times)
        for name, values in part.items():
            turning[name][span] = values
        for name, values in places.items():
            speeds[name][span] = np.linalg.norm(rate_of_change(values[span], times), axis=1)
    return Measures(placed, angles, turning, centre, speeds)
