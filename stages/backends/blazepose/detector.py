"""People in frames, by the BlazePose detector on the whole frame and on tiles of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from stages.backends.blazepose import models, tiles
from stages.backends.blazepose.anchors import COUNT, HIP, INPUT, decode
from stages.backends.blazepose.network import Network
from stages.backends.blazepose.options import Options
from stages.backends.blazepose.suppress import merge_detections, radii
from stages.backends.blazepose.tiles import Tile
from stages.protocols import Report

from stages.records import Detections, F32, Frame, U8  # isort: skip

SMALL = 40.0
"""Radius of the circle around a body, in input pixels, below which smaller tiles may show more people."""
FAINT = 0.15
"""Score from which a small person is worth a closer look."""


class PoseDetector:
    """`stages.protocols.Detector` on LiteRT. Each frame's answer is a function of that frame alone."""

    def __init__(self, network: Network, options: Options) -> None:
        self._network = network
        self._options = options

    @classmethod
    def load(cls, options: Mapping[str, Any], report: Report) -> PoseDetector:
        """Load the network from the model cache.

        Raises:
            ConfigurationError: an option is wrong, or the model is missing or damaged.
        """
        chosen = Options.from_mapping(options)
        report("pose detector", 0.0)
        cv2.setNumThreads(chosen.threads)
        detector = cls(Network(models.locate(models.DETECTION, chosen.cache), chosen.threads), chosen)
        detector.find(np.zeros((INPUT, INPUT, 3), np.uint8))  # the first run prepares the kernels
        report("pose detector", 1.0)
        return detector

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """People of each frame, best first.

        ``extra["roi"]`` is (N, 4, 2) float32: the keypoints of `anchors` in pixels of the frame. ``boxes`` are
        provisional, the squares around the circle around the body; the landmarks give better ones.
        """
        return [self._detections(*self.find(frame.image)) for frame in frames]

    def find(self, image: U8) -> tuple[F32, F32]:
        """Keypoints (N, 4, 2) in pixels and scores (N,), best first, of an image (H, W, 3) uint8 BGR."""
        height, width = image.shape[:2]
        mode = self._options.tiles
        short = min(width, height)
        faint = min(FAINT, self._options.min_score)
        levels = [[tiles.whole(width, height)]]
        if mode != "off":
            levels.append(tiles.half_overlapping(width, height, short))
        if mode in ("auto", "fine"):
            levels.append(tiles.half_overlapping(width, height, max(short // 2, 1)))
        found: list[tuple[F32, F32]] = []
        for number, level in enumerate(levels):
            if number and level == levels[number - 1]:
                continue  # a square frame is its own only tile
            points, scores = self._search(image, level, faint)
            found.append((points, scores))
            # The whole frame alone misses whoever stands beside somebody bigger: auto always looks at the short
            # edge's squares too, and closer only where somebody is small in them.
            if mode == "auto" and number and not self._somebody_small(points, level[0].side):
                break
        points = np.concatenate([f[0] for f in found])
        scores = np.concatenate([f[1] for f in found])
        sure = scores >= self._options.min_score
        points, scores = merge_detections(points[sure], scores[sure], self._options.min_distance)
        return points[: self._options.max_people], scores[: self._options.max_people]

    @staticmethod
    def _somebody_small(points: F32, side: float) -> bool:
        return bool((radii(points) * (INPUT / side) < SMALL).any())

    def _search(self, image: U8, level: Sequence[Tile], min_score: float) -> tuple[F32, F32]:
        """Detections of all tiles of one level in pixels of the image, duplicates within a tile merged."""
        all_points, all_scores = [np.zeros((0, 4, 2), np.float32)], [np.zeros(0, np.float32)]
        for tile in level:
            values, logits = self._network.run(tiles.letterbox(image, tile, INPUT), "Identity", "Identity_1")
            points, scores = decode(values.reshape(COUNT, 12), logits.reshape(COUNT), min_score)
            points, scores = merge_detections(points, scores, self._options.min_distance)
            scale = np.float32(tile.side / INPUT)
            all_points.append(points * scale + np.array([tile.x, tile.y], np.float32))
            all_scores.append(scores)
        return np.concatenate(all_points), np.concatenate(all_scores)

    @staticmethod
    def _detections(points: F32, scores: F32) -> Detections:
        centre, radius = points[:, HIP], radii(points)[:, None]
        boxes = np.concatenate([centre - radius, centre + radius], axis=1)
        return Detections(boxes.astype(np.float32), scores, {"roi": points})
