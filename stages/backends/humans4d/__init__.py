"""The 4D-Humans backend: ViTDet or RegNetY (detectron2), HMR2 and PHALP's tracker, one process per stage.

Importing this package imports neither torch nor any of the models' packages: the factories do, in the
process that needs them, after `requirements.check` has named in seconds whatever is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.backends.humans4d import devices
from stages.backends.humans4d.requirements import PACKAGES
from stages.protocols import (
    Backend,
    BodyModel,
    ConfigurationError,
    Detector,
    FetchView,
    MeshRegressor,
    ModelFile,
    Problem,
    Report,
    Tracker,
)
from stages.records import Header

NAME = "humans4d"


@contextmanager
def _importing(stage: str) -> Iterator[None]:
    """A package that is there but cannot be imported, or lacks what is wanted of it, is nothing that another start
    mends: torch and torchvision of two releases (RuntimeError), a library that is missing (OSError), a folder that
    pip left behind (AttributeError: module 'torch' has no attribute …)."""
    try:
        yield
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        if devices.is_out_of_memory(error):
            raise devices.named_out_of_memory(error) from None
        text = str(error)
        known = isinstance(error, ImportError) or ".so" in text or "torchvision::" in text
        if not known and not text.startswith("module '"):
            raise
        raise ConfigurationError(
            f"backend humans4d, {stage}: a package in {sys.executable} is broken or of the wrong version "
            f"({type(error).__name__}: {text}); install it anew as docs/humans4d.md says; `poseward doctor` tells more"
        ) from error


def _detector(options: Mapping[str, Any], report: Report) -> Detector:
    from stages.backends.humans4d.options import Options
    from stages.backends.humans4d.requirements import check

    chosen = Options.from_mapping(options)
    check("detect", chosen)
    with _importing("detect"):
        from stages.backends.humans4d.detect import PersonDetector

        return PersonDetector.load(chosen, report)


def _mesh(options: Mapping[str, Any], report: Report) -> MeshRegressor:
    from stages.backends.humans4d.options import Options
    from stages.backends.humans4d.requirements import check

    chosen = Options.from_mapping(options)
    check("mesh", chosen)
    with _importing("mesh"):
        from stages.backends.humans4d.mesh import HmrRegressor

        return HmrRegressor.load(chosen, report)


def _load_tracking(options: Mapping[str, Any], report: Report) -> None:
    from stages.backends.humans4d.options import Options
    from stages.backends.humans4d.requirements import check

    chosen = Options.from_mapping(options)
    check("track", chosen)
    with _importing("track"):
        from stages.backends.humans4d.track import load_shared

        load_shared(chosen, report)


def _tracker(options: Mapping[str, Any], width: int, height: int, fps: float) -> Tracker:
    del width, height, fps
    from stages.backends.humans4d.options import Options
    from stages.backends.humans4d.requirements import check

    chosen = Options.from_mapping(options)
    check("track", chosen)
    with _importing("track"):
        from stages.backends.humans4d.track import PhalpTracker

        return PhalpTracker.load(chosen)


def _header(options: Mapping[str, Any], width: int, height: int, fps: float) -> Header:
    from stages.body.skeleton import JOINT_NAMES, JOINT_PARENTS

    return Header(width, height, fps, NAME, JOINT_NAMES, JOINT_PARENTS, _body(options).faces)


def _body(options: Mapping[str, Any]) -> BodyModel:
    from stages.backends.humans4d.options import Options
    from stages.body.model import load_body

    return load_body({"smpl_model": str(Options.from_mapping(options).smpl_model)})


def _tracks(results: Path, folder: Path) -> Path:
    from stages.backends.humans4d.pickle import write_tracks_pickle
    from stages.results import read_results

    with read_results(results) as found:
        write_tracks_pickle(folder / "tracks.pkl", found)
    return folder / "tracks.pkl"


def _problems(stage: str, options: Mapping[str, Any]) -> Sequence[Problem]:
    from stages.backends.humans4d.options import Options
    from stages.backends.humans4d.requirements import problems

    return problems(stage, Options.from_mapping(options)) if stage in PACKAGES else ()


def _files(options: Mapping[str, Any], *, thorough: bool) -> Sequence[ModelFile]:
    from stages.backends.humans4d.models import look
    from stages.backends.humans4d.options import Options

    return look(Options.from_mapping(options), thorough=thorough)


def _fetch(options: Mapping[str, Any], view: FetchView, source: str = "") -> None:
    from stages.backends.humans4d.models import fetch
    from stages.backends.humans4d.options import Options

    fetch(Options.from_mapping(options), view, source)


BACKEND = Backend(
    name=NAME,
    detector=_detector,
    mesh=_mesh,
    tracker=_tracker,
    header=_header,
    body=_body,
    # torch starts threads and may touch the driver when its companions are imported: nothing of it is
    # promised to survive a fork, so only the plain packages are imported beforehand.
    preload={"detect": ("numpy", "cv2"), "mesh": ("numpy", "cv2"), "track": ("numpy",)},
    load_tracking=_load_tracking,
    exports={"tracks": _tracks},
    packages=PACKAGES,
    problems=_problems,
    files=_files,
    fetch=_fetch,
)
