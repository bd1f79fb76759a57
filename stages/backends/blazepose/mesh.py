"""Body meshes of the people in frames: landmarks, then a fit of the body to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.backends.blazepose.landmarks import LandmarkNetwork
from stages.backends.blazepose.options import Options
from stages.body.fit import BodyFit
from stages.body.model import load_body
from stages.protocols import Report
from stages.records import Detections, Frame, People


class LandmarkMesh:
    """`stages.protocols.MeshRegressor`. Every person's result depends on that person's frame alone."""

    def __init__(self, landmarks: LandmarkNetwork, fit: BodyFit) -> None:
        self._landmarks = landmarks
        self._fit = fit

    @classmethod
    def load(cls, options: Mapping[str, Any], report: Report) -> LandmarkMesh:
        """Load the network from the model cache, and the body.

        Raises:
            ConfigurationError: an option is wrong, or a file is missing or damaged.
        """
        chosen = Options.from_mapping(options)
        network = LandmarkNetwork.load(chosen, report)
        report("body", None)
        return cls(network, BodyFit(load_body({"smpl_model": chosen.smpl_model})))

    def regress(self, frames: Sequence[Frame], detections: Sequence[Detections]) -> list[People]:
        """People of each frame, best first; detections in which the network sees nobody are left out.

        ``scores`` is the detection's score times the presence. ``extra`` holds, all float32, ``landmarks``
        (N, 33, 3) pixels, ``landmarks_world`` (N, 33, 3) metres, ``visibility`` (N, 33) and ``presence`` (N,),
        as in `stages.backends.blazepose.landmarks.Landmarks`.
        """
        return [self._frame(frame, found) for frame, found in zip(frames, detections, strict=True)]

    def _frame(self, frame: Frame, found: Detections) -> People:
        if not len(found):
            return _with_landmarks(People.empty())
        height, width = frame.image.shape[:2]
        seen = self._landmarks.find(frame.image, found.boxes, found.scores)
        if not len(seen):
            return _with_landmarks(People.empty())
        fits = [
            self._fit.fit(seen.image[i], seen.world[i], seen.visibility[i], width, height)
            for i in range(len(seen))
        ]
        return People(
            boxes=seen.boxes,
            scores=found.scores[seen.source] * seen.presence,
            camera=np.stack([fit.camera for fit in fits]),
            pose=np.stack([fit.pose for fit in fits]),
            betas=np.stack([fit.betas for fit in fits]),
            joints_3d=np.stack([fit.joints_3d for fit in fits]),
            joints_2d=np.stack([fit.joints_2d for fit in fits]),
            vertices=np.stack([fit.vertices for fit in fits]),
            extra={
                "landmarks": seen.image,
                "landmarks_world": seen.world,
                "visibility": seen.visibility,
                "presence": seen.presence,
            },
        )


def _with_landmarks(people: People) -> People:
    """Give ``people``, which are none, the same keys as any others."""
    people.extra = {
        "landmarks": np.zeros((0, 33, 3), np.float32),
        "landmarks_world": np.zeros((0, 33, 3), np.float32),
        "visibility": np.zeros((0, 33), np.float32),
        "presence": np.zeros(0, np.float32),
    }
    return people
