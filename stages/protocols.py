"""The three protocols behind which a model family stands, and how a backend is found by its name.

A backend is a module with a module-level ``BACKEND`` of type `Backend`. Importing that module must be cheap
and must not import the models' packages: the factories do that, in the process that needs them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stages.records import Detections, F32, Frame, FrameRecord, Header, People  # isort: skip


class Report(Protocol):
    """Told how far loading is: a short text and a fraction in [0, 1], or None where it is unknown."""

    def __call__(self, detail: str, fraction: float | None = None) -> None: ...


class ConfigurationError(Exception):
    """Something only the user can mend (missing package, missing weights, wrong version); says the way out.

    A stage that raises it is reported as what it is, not restarted in a loop.
    """


class Detector(Protocol):
    """Finds people. ``detect`` takes a batch of frames and returns one `Detections` for each, in order."""

    def detect(self, frames: Sequence[Frame]) -> list[Detections]: ...


class MeshRegressor(Protocol):
    """Regresses body meshes. Batches over frames and people are its own affair: one `People` a frame.

    The result for a frame must not depend on which other frames share the batch.
    """

    def regress(self, frames: Sequence[Frame], detections: Sequence[Detections]) -> list[People]: ...


class Tracker(Protocol):
    """A deterministic fold over frames, in order. Its whole state can be saved and restored.

    ``update`` and ``finish`` return the records that have become final, in frame order, each frame exactly
    once over the tracker's life; they may lag behind the input. ``restore(snapshot())`` in a new process
    continues identically. A failed frame is passed with ``people`` empty and its record's ``failed`` is
    filled in by the caller.
    """

    def update(self, frame: int, time: float, people: People) -> list[FrameRecord]: ...

    def finish(self) -> list[FrameRecord]: ...

    def snapshot(self) -> bytes: ...

    def restore(self, data: bytes) -> None: ...


class BodyModel(Protocol):
    """Poses a body surface: (N, 24, 3, 3) and (N, 10) to vertices (N, V, 3) and joints (N, 24, 3), in
    metres relative to the root joint, in the camera's axes (x right, y down, z away)."""

    @property
    def faces(self) -> Any: ...

    def surface(self, pose: F32, betas: F32) -> tuple[F32, F32]: ...


class DetectorFactory(Protocol):
    def __call__(self, options: Mapping[str, Any], report: Report) -> Detector: ...


class MeshFactory(Protocol):
    def __call__(self, options: Mapping[str, Any], report: Report) -> MeshRegressor: ...


class TrackerFactory(Protocol):
    """``start`` of a job: width and height in pixels, frames per second."""

    def __call__(self, options: Mapping[str, Any], width: int, height: int, fps: float) -> Tracker: ...


class HeaderFactory(Protocol):
    def __call__(self, options: Mapping[str, Any], width: int, height: int, fps: float) -> Header: ...


class BodyFactory(Protocol):
    def __call__(self, options: Mapping[str, Any]) -> BodyModel: ...


@dataclass(frozen=True)
class Backend:
    """One model family: factories (which import and load), and what a fork server may import beforehand."""

    name: str
    detector: DetectorFactory
    mesh: MeshFactory
    tracker: TrackerFactory
    header: HeaderFactory
    body: BodyFactory
    preload: Mapping[str, tuple[str, ...]]
    """Per stage (detect, mesh, track): modules that are safe to import before a fork."""
    exports: Mapping[str, Callable[[Path, Path], Path]] = field(default_factory=dict)
    """Exports that only this family has: each takes a frames.msgpack and a folder, and returns what it wrote."""


def find_backend(name: str) -> Backend:
    """The backend of a name: ``"blazepose"``, ``"humans4d"``, or the dotted path of any other module with a
    ``BACKEND``.

    Raises:
        ConfigurationError: there is no such backend.
    """
    module = name if "." in name else f"stages.backends.{name}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"backend {name!r}: no module {error.name!r}; backends that come along: blazepose, humans4d"
        ) from error
    backend = getattr(found, "BACKEND", None)
    if not isinstance(backend, Backend):
        raise ConfigurationError(f"backend {name!r}: {module} has no BACKEND")
    return backend
