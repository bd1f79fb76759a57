"""Settings of the pipeline, as plain frozen dataclasses. The configuration layer builds and validates them.

Every field is one key of the configuration file; its comment is what ``poseward config show`` explains.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.spec import Deadlines, RestartPolicy

STAGES = ("decode", "detect", "mesh", "track")


@dataclass(frozen=True)
class StageSettings:
    """One stage: its interpreter, environment and limits."""

    python: str = sys.executable
    """Interpreter of this stage's processes."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables added for this stage."""
    nice: int = 0
    """Niceness, 0 to 19."""
    replicas: int = 1
    """Processes of this stage (decode and track always have one)."""
    threads: int = 1
    """Threads a backend may use for computing in each process."""
    batch: int = 4
    """Largest batch in frames; shrinks by itself on out-of-memory."""
    soft_memory_mb: int = 0
    """Resident memory in MB above which the process is recycled between batches; 0 is no limit."""
    address_space_mb: int = 0
    """Hard limit on the process's address space in MB; 0 is no limit."""
    device: str = "cpu"
    """Where the models run: cpu, cuda, cuda:1, …"""
    device_need_mb: int = 0
    """GPU memory in MB that must be free before this stage starts."""
    preload: bool = True
    """Start from a fork server that has the imports done, where the backend says that is safe."""


@dataclass(frozen=True)
class PipelineSettings:
    """The four stages and what is between them."""

    backend: str = "blazepose"
    """Model family: blazepose, humans4d, or the dotted path of a module with a BACKEND."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the backend, checked by the backend itself."""
    vertices: bool = True
    """Write every vertex of every mesh into frames.msgpack."""
    slots: int = 12
    """Frames in flight: slots of the shared-memory ring."""
    max_pixels: int = 1 << 28
    """Largest frame in pixels that is decoded at all: against files that are made to take all memory."""
    working_pixels: int = 3840 * 2160
    """Frames of more pixels are scaled down to this many for the networks; a slot holds this many at 3 bytes each, or
    fewer if ring_mb is smaller. Results are in the pixels of the input all the same."""
    ring_mb: int = 320
    """Upper limit of the shared-memory ring in MB; fewer slots are used for large frames."""
    stream: int = -1
    """Number of the video stream that is read, as the file counts its streams; -1 for the likeliest."""
    pipe_depth: int = 2
    """High-water mark of each pipe in messages."""
    snapshot_every: int = 100
    """Frames between two snapshots of the tracker."""
    max_failed_fraction: float = 1.0
    """A job with a larger share of failed frames fails; with 1, only one in which every frame has failed."""
    decode: StageSettings = field(default_factory=StageSettings)
    detect: StageSettings = field(default_factory=StageSettings)
    mesh: StageSettings = field(default_factory=lambda: StageSettings(threads=2))
    track: StageSettings = field(default_factory=StageSettings)
    deadlines: Deadlines = field(default_factory=Deadlines)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    faults: tuple[str, ...] = ()
    """Fault injection for tests, such as "mesh:kill@57"; see stages/process/faults.py."""

    def stage(self, name: str) -> StageSettings:
        """Settings of the stage ``name``, one of STAGES."""
        found: StageSettings = getattr(self, name)
        return found
