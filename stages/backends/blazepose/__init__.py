"""The embedded backend: a person detector, BlazePose's landmarks and a body fitted to them. No GPU needed.

Importing this package imports none of that: the factories do, in the process that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.protocols import Backend, BodyModel, Detector, FetchView, ModelFile, Report, Tracker
from stages.records import Header

if TYPE_CHECKING:
    from stages.backends.blazepose.follower import LandmarkFollower

NAME = "blazepose"


def _detector(options: Mapping[str, Any], report: Report) -> Detector:
    from stages.backends.blazepose.detector import PersonDetector

    return PersonDetector.load(options, report)


def _mesh(options: Mapping[str, Any], report: Report) -> LandmarkFollower:
    from stages.backends.blazepose.follower import LandmarkFollower

    return LandmarkFollower.load(options, report)


def _tracker(options: Mapping[str, Any], width: int, height: int, fps: float) -> Tracker:
    from stages.backends.blazepose.tracker import make_tracker

    return make_tracker(options, width, height, fps)


def _header(options: Mapping[str, Any], width: int, height: int, fps: float) -> Header:
    from stages.body.fit import focal_length
    from stages.body.skeleton import JOINT_NAMES, JOINT_PARENTS

    return Header(
        width, height, fps, NAME, JOINT_NAMES, JOINT_PARENTS, _body(options).faces,
        focal=focal_length(width, height), principal=(width / 2, height / 2),
    )  # fmt: skip


def _body(options: Mapping[str, Any]) -> BodyModel:
    from stages.backends.blazepose.options import Options
    from stages.body.model import load_body

    return load_body({"smpl_model": Options.from_mapping(options).smpl_model})


def _files(options: Mapping[str, Any], *, thorough: bool) -> Sequence[ModelFile]:
    del thorough  # the files are small: their content is always checked
    from stages.backends.blazepose import models

    return [models.look(file, str(options.get("cache", ""))) for file in models.FILES]


def _fetch(options: Mapping[str, Any], view: FetchView, source: str = "") -> None:
    """``source`` is a folder or an address that has the files, or the packages that they are in."""
    from stages.backends.blazepose import models

    models.fetch(view, str(options.get("cache", "")), source, files=models.FILES)


BACKEND = Backend(
    name=NAME,
    detector=_detector,
    mesh=_mesh,
    follower=_mesh,
    group=300,
    tracker=_tracker,
    header=_header,
    body=_body,
    # LiteRT's import starts no thread (its interpreters, built after the fork, do), ONNX Runtime's does and stays out;
    # numpy's and OpenCV's linear algebra starts some only where OPENBLAS_NUM_THREADS allows more than one, and mends
    # them in a fork.
    preload={
        "detect": ("numpy", "cv2", "msgpack", "stages.backends.blazepose.detector"),
        "mesh": (
            "numpy",
            "cv2",
            "msgpack",
            "ai_edge_litert.interpreter",
            "ai_edge_litert.schema_py_generated",
            "flatbuffers",
            "stages.backends.blazepose.follower",
        ),
        "track": ("numpy", "msgpack", "scipy.optimize", "scipy.spatial", "stages.backends.blazepose.tracker"),
    },
    files=_files,
    fetch=_fetch,
)
