"""The three protocols behind which a model family stands, and how a backend is found by its name.

A backend is a module with a module-level ``BACKEND`` of type `Backend`. Importing that module must be cheap
and must not import the models' packages: the factories do that, in the process that needs them. What else a family
knows of itself (what it needs, which files its models are, how they are fetched) is part of `Backend` too, so that
nothing outside a backend's folder has to name its models; all of that may be left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from stages.records import Detections, F32, Frame, FrameRecord, Header, People  # isort: skip


class Report(Protocol):
    """Told how far loading is: a short text and a fraction in [0, 1], or None where it is unknown.

    While a batch is worked on it may be called too, by what takes longer for one than ``deadlines.working`` on some
    machines: each call says that work goes on.
    """

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


class Follower(Protocol):
    """Regresses body meshes of people whom it follows from frame to frame.

    ``follow`` is a pure function: of the frames before it knows what stands in ``state`` alone, which is empty before
    the first frame of a job, or of a group (`Backend.group`), and afterwards what it returned for the frame before, as
    it was or as it came back from the journal. Frames come in order; those that have failed are left out.
    """

    def follow(self, frame: Frame, found: Detections, state: bytes) -> tuple[People, bytes]: ...


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


class FollowerFactory(Protocol):
    def __call__(self, options: Mapping[str, Any], report: Report) -> Follower: ...


class TrackerFactory(Protocol):
    """``start`` of a job: width and height in pixels, frames per second."""

    def __call__(self, options: Mapping[str, Any], width: int, height: int, fps: float) -> Tracker: ...


class LoadTracking(Protocol):
    """Loads what the trackers of all jobs share, once, when a track process starts. Trackers may call ``report`` from
    then on.

    Raises:
        ConfigurationError: something is missing.
    """

    def __call__(self, options: Mapping[str, Any], report: Report) -> None: ...


class HeaderFactory(Protocol):
    def __call__(self, options: Mapping[str, Any], width: int, height: int, fps: float) -> Header: ...


class BodyFactory(Protocol):
    def __call__(self, options: Mapping[str, Any]) -> BodyModel: ...


Topic = Literal["package", "file", "device", "option"]


@dataclass(frozen=True)
class Problem:
    """One thing that is lacking: ``what`` is so (one line), and what to type or set as the ``way`` out of it."""

    what: str
    way: str
    about: Topic = "package"
    """A package (missing, or the wrong one), a model file, the device, or an option of the backend."""

    def __str__(self) -> str:
        return f"{self.what}; {self.way}"


@dataclass(frozen=True)
class ModelFile:
    """One file of a family's models, as it is on this machine now."""

    path: Path
    found: str
    """Where nothing is wrong with it: a line with its path, its size and how far it was checked."""
    problem: Problem | None = None
    """What is wrong with it: missing, cut off, another one; None if nothing."""
    licence: str = ""
    fetchable: bool = True
    """Whether `FetchFiles` may get it; False for what only the user can supply."""


class FetchView(Protocol):
    """Watches a fetch: ``say`` is told what is done, a line at a time; ``progress``, often, the bytes of a file that
    are there and how many there will be (None: unknown)."""

    def say(self, text: str) -> None: ...

    def progress(self, name: str, done: int, total: int | None) -> None: ...


class FindProblems(Protocol):
    """Everything that a stage (detect, mesh or track) lacks of packages, files and devices, in seconds: called in the
    stage's interpreter, where its packages may be missing, before anything is loaded. ``options`` are the
    backend's, with ``device`` among them.

    Raises:
        ConfigurationError: the options themselves are wrong.
    """

    def __call__(self, stage: str, options: Mapping[str, Any]) -> Sequence[Problem]: ...


class FindFiles(Protocol):
    """The files that the models are with these options, those in need of fetching too. Only with ``thorough`` may it
    read gigabytes, for a checksum.

    Raises:
        ConfigurationError: the options themselves are wrong.
    """

    def __call__(self, options: Mapping[str, Any], *, thorough: bool) -> Sequence[ModelFile]: ...


class FetchFiles(Protocol):
    """Fetches every file that is missing and may be fetched, from its publisher, or from ``source``: what the user
    names instead, such as a mirror's address or a file; the backend says what it understands. May be called again
    after any interruption, and by several processes at once.

    Raises:
        ConfigurationError: something could not be fetched; says why and the way out.
    """

    def __call__(self, options: Mapping[str, Any], view: FetchView, source: str = "") -> None: ...


def _nothing_to_load(options: Mapping[str, Any], report: Report) -> None:  # (a `LoadTracking`)
    del options, report


def _no_problems(stage: str, options: Mapping[str, Any]) -> Sequence[Problem]:  # noqa: ARG001  (a `FindProblems`)
    return ()


def _no_files(options: Mapping[str, Any], *, thorough: bool) -> Sequence[ModelFile]:  # noqa: ARG001  (a `FindFiles`)
    return ()


@dataclass(frozen=True)
class Backend:
    """One model family: factories (which import and load), what a fork server may import beforehand, and what the
    family knows of its packages and files. Everything from ``follower`` on may be left out."""

    name: str
    detector: DetectorFactory
    mesh: MeshFactory
    tracker: TrackerFactory
    header: HeaderFactory
    body: BodyFactory
    preload: Mapping[str, tuple[str, ...]]
    """Per stage (detect, mesh, track): modules that are safe to import before a fork."""
    follower: FollowerFactory | None = None
    """Takes the place of ``mesh`` where people are followed from frame to frame."""
    group: int = 0
    """Frames after which a follower begins anew, with an empty state; 0 is never. Segments of a video that begin at
    multiples of it can be worked on by themselves."""
    load_tracking: LoadTracking = _nothing_to_load
    exports: Mapping[str, Callable[[Path, Path], Path]] = field(default_factory=dict)
    """Exports that only this family has: each takes a frames.msgpack and a folder, and returns what it wrote."""
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per stage: packages that the factories import, by their import names; their versions are shown."""
    problems: FindProblems = _no_problems
    files: FindFiles = _no_files
    fetch: FetchFiles | None = None
    """None where there is nothing to fetch, or where only the user can get the files."""


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
