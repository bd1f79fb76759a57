"""The BlazePose landmark network: from one person's square to 33 landmarks in the image and in metres."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stages.backends.blazepose import models
from stages.backends.blazepose.masks import mask_box
from stages.backends.blazepose.network import Network
from stages.backends.blazepose.options import Options
from stages.backends.blazepose.roi import Roi
from stages.backends.blazepose.suppress import overlaps
from stages.protocols import Report
from stages.records import F32, U8

INPUT = 256
"""Side of the network's input in pixels."""
NUMBER = 33
"""Landmarks of the body; the network has six auxiliary ones besides."""
CENTRE, CIRCLE = 33, 34
"""Auxiliary landmarks: the middle of the hips, and a point on the circle around the whole body, straight up from the
hips when the person is straight."""
HEATMAP = 64
OUTPUTS = ("Identity", "Identity_1", "Identity_3", "Identity_4")
"""Landmarks, presence, heatmaps, landmarks in metres."""
MASK = "Identity_2"
"""More than a quarter of the network is for the mask alone."""
WINDOW = 3
"""Half width of the window in which a heatmap refines its landmark."""
PEAK = 0.5
"""A heatmap without a peak this high refines nothing."""
VISIBLE = 0.5
"""Visibility from which a landmark counts for the person's box."""
HEAD = np.arange(11)
LIMBS = np.array([*range(11, 17), *range(23, 29)])
"""From shoulders to wrists and from hips to ankles."""
PASSES = 4
"""Most passes from one beginning."""
SETTLED = 0.06
"""Change of the square, as a share of its side, below which the next pass would see the same."""
SURE, UNSURE = 0.7, 0.5
"""Clarity from which no other beginning is tried, and below which turned ones are."""
LARGER = 1.6
"""Side of the second square on which a sighting is begun, in sides of the box."""
TURNS = ((-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
"""Cosine and sine: upside down, and on either side."""
TURN = 0.1
"""How much better what began on a turned square must be: most people are upright."""
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
    square that the person himself asks for, here or in the next frame; ``clarity`` in [0, 1]: how clearly the arms and
    legs stand out, the mean of their heatmaps' peaks.
    """

    image: F32
    world: F32
    visibility: F32
    presence: float
    mask: F32 | None
    roi: Roi
    next_roi: Roi
    clarity: float


class LandmarkNetwork:
    """Runs the network on squares of frames."""

    def __init__(self, network: Network, *, masks: bool) -> None:
        self._network = network
        self._outputs = (*OUTPUTS, MASK) if masks else OUTPUTS

    @classmethod
    def load(cls, name: str, options: Options, report: Report, *, masks: bool = False) -> LandmarkNetwork:
        """Load the network ``name`` of `models.LANDMARKS` from the model cache, with ``masks`` if they are wanted.

        Raises:
            ConfigurationError: the model is missing or damaged.
        """
        report("pose landmarks", 0.0)
        cv2.setNumThreads(options.threads)
        path = models.locate(models.LANDMARKS[name], options.cache)
        loaded = cls(Network(path, options.threads, (*OUTPUTS, MASK) if masks else OUTPUTS), masks=masks)
        upright = Roi(INPUT / 2, INPUT / 2, INPUT, 1.0, 0.0)
        loaded.look(np.zeros((INPUT, INPUT, 3), np.uint8), upright)  # the first run prepares the kernels
        report("pose landmarks", 1.0)
        return loaded

    def sighting(self, image: U8, box: F32, *, thorough: bool) -> Sighting:
        """The person in a detection's box (4,) x0 y0 x1 y1 in pixels.

        A pass on the upright square around it says how the person lies in it, and a second one, on the square that the
        first asks for, is the answer: that is enough where more frames follow. ``thorough`` is for pictures that stand
        alone. Begun on the upright square around the box, each pass says how the person lies in it, and the next looks
        there, until they agree. Where what comes out is not sure, the same is begun on a larger square too, since of
        somebody cut by the frame or hidden from the hips down the box has only a part; and then on its sides and upside
        down, for somebody in the air. The clearest wins that has its mask where the box is.
        """
        if not thorough:
            return self.look(image, self.look(image, Roi.of_box(box)).next_roi)
        best = self._settled(image, Roi.of_box(box))
        if best.clarity < SURE:
            larger = self._settled(image, Roi.of_box(box, LARGER))
            best = max(best, larger, key=lambda seen: _fitness(seen, box))
        if best.clarity < UNSURE:
            upright = Roi.of_box(box)
            turned = [self.look(image, upright._replace(cos=cos, sin=sin)) for cos, sin in TURNS]
            other = max(turned, key=lambda seen: _fitness(seen, box))
            if _fitness(other, box) > _fitness(best, box):
                other = self._settled(image, other.next_roi)
                if _fitness(other, box) > _fitness(best, box) + TURN:
                    best = other
        return best

    def _settled(self, image: U8, roi: Roi) -> Sighting:
        """Where passes begun on ``roi`` lead to."""
        seen = self.look(image, roi)
        for _ in range(PASSES - 1):
            if seen.roi.near(seen.next_roi, SETTLED):
                break
            seen = self.look(image, seen.next_roi)
        return seen

    def look(self, image: U8, roi: Roi) -> Sighting:
        """One pass of the network on a square of an image (H, W, 3) uint8 BGR."""
        raw, presence, heatmaps, world, *masks = self._network.run(roi.crop(image, INPUT), *self._outputs)
        points = raw.reshape(-1, 5)
        placed = roi.to_image(refine((points[:, :2] / INPUT).astype(np.float32), heatmaps[0]))
        depth = points[:NUMBER, 2:3] * np.float32(roi.side / INPUT)
        return Sighting(
            image=np.concatenate([placed[:NUMBER], depth], axis=1).astype(np.float32),
            world=roi.turn_world(world.reshape(-1, 3)[:NUMBER]),
            visibility=_sigmoid(points[:NUMBER, 3]),
            presence=float(presence.reshape(-1)[0]),
            mask=_sigmoid(masks[0].reshape(INPUT, INPUT)) if masks else None,
            roi=roi,
            next_roi=Roi.around(placed[CENTRE], placed[CIRCLE]),
            clarity=float(_sigmoid(heatmaps[0].reshape(-1, points.shape[0])[:, LIMBS].max(axis=0)).mean()),
        )


def _fitness(seen: Sighting, box: F32) -> float:
    """How well a sighting is of the person in a box: whether it is clear, and whether its mask fills the box."""
    around = mask_box(seen.mask, seen.roi)
    return seen.clarity + (0.0 if around is None else 0.5 * float(overlaps(box, around[None])[0]))


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
    cells = np.floor(points * size).astype(np.int64)
    near = cells[:, :, None] + np.arange(-WINDOW, WINDOW + 1)  # (K, 2, 7): columns, rows
    there = (near >= 0) & (near < size)
    columns, rows = np.clip(near, 0, size - 1).transpose(1, 0, 2)
    weights = _sigmoid(heatmaps[rows[:, :, None], columns[:, None, :], np.arange(len(points))[:, None, None]])
    weights *= there[:, 1, :, None] & there[:, 0, None, :]
    clear = (weights.max(axis=(1, 2)) >= PEAK) & ((cells >= 0) & (cells < size)).all(axis=1)
    total = np.maximum(weights.sum(axis=(1, 2)), 1e-6)
    centres = [(weights.sum(axis=axis) * near[:, place]).sum(axis=1) / total for place, axis in ((0, 1), (1, 2))]
    refined: F32 = np.where(clear[:, None], np.stack(centres, axis=1) / size, points).astype(np.float32)
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
