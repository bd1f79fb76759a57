"""Who matters most in a clip, and whom somebody means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daemon.motion.clip import Clip, Series
from daemon.motion.linking import picture_heights

POINT = re.compile(r"(-?\d+(?:\.\d+)?),(-?\d+(?:\.\d+)?)@(\d+)")


class SubjectError(ValueError):
    """There is nobody whom the choice means; says who there is."""


@dataclass(frozen=True)
class Standing:
    """How much a person matters: ``score``, and what it is made of, each from 0: ``time`` in view as a part of the
    clip, ``size`` as a part of the picture's height, ``centre`` 1 in the middle and 0 in a corner, ``motion`` in body
    heights a second, of the limbs and of the whole."""

    score: float
    time: float
    size: float
    centre: float
    motion: float


def standing(clip: Clip, parts: Sequence[Series]) -> Standing:
    """How much the person matters that these tracks are, at the frames where it is seen."""
    width, height = clip.header.width, clip.header.height
    frames = sum(len(part.frames) for part in parts)
    if not frames:
        return Standing(0.0, 0.0, 0.0, 0.0, 0.0)
    time = frames / max(1, len(clip.times))
    tall = np.concatenate([picture_heights(part, clip.header.joint_parents) for part in parts])
    size = float(np.median(tall)) / height
    middles = np.concatenate([(part.boxes[:, :2] + part.boxes[:, 2:]) / 2 for part in parts])
    away = np.linalg.norm((middles - [width / 2, height / 2]) / [width / 2, height / 2], axis=1) / np.sqrt(2)
    centre = float(np.clip(1 - away, 0, 1).mean())
    speeds = []
    for part in parts:
        if len(part.frames) < 2:
            continue
        steps = np.diff(clip.times[part.frames])[:, None]
        tallness = picture_heights(part, clip.header.joint_parents)[1:, None]
        roots = part.joints_2d[:, :1]
        limbs = np.linalg.norm(np.diff(part.joints_2d - roots, axis=0), axis=2).mean(axis=1, keepdims=True)
        whole = np.linalg.norm(np.diff(roots[:, 0], axis=0), axis=1)[:, None]
        speeds.append((limbs + whole) / np.maximum(steps, 1e-3) / np.maximum(tallness, 1.0))
    motion = float(np.median(np.concatenate(speeds))) if speeds else 0.0
    score = time * min(size, 1.0) * (0.4 + 0.6 * centre) * (0.5 + min(motion, 1.5))
    return Standing(score, time, size, centre, motion)


def choose(clip: Clip, people: Sequence[Sequence[Series]], wanted: str) -> int | None:
    """The index of the subject among ``people``, each the tracks that one person is; None where there is nobody, or
    where ``wanted`` is ``all``.

    Raises:
        SubjectError: ``wanted`` is no choice, or nobody is there.
    """
    if wanted == "all":
        return None
    if wanted == "auto":
        scores = [standing(clip, parts).score for parts in people]
        return int(np.argmax(scores)) if scores else None
    if wanted.isdigit():
        for index, parts in enumerate(people):
            if int(wanted) in (part.id for part in parts):
                return index
        known = ", ".join(str(part.id) for parts in people for part in parts) or "none"
        raise SubjectError(f"subject {wanted}: no track has that ID; there are {known}")
    if (found := POINT.fullmatch(wanted)) is None:
        raise SubjectError(
            f"subject {wanted!r}: auto, all, a track's ID, or x,y@frame in pixels, as in 320,180@45"
        )
    return _at(clip, people, float(found[1]), float(found[2]), int(found[3]), wanted)


def _at(clip: Clip, people: Sequence[Sequence[Series]], x: float, y: float, frame: int, wanted: str) -> int:
    """Who stands at a point: of those whose box holds it, or is within half a box of it, the one nearest to it."""
    if frame >= len(clip.times):
        raise SubjectError(f"subject {wanted}: frame {frame} is beyond the last, {len(clip.times) - 1}")
    best: tuple[float, int] | None = None
    for index, parts in enumerate(people):
        for part in parts:
            for row in np.flatnonzero(part.frames == frame):
                x0, y0, x1, y1 = part.boxes[row]
                margin = 0.25 * max(x1 - x0, y1 - y0)
                if x0 - margin <= x <= x1 + margin and y0 - margin <= y <= y1 + margin:
                    away = float(np.linalg.norm(part.joints_2d[row] - [x, y], axis=1).min())
                    best = min(best, (away, index)) if best else (away, index)
    if best is None:
        raise SubjectError(f"subject {wanted}: nobody is near ({x:g}, {y:g}) in frame {frame}")
    return best[1]
