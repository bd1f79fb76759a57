"""The BlazePose landmark network: from one person's square to 33 landmarks in the image and in metres."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stages.backends.blazepose import models
from stages.backends.blazepose.network import Network
from stages.backends.blazepose.options import Options
from stages.backends.blazepose.roi import Roi
from stages.backends.blazepose.suppress import distinct_people
from stages.protocols import Report
from stages.records import F32, I64, U8

INPUT = 256
"""Side of the network's input in pixels."""
NUMBER = 33
"""Landmarks of the body; the network has six auxiliary ones besides."""
CENTRE, CIRCLE = 33, 34
"""Auxiliary landmarks: the middle of the hips, and a point on the circle around the whole body, straight up from the
hips when the person is straight."""
HEATMAP = 64
WINDOW = 3
"""Half width of the window in which a heatmap refines its landmark."""
PEAK = 0.5
"""A heatmap without a peak this high refines nothing."""
VISIBLE = 0.5
"""Visibility from which a landmark counts for the person's box."""
HEAD = np.arange(11)
HIPS, SHOULDERS = slice(23, 25), slice(11, 13)
MARGIN = 0.06
"""Widening of the box on each side, as a share of its longer side: landmarks lie inside the body."""


@dataclass
class Sighting:
    """What one pass of the network sees in one square.

    ``image`` (33, 3) float32: x, y in pixels of the frame, z in pixels too, relative to the hips, away from the
    camera; ``world`` (33, 3) float32 metres from the middle of the hips, x right, y down, z away from the camera;
    ``visibility`` (33,) float32 in [0, 1]; ``presence`` in [0, 1]: whether there is somebody; ``mask`` (256, 256)
    float32 in [0, 1]: how likely each pixel of the square is the person's; ``roi``: the square; ``next_roi``: the
    square that the person himself asks for, here or in the next frame.
    """

    image: F32
    world: F32
    visibility: F32
    presence: float
    mask: F32
    roi: Roi
    next_roi: Roi


@dataclass
class Landmarks:
    """The people of one frame, best first.

    ``image`` (N, 33, 3), ``world`` (N, 33, 3), ``visibility`` (N, 33) and ``presence`` (N,), all float32, as in
    `Sighting`; ``boxes`` (N, 4) float32 pixels; ``source`` (N,) int64: the detection each person came from.
    """

    image: F32
    world: F32
    visibility: F32
    presence: F32
    boxes: F32
    source: I64

    def __len__(self) -> int:
        return len(self.presence)


class LandmarkNetwork:
    """Runs the network on every detection of a frame, and keeps whom it believes in."""

    def __init__(self, network: Network, options: Options) -> None:
        self._network = network
        self._options = options

    @classmethod
    def load(cls, options: Options, report: Report) -> LandmarkNetwork:
        """Load the network from the model cache.

        Raises:
            ConfigurationError: the model is missing or damaged.
        """
        report("pose landmarks", 0.0)
        cv2.setNumThreads(options.threads)
        path = models.locate(models.LANDMARKS[options.landmarks], options.cache)
        loaded = cls(Network(path, options.threads), options)
        upright = Roi(INPUT / 2, INPUT / 2, INPUT, 1.0, 0.0)
        loaded.look(np.zeros((INPUT, INPUT, 3), np.uint8), upright)  # the first run prepares the kernels
        report("pose landmarks", 1.0)
        return loaded

    def find(self, image: U8, boxes: F32, scores: F32) -> Landmarks:
        """Landmarks of the people in a frame.

        Args:
            image: (H, W, 3) uint8 BGR.
            boxes: (M, 4) x0 y0 x1 y1 of the detections, in pixels.
            scores: (M,) scores of the detections.

        Returns:
            Those whose presence is at least ``min_presence``, each once.
        """
        people = [self.sighting(image, box) for box in boxes]
        source = np.array([i for i, p in enumerate(people) if p.presence >= self._options.min_presence], np.int64)
        shape = (len(source), NUMBER)
        places = np.array([people[i].image for i in source], np.float32).reshape(*shape, 3)
        world = np.array([people[i].world for i in source], np.float32).reshape(*shape, 3)
        visibility = np.array([people[i].visibility for i in source], np.float32).reshape(shape)
        presence = np.array([people[i].presence for i in source], np.float32)
        kept = distinct_people(places[..., :2], presence * scores[source], self._options.max_similarity)
        found = np.array([body_box(places[i], visibility[i]) for i in kept], np.float32).reshape(-1, 4)
        return Landmarks(places[kept], world[kept], visibility[kept], presence[kept], found, source[kept])

    def sighting(self, image: U8, box: F32) -> Sighting:
        """The person in a detection's box (4,): a pass on the upright square around it says how the person lies in
        it, and a second one, on the square that the first asks for, is the answer."""
        return self.look(image, self.look(image, Roi.of_box(box)).next_roi)

    def look(self, image: U8, roi: Roi) -> Sighting:
        """One pass of the network on a square of an image (H, W, 3) uint8 BGR."""
        raw, presence, mask, heatmaps, world = self._network.run(
            roi.crop(image, INPUT), "Identity", "Identity_1", "Identity_2", "Identity_3", "Identity_4"
        )
        points = raw.reshape(-1, 5)
        placed = roi.to_image(refine((points[:, :2] / INPUT).astype(np.float32), heatmaps[0]))
        depth = points[:NUMBER, 2:3] * np.float32(roi.side / INPUT)
        return Sighting(
            image=np.concatenate([placed[:NUMBER], depth], axis=1).astype(np.float32),
            world=roi.turn_world(world.reshape(-1, 3)[:NUMBER]),
            visibility=_sigmoid(points[:NUMBER, 3]),
            presence=float(presence.reshape(-1)[0]),
            mask=_sigmoid(mask.reshape(INPUT, INPUT)),
            roi=roi,
            next_roi=Roi.around(placed[CENTRE], placed[CIRCLE]),
        )


def refine(points: F32, heatmaps: F32) -> F32:
    """Move each landmark to the centre of mass of its heatmap nearby, where that has a clear peak.

    The method of MediaPipe's ``refine_landmarks_from_heatmap_calculator``.

    Args:
        points: (K, 2) in [0, 1] of the crop.
        heatmaps: (S, S, K) logits.

    Returns:
        (K, 2) float32 in [0, 1].
    """
    size = heatmaps.shape[0]
    refined = np.array(points, np.float32)
    cells = np.floor(points * size).astype(np.int64)
    for index, (column, row) in enumerate(cells):
        if not (0 <= column < size and 0 <= row < size):
            continue
        x0, x1 = max(column - WINDOW, 0), min(column + WINDOW + 1, size)
        y0, y1 = max(row - WINDOW, 0), min(row + WINDOW + 1, size)
        weights = _sigmoid(heatmaps[y0:y1, x0:x1, index])
        if weights.max() < PEAK:
            continue
        total = weights.sum()
        refined[index, 0] = (weights.sum(axis=0) * np.arange(x0, x1)).sum() / total / size
        refined[index, 1] = (weights.sum(axis=1) * np.arange(y0, y1)).sum() / total / size
    return refined


def body_box(points: F32, visibility: F32) -> F32:
    """The box (4,) x0 y0 x1 y1 in pixels around the visible landmarks of one person (all, if few are visible).

    The landmarks of the head end at the eyes: the crown is put as far beyond their middle as the shoulders lie
    on the other side of it, halved.
    """
    seen = visibility >= VISIBLE
    if seen.sum() < 4:
        seen = np.ones(NUMBER, bool)
    places = points[seen, :2]
    if seen[HEAD].any():
        head, neck = points[HEAD, :2].mean(axis=0), points[SHOULDERS, :2].mean(axis=0)
        places = np.vstack([places, head + (head - neck) / 2])
    low, high = places.min(axis=0), places.max(axis=0)
    margin = MARGIN * float((high - low).max())
    return np.concatenate([low - margin, high + margin]).astype(np.float32)


def _sigmoid(logits: F32) -> F32:
    found: F32 = (1 / (1 + np.exp(-np.clip(logits, -80, 80)))).astype(np.float32)
    return found
