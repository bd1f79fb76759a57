"""The embedded backend: BlazePose's two networks on LiteRT and a body fitted to their landmarks. No GPU needed.

Importing this package imports none of that: the factories do, in the process that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.protocols import Backend, BodyModel, Detector, FetchView, MeshRegressor, ModelFile, Report, Tracker
from stages.records import Header

NAME = "blazepose"


def _detector(options: Mapping[str, Any], report: Report) -> Detector:
    from stages.backends.blazepose.detector import PoseDetector

    return PoseDetector.load(options, report)


def _mesh(options: Mapping[str, Any], report: Report) -> MeshRegressor:
    from stages.backends.blazepose.mesh import LandmarkMesh

    return LandmarkMesh.load(options, report)


def _tracker(options: Mapping[str, Any], width: int, height: int, fps: float) -> Tracker:
    from stages.backends.blazepose.tracker import make_tracker

    return make_tracker(options, width, height, fps)


def _header(options: Mapping[str, Any], width: int, height: int, fps: float) -> Header:
    from stages.body.skeleton import JOINT_NAMES, JOINT_PARENTS

    return Header(width, height, fps, NAME, JOINT_NAMES, JOINT_PARENTS, _body(options).faces)


def _body(options: Mapping[str, Any]) -> BodyModel:
    from stages.backends.blazepose.options import Options
    from stages.body.model import load_body

    return load_body({"smpl_model": Options.from_mapping(options).smpl_model})


def _files(options: Mapping[str, Any], *, thorough: bool) -> Sequence[ModelFile]:
    del thorough  # the files are small: their content is always checked
    from stages.backends.blazepose import models

    return [models.look(file, str(options.get("cache", ""))) for file in models.FILES]


def _fetch(options: Mapping[str, Any], view: FetchView, source: str = "") -> None:
    """``source`` is the wheel that has the files, as a path."""
    from stages.backends.blazepose import models

    def report(detail: str, fraction: float | None = None) -> None:
        del fraction
        view.say(detail)

    wheel = Path(source).expanduser() if source else None
    models.fetch(report, str(options.get("cache", "")), wheel, files=models.FILES)


BACKEND = Backend(
    name=NAME,
    detector=_detector,
    mesh=_mesh,
    tracker=_tracker,
    header=_header,
    body=_body,
    # LiteRT's import starts no thread (its interpreters, built after the fork, do); numpy's and OpenCV's
    # linear algebra starts some only where OPENBLAS_NUM_THREADS allows more than one, and mends them in a fork.
    preload={
        "detect": ("numpy", "cv2", "msgpack", "ai_edge_litert.interpreter", "stages.backends.blazepose.detector"),
        "mesh": ("numpy", "cv2", "msgpack", "ai_edge_litert.interpreter", "stages.backends.blazepose.landmarks"),
        "track": ("numpy", "msgpack", "scipy.optimize", "stages.backends.blazepose.tracker"),
    },
    files=_files,
    fetch=_fetch,
)
