"""The pass: out of raw tracks the people of a clip, joined, filled and smooth, and who of them is the subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from daemon.motion import filling, smoothing
from daemon.motion.clip import F64, I64, Bool, Clip, Series, read_clip
from daemon.motion.linking import link
from daemon.motion.options import MotionOptions
from daemon.motion.skeleton import frame_offsets, place_joints, rest_offsets, world_rotations
from daemon.motion.subject import Standing, choose, standing


@dataclass(frozen=True)
class Person:
    """One person's movement over N frames, in order; frames that are missing in between are a gap too long to fill.

    ``id`` is its first track's, ``tracks`` all of them. ``frames`` (N,) numbers and ``times`` (N,) seconds; ``pose``
    (N, J, 3, 3) rotations, root first, each relative to its parent; ``camera`` (N, 3) metres, where the root is,
    camera axes (x right, y down, z away); ``joints`` (N, J, 3) metres relative to the root; ``offsets`` (J, 3)
    metres, each joint seen from its parent in the rest pose; ``betas`` (B,). ``filled`` (N,) frames that nobody saw;
    ``source`` (N,) the track that a frame is from, 0 for filled ones; ``confidence`` (N,), 0 for filled ones;
    ``boxes`` (N, 4) pixels.
    """

    id: int
    tracks: tuple[int, ...]
    frames: I64
    times: F64
    pose: F64
    camera: F64
    joints: F64
    offsets: F64
    betas: F64
    filled: Bool
    source: I64
    confidence: F64
    boxes: F64
    standing: Standing

    def spans(self) -> list[tuple[int, int]]:
        """First and last index of every stretch without a gap."""
        ends = np.flatnonzero(np.diff(self.frames) > 1)
        return list(zip([0, *(ends + 1).tolist()], [*ends.tolist(), len(self.frames) - 1], strict=True))


@dataclass(frozen=True)
class Motion:
    """The people of a clip, in order of their ids; ``subject`` is one of those ids, None where there is nobody or
    where all are wanted. ``clip`` is without its tracks."""

    clip: Clip
    people: tuple[Person, ...]
    subject: int | None
    ground: bool = False
    """Whether people are to be put upright on the ground where they leave the camera's axes."""

    def wanted(self) -> tuple[Person, ...]:
        """Those whom exports of one person are about: the subject, or all."""
        return tuple(person for person in self.people if self.subject in (None, person.id))


def read_motion(results: Path, options: MotionOptions) -> Motion:
    """The motion pass over a ``frames.msgpack``.

    Raises:
        ResultsError: it cannot be read.
        SubjectError: nobody is there whom ``options.subject`` means.
    """
    return find_motion(read_clip(results), options)


def find_motion(clip: Clip, options: MotionOptions) -> Motion:
    """The motion pass over results in memory; raises as `read_motion`."""
    if options.raw:
        groups = [[track] for track in clip.tracks]
    else:
        seen = [found for track in clip.tracks if len((found := track.only(track.seen)).frames)]
        groups = [[seen[index] for index in chain] for chain in link(clip, seen, options.gap)]
        groups.sort(key=lambda parts: parts[0].id)
    chosen = choose(clip, groups, options.subject)
    make = _as_found if options.raw else _whole
    people = tuple(make(clip, parts, options) for parts in groups)
    # The raw tracks are not held beside what was made of them.
    return Motion(replace(clip, tracks=()), people, None if chosen is None else people[chosen].id, options.ground)


def _as_found(clip: Clip, parts: Sequence[Series], options: MotionOptions) -> Person:
    del options
    (track,) = parts
    parents = clip.header.joint_parents
    return Person(
        track.id, (track.id,), track.frames, clip.times[track.frames], track.pose.astype(np.float64),
        track.camera.astype(np.float64), track.joints.astype(np.float64),
        rest_offsets(track.pose, track.joints, parents), np.median(track.betas, axis=0).astype(np.float64),
        ~track.seen, np.full(len(track.frames), track.id), track.confidence.astype(np.float64),
        track.boxes.astype(np.float64), standing(clip, parts),
    )  # fmt: skip


def _whole(clip: Clip, parts: Sequence[Series], options: MotionOptions) -> Person:
    parents = clip.header.joint_parents
    frames = np.concatenate([part.frames for part in parts])
    pose = np.concatenate([part.pose for part in parts]).astype(np.float64)
    camera = np.concatenate([part.camera for part in parts]).astype(np.float64)
    boxes = np.concatenate([part.boxes for part in parts]).astype(np.float64)
    confidence = np.concatenate([part.confidence for part in parts]).astype(np.float64)
    source = np.concatenate([np.full(len(part.frames), part.id) for part in parts])
    bones = np.concatenate([frame_offsets(part.pose, part.joints, parents) for part in parts])
    betas = np.median(np.concatenate([part.betas for part in parts]), axis=0).astype(np.float64)
    offsets = np.median(bones, axis=0)
    # A body that is taken for larger than it is stands farther away: with its one size it comes nearer.
    sizes = np.linalg.norm(bones, axis=2).sum(axis=1)
    own = np.linalg.norm(offsets, axis=1).sum()
    camera *= np.where(sizes > 0.1 * own, own / np.maximum(sizes, 1e-6), 1.0)[:, None] if own > 0 else 1.0

    rows = _Rows(frames, pose, camera, boxes, confidence, source, np.zeros(len(frames), np.bool_))
    rows = rows.filled_up(clip.times, options.gap)
    times = clip.times[rows.frames]
    if options.smooth:
        pose, camera = np.empty_like(rows.pose), np.empty_like(rows.camera)
        for first, last in _stretches(rows.frames):
            span = slice(first, last + 1)
            pose[span] = smoothing.smooth_rotations(rows.pose[span], times[span])
            camera[span] = smoothing.smooth_places(rows.camera[span], times[span])
        rows = replace(rows, pose=pose, camera=camera)
    joints = place_joints(world_rotations(rows.pose, parents), offsets, parents)
    return Person(
        parts[0].id, tuple(part.id for part in parts), rows.frames, times, rows.pose, rows.camera, joints, offsets,
        betas, rows.filled, rows.source, rows.confidence, rows.boxes, standing(clip, parts),
    )  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    frames: I64
    pose: F64
    camera: F64
    boxes: F64
    confidence: F64
    source: I64
    filled: Bool

    def filled_up(self, times: F64, most: float) -> _Rows:
        """With the frames of every gap of at most that many seconds."""
        extra = [self]
        for at in np.flatnonzero(np.diff(self.frames) > 1):
            start, end = self.frames[at], self.frames[at + 1]
            if times[end] - times[start] <= most:
                extra.append(self._gap(int(at), np.arange(start + 1, end), times))
        order = np.argsort(np.concatenate([rows.frames for rows in extra]), kind="stable")
        return _Rows(
            *(
                np.concatenate([getattr(rows, name) for rows in extra])[order]
                for name in ("frames", "pose", "camera", "boxes", "confidence", "source", "filled")
            )
        )

    def _gap(self, at: int, missing: I64, times: F64) -> _Rows:
        known = times[self.frames]
        near = slice(max(0, at - 60), at + 61)
        start, end = known[at], known[at + 1]
        share = ((times[missing] - start) / (end - start))[:, None]
        return _Rows(
            missing,
            filling.fill_rotations(self.pose[at], self.pose[at + 1], start, end, times[missing]),
            filling.fill_places(known[near], self.camera[near], times[missing]),
            self.boxes[at] * (1 - share) + self.boxes[at + 1] * share,
            np.zeros(len(missing)),
            np.zeros(len(missing), np.int64),
            np.ones(len(missing), np.bool_),
        )


def _stretches(frames: I64) -> Iterator[tuple[int, int]]:
    joined = np.concatenate([[True], np.diff(frames) == 1])
    starts = np.flatnonzero(~joined)
    bounds = [0, *starts.tolist(), len(frames)]
    for first, following in pairwise(bounds):
        yield first, following - 1
