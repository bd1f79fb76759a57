"""People's surfaces frame by frame, posed anew from their movement, or as the results hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from daemon.motion.people import Motion, Person
from stages.protocols import BodyModel, find_backend
from stages.records import F32
from stages.results import read_results

Shown = tuple[Person, int, F32]
"""A person, the index of its frame, and its surface (V, 3) in metres relative to its root, camera axes."""


def body_of(motion: Motion, options: Mapping[str, Any]) -> BodyModel:
    """The body model of the results' backend.

    Raises:
        ConfigurationError: its file is not here; names it.
    """
    return find_backend(motion.clip.header.backend).body(options)


def frames_of(motion: Motion) -> Iterator[list[tuple[Person, int]]]:
    """For every frame of the clip, in order, who is there and at which of its own indices."""
    at = [0] * len(motion.people)
    for frame in range(len(motion.clip.times)):
        present = []
        for number, person in enumerate(motion.people):
            if at[number] < len(person.frames) and person.frames[at[number]] == frame:
                present.append((person, at[number]))
                at[number] += 1
        yield present


def posed(motion: Motion, body: Callable[[], BodyModel]) -> Iterator[list[Shown]]:
    """For every frame of the clip everybody with a surface by ``body``, which is asked for when somebody is there."""
    for present in frames_of(motion):
        if not present:
            yield []
            continue
        pose = np.stack([person.pose[at] for person, at in present]).astype(np.float32)
        betas = np.stack([person.betas for person, _ in present]).astype(np.float32)
        surfaces = body().surface(pose, betas)[0]
        yield [(person, at, surface) for (person, at), surface in zip(present, surfaces, strict=True)]


def as_stored(motion: Motion, results: Path, body: Callable[[], BodyModel]) -> Iterator[list[Shown]]:
    """The same for people as they were found (`MotionOptions.raw`): the surfaces of the results, by ``body`` only
    where those hold none."""
    with read_results(results) as found:
        for present, record in zip(frames_of(motion), found, strict=True):
            shown = []
            for person, at in present:
                track = next(track for track in record.tracks if track.id == person.id)
                vertices = track.vertices
                if vertices is None:
                    vertices = body().surface(track.pose[None], track.betas[None])[0][0]
                shown.append((person, at, vertices))
            yield shown


def surfaces(motion: Motion, results: Path, options: Mapping[str, Any], *, raw: bool) -> Iterator[list[Shown]]:
    """For every frame of the clip everybody's surface: `as_stored` or `posed`."""
    bodies: list[BodyModel] = []

    def body() -> BodyModel:
        if not bodies:
            bodies.append(body_of(motion, options))
        return bodies[0]

    return as_stored(motion, results, body) if raw else posed(motion, body)
