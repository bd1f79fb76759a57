"""From settings to the processes that the supervisor runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stages.process.faults import Fault, FaultSpecError
from stages.process.start import StageConfig
from stages.protocols import Backend, ConfigurationError
from stages.settings import STAGES, PipelineSettings
from stages.transport.ring import Ring
from supervisor.spec import MemoryLimits, ProcessSpec

ENTRIES = {
    "decode": "stages.process.decode:main",
    "detect": "stages.process.worker:main",
    "mesh": "stages.process.worker:main",
    "track": "stages.process.track:main",
}
PRELOAD = {
    "decode": ("stages.process.decode", "cv2", "av"),
    "detect": ("stages.process.worker",),
    "mesh": ("stages.process.worker",),
    "track": ("stages.process.track",),
}
MEGABYTE = 1 << 20
PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
"""OpenCV reads it when it is loaded. For image formats whose size `stages.source.headers` does not read, it is what
keeps a file of some hundred bytes from taking all memory."""
HOUSE = str(Path(__file__).resolve().parents[2])


def replicas(settings: PipelineSettings, stage: str) -> int:
    """Decode reads a file in order and track is a fold: of these there is always one."""
    return settings.stage(stage).replicas if stage in ("detect", "mesh") else 1


def process_names(settings: PipelineSettings, stage: str) -> list[str]:
    """``["mesh"]``, or ``["mesh.0", "mesh.1"]`` with two replicas."""
    count = replicas(settings, stage)
    return [stage] if count == 1 else [f"{stage}.{index}" for index in range(count)]


def stage_of(process: str) -> str:
    """The stage that a process name belongs to."""
    return process.split(".")[0]


def slot_bytes(settings: PipelineSettings) -> int:
    """Bytes of one ring slot: the largest frame that is worked on, or the ring's share if that is smaller."""
    return min(
        min(settings.working_pixels, settings.max_pixels) * 3, settings.ring_mb * MEGABYTE // settings.slots
    )


def code_roots(backend: str) -> tuple[str, ...]:
    """Where code lies whose change a restart would bring in: Poseward's packages, and the backend's own folder
    where that is another module. Not what happens to lie beside them, such as tests, jobs or environments."""
    roots = [os.path.join(HOUSE, package) for package in ("daemon", "stages", "supervisor")]
    module = sys.modules.get(backend)
    if module is not None and module.__file__ is not None and "." in backend:
        # find_backend has imported it. Its file alone if it stands in no package: beside it is anybody's.
        file = Path(module.__file__).absolute()
        roots.append(str(file.parent if module.__package__ else file))
    return tuple(roots)


def check_faults(settings: PipelineSettings) -> None:
    """Refuse what is no fault here, and not when each process has died of it.

    Raises:
        ConfigurationError: ``stages.faults`` holds one that cannot be understood.
    """
    for text in settings.faults:
        try:
            Fault.parse(text)
        except FaultSpecError as error:
            raise ConfigurationError(f"stages.faults: {error}") from error


def build_specs(settings: PipelineSettings, backend: Backend, ring: Ring, runtime: Path) -> list[ProcessSpec]:
    """One spec for each stage process, last stage first: every pipe's receiver binds before it is fed."""
    pipes = {
        stage: [str(runtime / f"{name}.pipe") for name in process_names(settings, stage)]
        for stage in STAGES
        if stage != "decode"
    }
    roots = code_roots(settings.backend)
    specs = []
    for number, stage in reversed(list(enumerate(STAGES))):
        own = settings.stage(stage)
        feeds = pipes[STAGES[number + 1]] if stage != STAGES[-1] else []
        for index, name in enumerate(process_names(settings, stage)):
            config = StageConfig(
                stage=stage,
                ring_fd=ring.fd,
                listens=pipes[stage][index] if stage in pipes else None,
                feeds=tuple(feeds),
                depth=settings.pipe_depth,
                backend=settings.backend,
                options={"device": own.device, **settings.options},
                batch=own.batch,
                vertices=settings.vertices,
                max_pixels=settings.max_pixels,
                working_pixels=ring.slot_bytes // 3,
                snapshot_every=settings.snapshot_every,
                threads=own.threads,
                faults=tuple(settings.faults),
                fault_state=str(runtime) if settings.faults else None,
            )
            specs.append(
                ProcessSpec(
                    name=name,
                    entry=ENTRIES[stage],
                    config=config.to_map(),
                    python=own.python,
                    preload=(*PRELOAD[stage], *backend.preload.get(stage, ())) if own.preload else (),
                    env={
                        # One library must not take the cores of all stages (numpy and OpenCV default to all).
                        "OPENBLAS_NUM_THREADS": str(own.threads),
                        "OMP_NUM_THREADS": str(own.threads),
                        **({PIXELS_VARIABLE: str(config.max_pixels)} if stage == "decode" else {}),
                        **own.env,
                    },
                    nice=own.nice,
                    fds=(ring.fd,),
                    code_roots=roots,
                    deadlines=settings.deadlines,
                    restart=settings.restart,
                    memory=MemoryLimits(
                        soft_rss=own.soft_memory_mb * MEGABYTE or None,
                        address_space=own.address_space_mb * MEGABYTE or None,
                        device=_device_index(own.device),
                        device_need=own.device_need_mb * MEGABYTE,
                    ),
                )
            )
    return specs


def _device_index(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    return int(device.partition(":")[2] or 0)
