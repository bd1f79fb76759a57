"""Where the ground is and which way is up, from the feet; and standing feet that stay where they are.

A foot that hardly moves and is low stands. The places of standing feet over the whole clip lie in the ground; the
plane with most of them in it (as M. Fischler and R. Bolles, "Random sample consensus", Communications of the ACM 24,
1981, but every sample is tried) has the direction up. Where all steps lie on one line, the body's own axis says the
rest; where nobody steps, up is the camera's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import binary_closing, binary_opening
from scipy.spatial.transform import Rotation

from daemon.motion.angles import rate_of_change
from daemon.motion.clip import F64, Bool, runs
from daemon.motion.people import Motion, Person
from daemon.motion.smoothing import local_fit
from daemon.motion.world import Placed, before_camera

FEET = (("left_ankle", "left_foot"), ("right_ankle", "right_foot"))
STILL = 0.35
"""Metres a second below which a foot is held for standing."""
SHORTEST = 0.1
"""Seconds that a foot stands at least."""
LOW = 0.12
"""Metres above the foot's lowest places of the clip within which it can stand: a foot may rest in the air."""
MOST_TILT = np.deg2rad(35)
"""The camera is not tilted more against the ground than that."""
THICK = 0.05
"""Metres from the plane within which a step lies in it."""


MOST_STEPS = 80
"""Steps that the plane is found from, the longest of a clip."""
SOLE = 0.02
"""Metres from the ground to the toes' joint."""
FLIGHT = 0.5
"""Longest time between two steps, in seconds, in which somebody goes on as before."""
SETTLE = 0.05
"""Width in seconds over which the heights of following steps are brought together."""


@dataclass(frozen=True)
class Contact:
    """A foot that stands: the joint's number, first and last index into the person's frames."""

    joint: int
    first: int
    last: int


def place(motion: Motion, person: Person, up: str = "y") -> Placed:
    """A person in a world whose axis ``up``, y or z, points up: as the camera has it, or, where ``motion.ground`` is,
    upright on the ground.

    Raises:
        ValueError: the skeleton has no feet, for the ground.
    """
    placed = before_camera(motion, person, up)
    return upright(placed, motion.clip.header.joint_names) if motion.ground else placed


def contacts(joints: F64, times: F64, feet: list[int], up: F64) -> list[Contact]:
    """When each of ``feet`` (joints' numbers) stands. ``joints`` (N, J, 3) metres in the world, ``up`` (3,)."""
    found = []
    heights = joints[:, feet] @ up
    if len(times) < 3:
        return []
    rate = (len(times) - 1) / (times[-1] - times[0])
    shortest = max(2, round(SHORTEST * rate))
    for column, joint in enumerate(feet):
        speeds = np.linalg.norm(rate_of_change(local_fit(times, 0.04)(joints[:, joint]), times), axis=1)
        low = heights[:, column] < np.quantile(heights, 0.1) + LOW
        stands: Bool = (speeds < STILL) & low
        stands = binary_opening(binary_closing(stands, np.ones(2 * shortest - 1)), np.ones(shortest))
        found += [Contact(joint, first, last) for first, last in runs(stands)]
    return found


def upright(placed: Placed, names: tuple[str, ...]) -> Placed:
    """The person upright on the ground at height 0, standing feet held in place.

    Raises:
        ValueError: the skeleton has no feet.
    """
    missing = [name for pair in FEET for name in pair if name not in names]
    if missing:
        raise ValueError(f"the skeleton has no joint {missing[0]!r}, which the ground is found with")
    feet = [names.index(name) for pair in FEET for name in pair]
    times = placed.person.times
    turned = placed
    for _ in range(2):  # what is low depends on which way is up
        steps = contacts(turned.joints, times, feet, placed.up)
        turn = _to_up(_up_of(turned, steps, names), placed.up)
        turned = _turned(turned, turn)
    steps = contacts(turned.joints, times, feet, placed.up)
    return _held(turned, steps, names)


def _up_of(placed: Placed, steps: list[Contact], names: tuple[str, ...]) -> F64:
    """The direction up (3,), in the world that the person is placed in."""
    joints = placed.joints
    hips = (joints[:, names.index("left_hip")] + joints[:, names.index("right_hip")]) / 2
    axis = joints[:, names.index("neck")] - hips
    mean = axis.mean(axis=0)
    body = mean / np.linalg.norm(mean)
    if body @ placed.up < np.cos(MOST_TILT):
        body = placed.up  # bent over or lying all the time: it says nothing
    steps = sorted(steps, key=lambda step: step.first - step.last)[:MOST_STEPS]
    points = np.array([joints[step.first : step.last + 1, step.joint].mean(axis=0) for step in steps])
    weights = [float(step.last - step.first + 1) for step in steps]
    return _plane(points, np.array(weights), body, placed.up) if len(points) >= 3 else placed.up


def _plane(points: F64, weights: F64, body: F64, up: F64) -> F64:
    """The normal of the plane that most weight of the steps lies in, drawn to ``body`` where they lie on a line."""
    best, most = up, -1.0
    for a in range(len(points)):
        for b in range(a + 1, len(points)):
            # Two steps and the body's axis make a plane: its normal is the axis less what is along the steps.
            along = points[b] - points[a]
            if (length := np.linalg.norm(along)) < 0.2:
                continue
            normal = body - along * (body @ along) / length**2
            normal /= np.linalg.norm(normal)
            near = np.abs((points - points[a]) @ normal) < THICK
            if normal @ up >= np.cos(MOST_TILT) and weights[near].sum() > most:
                best, most = normal, float(weights[near].sum())
    if most < 0:
        return up
    near = np.abs((points - points.mean(axis=0)) @ best) < 2 * THICK
    if near.sum() < 3:
        return best
    # Least squares over those, with the body's axis as what is expected: a line of steps leaves one direction open.
    centred = (points[near] - np.average(points[near], axis=0, weights=weights[near])) * np.sqrt(
        weights[near] / weights[near].sum()
    )[:, None]
    spread = centred.T @ centred
    prior = 0.02 * (np.eye(3) - np.outer(body, body))
    _, directions = np.linalg.eigh(spread + prior)
    normal = directions[:, 0] * np.sign(directions[:, 0] @ up)
    return normal if normal @ up >= np.cos(MOST_TILT) else best


def _to_up(direction: F64, up: F64) -> F64:
    """The least rotation (3, 3) that takes ``direction`` to ``up``."""
    axis = np.cross(direction, up)
    sine = float(np.linalg.norm(axis))
    if sine < 1e-9:
        return np.eye(3)
    angle = np.arctan2(sine, float(direction @ up))
    return Rotation.from_rotvec(axis / sine * angle).as_matrix()  # type: ignore[no-any-return]


def _turned(placed: Placed, turn: F64) -> Placed:
    pose = placed.pose.copy()
    pose[:, 0] = turn @ pose[:, 0]
    return replace(placed, pose=pose, root=placed.root @ turn.T, joints=placed.joints @ turn.T)


def _held(placed: Placed, steps: list[Contact], names: tuple[str, ...]) -> Placed:
    """The whole body is moved so that a foot that stands does not, and so that it stands on the ground.

    Along the ground each frame's slip is taken off, in the flight between two steps as much as at their ends: whom the
    camera followed goes on. In height each step is put on the ground, and in between the body rises as before.
    """
    count, up, times = len(placed.root), placed.up, placed.person.times
    slips, lifts = np.full((count, 3), np.nan), np.full(count, np.nan)
    anchor: Contact | None = None
    stands: list[list[Contact]] = [[] for _ in range(count)]
    for step in steps:
        for frame in range(step.first, step.last + 1):
            stands[frame].append(step)
    for frame, standing in enumerate(stands):
        if anchor is None or anchor not in standing or not names[anchor.joint].endswith("foot"):
            anchor = max(standing, key=lambda step: (names[step.joint].endswith("foot"), step.last), default=None)
        if anchor is None:
            continue
        here = placed.joints[frame, anchor.joint]
        sole = SOLE if names[anchor.joint].endswith("foot") else SOLE + _ankle_height(placed, anchor.joint, names)
        lifts[frame] = sole - here @ up
        if frame > anchor.first:
            moved = here - placed.joints[frame - 1, anchor.joint]
            slips[frame] = moved - up * (moved @ up)
    shift = -np.cumsum(_between(slips, times), axis=0)
    known = np.flatnonzero(~np.isnan(lifts))
    if len(known):
        rise = np.interp(np.arange(count), known, lifts[known])
        shift += local_fit(times, SETTLE)(rise)[:, None] * up
    else:
        shift -= (placed.joints @ up).min() * up
    return replace(placed, root=placed.root + shift, joints=placed.joints + shift[:, None])


def _between(slips: F64, times: F64) -> F64:
    """Slips (N, 3) with what is missing: in flights up to `FLIGHT` as at their ends, else none."""
    filled: F64 = slips.copy()
    for first, last in runs(np.isnan(slips[:, 0])):
        before, after = first - 1, last + 1
        if first == 0 or after == len(slips) or times[after] - times[before] > FLIGHT:
            filled[first : last + 1] = 0
        else:
            filled[first : last + 1] = (slips[before] + slips[after]) / 2
    return filled


def _ankle_height(placed: Placed, joint: int, names: tuple[str, ...]) -> float:
    """How much higher an ankle is than its foot's toes, when that is flat, in metres."""
    toes = names.index(names[joint].replace("ankle", "foot"))
    return float(abs(placed.person.offsets[toes, 1]))
