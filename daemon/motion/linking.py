"""Joins tracks that are the same person: one ends, and another begins where, how large and how the first one would
be.

Two tracks are never joined that are visible at once, nor where another pair is about as likely: a person with two
identities is a nuisance, two people with one are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from daemon.motion.clip import F64, Clip, Series
from daemon.motion.skeleton import rest_offsets

LOOK = 0.5
"""Seconds at a track's end over which its velocity is measured."""
NEAR = 0.5
"""How far, in body heights, a track may begin from where the other leads it, without any gap."""
NEAR_GROWS = 0.8
"""How much farther with every second of the gap."""
MOVES = 0.4
"""Speed in body heights a second from which a direction counts."""
TURNED = np.deg2rad(100)
"""Two directions farther apart than this are two people who cross, rather than one who turns out of sight."""
SIZE = 0.25
"""How much the body's height in the picture may change, as a logarithm; half as much more with every second."""
BONES = 0.15
"""How much the bones' lengths may differ, relative, on average."""
POSE = np.deg2rad(60)
"""How far apart the joints' angles may be on average, right after the gap; the longer, the less it counts."""
BONES_OF_HEIGHT = 2.57
"""The lengths of all of a skeleton's bones over the body's height (SMPL's 24 joints)."""
MARGIN = 0.7
"""The best pair's cost must be below this part of the next one's."""


@dataclass(frozen=True)
class _End:
    """A track at its first or last sight: ``place`` and ``velocity`` (2,) in pixels (a second), ``height`` pixels."""

    time: float
    place: F64
    velocity: F64
    height: float
    pose: Rotation
    bones: F64


def link(clip: Clip, tracks: Sequence[Series], gap: float) -> list[list[int]]:
    """Which of the tracks are the same people: lists of indices into ``tracks``, each in order of time.

    Args:
        tracks: where each is seen; ``gap`` the longest time without sight, in seconds.
    """
    starts = [_end(clip, track, last=False) for track in tracks]
    ends = [_end(clip, track, last=True) for track in tracks]
    costs = np.full((len(tracks), len(tracks)), np.inf)
    for a, first in enumerate(tracks):
        for b, second in enumerate(tracks):
            if first.frames[-1] < second.frames[0] and starts[b].time - ends[a].time <= gap:
                costs[a, b] = cost(ends[a], starts[b])
    following: dict[int, int] = {}
    taken: set[int] = set()
    # From the surest on; a pair that is not clearly better than what else its two could be is left alone.
    order = sorted((float(costs[a, b]), a, b) for a, b in zip(*np.nonzero(np.isfinite(costs)), strict=True))
    for value, a, b in order:
        if a in following or b in taken:
            continue
        rivals = [costs[a, c] for c in range(len(tracks)) if c != b and c not in taken]
        rivals += [costs[c, b] for c in range(len(tracks)) if c != a and c not in following]
        if value <= MARGIN * min(rivals, default=np.inf):
            following[a] = b
            taken.add(b)
    chains = []
    for index in range(len(tracks)):
        if index not in taken:
            chain = [index]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            chains.append(chain)
    return chains


def cost(before: _End, after: _End) -> float:
    """How unlikely it is that a track goes on as another: 0 is just as expected, infinite beyond any bound."""
    gap = after.time - before.time
    height = (before.height + after.height) / 2
    speeds = np.linalg.norm(before.velocity) / height, np.linalg.norm(after.velocity) / height
    if min(speeds) > MOVES and _angle(before.velocity, after.velocity) > TURNED:
        return float("inf")
    ahead = before.place + before.velocity * gap - after.place
    behind = after.place - after.velocity * gap - before.place
    still = after.place - before.place
    # Whoever goes on goes on as before, as after, or in between; somebody slow may have stopped.
    misses = [np.linalg.norm(ahead), np.linalg.norm(behind), np.linalg.norm(ahead - behind) / 2]
    if min(speeds) <= MOVES:
        misses.append(np.linalg.norm(still))
    parts = [
        float(min(misses)) / height / (NEAR + NEAR_GROWS * gap),
        abs(float(np.log(after.height / before.height))) / (SIZE * (1 + gap / 2)),
        float(np.mean(np.abs(before.bones - after.bones) / np.maximum(before.bones, 0.02))) / BONES,
        float((before.pose.inv() * after.pose).magnitude().mean()) / (POSE * (1 + gap)),
    ]
    if max(parts) > 1:
        return float("inf")
    return float(np.sqrt(np.mean(np.square(parts)))) + 0.05


def _end(clip: Clip, track: Series, *, last: bool) -> _End:
    times = clip.times[track.frames]
    at = times[-1] if last else times[0]
    near = np.abs(times - at) <= LOOK
    places = ((track.boxes[:, :2] + track.boxes[:, 2:]) / 2).astype(np.float64)
    roots = track.joints_2d[:, 0].astype(np.float64)
    # The root is steadier than the box, whose size changes with the limbs.
    places = np.where(np.isfinite(roots).all(axis=1, keepdims=True), roots, places)[near]
    velocity = np.zeros(2)
    base = places[-1] if last else places[0]
    if near.sum() >= 3:
        slope, level = np.polyfit(times[near] - at, places, 1)
        velocity, base = slope, level
    parents = clip.header.joint_parents
    offsets = rest_offsets(track.pose[near], track.joints[near], parents)
    index = -1 if last else 0
    return _End(
        float(at),
        base,
        velocity,
        max(1.0, float(np.median(picture_heights(track, parents)[near]))),
        Rotation.from_matrix(track.pose[index, 1:].astype(np.float64)),
        np.linalg.norm(offsets[1:], axis=1),
    )


def picture_heights(track: Series, parents: Sequence[int]) -> F64:
    """How tall a person would stand in the picture at each frame, in pixels: the skeleton's size over its depth, so
    that crouching does not count. (N,)"""
    flat = np.asarray(track.joints_2d, np.float64)
    joints = np.asarray(track.joints, np.float64)
    across = np.sqrt(np.var(joints[..., :2], axis=1).sum(axis=1))
    scale = np.sqrt(np.var(flat, axis=1).sum(axis=1)) / np.maximum(across, 1e-6)
    bones = sum(np.linalg.norm(joints[:, j] - joints[:, p], axis=1) for j, p in enumerate(parents) if p >= 0)
    return scale * bones / BONES_OF_HEIGHT  # type: ignore[no-any-return]


def _angle(a: F64, b: F64) -> float:
    return float(np.arccos(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1)))
