"""People in frames, by a general person detector on the whole frame and, where that pays, on parts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from stages.backends.blazepose import models, nanodet
from stages.backends.blazepose.nanodet import Look
from stages.backends.blazepose.network import OnnxNetwork
from stages.backends.blazepose.options import Options
from stages.backends.blazepose.suppress import distinct_boxes
from stages.protocols import Report
from stages.records import F32, U8, Detections, Frame

SIDE = 416
"""Pixels of the longer side that the network gets: what it was trained with."""
EDGE = 0.02
"""A box that ends this near to a look's edge inside the frame, as a share of its longer side, is cut off there."""
SEARCH_EVERY = 10
"""Frames between two searches of a video. Who is there already is followed, and who is lost is searched for at once,
both in the mesh stage."""
CUT = 0.6
"""Trust in a box that is cut off by a look's edge."""

MOST_ALONG = 8
"""Squares side by side along the longer side of a very long or tall picture, not counting those between them: more
would take minutes."""


class PersonDetector:
    """`stages.protocols.Detector` on ONNX Runtime. Each frame's answer is a function of that frame alone."""

    def __init__(self, network: OnnxNetwork, options: Options) -> None:
        self._network = network
        self._options = options

    @classmethod
    def load(cls, options: Mapping[str, Any], report: Report) -> PersonDetector:
        """Load the network from the model cache.

        Raises:
            ConfigurationError: an option is wrong, or the model is missing or damaged.
        """
        chosen = Options.from_mapping(options)
        report("person detector", 0.0)
        cv2.setNumThreads(chosen.threads)
        detector = cls(OnnxNetwork(models.locate(models.PERSON, chosen.cache), chosen.threads), chosen)
        detector.find(np.zeros((SIDE, SIDE, 3), np.uint8))  # the first run prepares the kernels
        report("person detector", 1.0)
        return detector

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """People of each frame, best first."""
        return [self._searched(frame) for frame in frames]

    def _searched(self, frame: Frame) -> Detections:
        if frame.index % SEARCH_EVERY:
            none = np.zeros(0, np.float32)
            return Detections(none.reshape(0, 4), none, {"searched": False})
        return Detections(*self.find(frame.image, closer=not frame.index))

    def find(self, image: U8, *, closer: bool = False) -> tuple[F32, F32]:
        """The people in an image, whatever was in others.

        Args:
            image: (H, W, 3) uint8 BGR.
            closer: Look at parts of it too, as `Options.tiles` says: several times the work of the whole.

        Returns:
            Boxes (N, 4) float32 x0 y0 x1 y1 in pixels, and scores (N,) float32 in [0, 1], best first.
        """
        height, width = image.shape[:2]
        looks = [Look(0, 0, width, height, SIDE)]
        if self._options.tiles == "all" or (self._options.tiles == "auto" and closer):
            length = max(min(width, height) * 2 / 3, max(width, height) / MOST_ALONG)
            looks += overlapping(width, height, round(length), SIDE)
        found = [self._look(image, look) for look in looks]
        boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = distinct_boxes(boxes, scores, self._options.max_overlap)[: self._options.max_people]
        return boxes[kept], scores[kept]

    def _look(self, image: U8, look: Look) -> tuple[F32, F32]:
        """The people of one look, each once."""
        least = self._options.min_score
        boxes, scores = nanodet.people(self._network, image, look, least)
        low, high = boxes[:, :2], boxes[:, 2:]
        start = np.array([look.x, look.y])
        end = start + [look.width, look.height]
        near = EDGE * max(look.width, look.height)
        inside = np.array(image.shape[1::-1])
        cut = ((low < start + near) & (start > 0)) | ((high > end - near) & (end < inside))
        scores = np.where(cut.any(axis=1), scores * np.float32(CUT), scores)
        kept = distinct_boxes(boxes, scores, self._options.max_overlap)
        kept = kept[scores[kept] >= least]
        return boxes[kept], scores[kept]


def overlapping(width: int, height: int, length: int, side: int) -> list[Look]:
    """Squares of ``length`` pixels, each overlapping the next by half or a little more, that cover the frame."""
    return [
        Look(x, y, min(length, width), min(length, height), side)
        for y in _starts(height, length)
        for x in _starts(width, length)
    ]


def _starts(whole: int, length: int) -> list[int]:
    if length >= whole:
        return [0]
    count = int(np.ceil((whole - length) / (length / 2))) + 1
    return [round(index * (whole - length) / (count - 1)) for index in range(count)]
