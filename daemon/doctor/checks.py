"""All checks, in the order of the report. A check's theme is its name up to the dot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daemon.doctor.api import check_addresses, check_daemon
from daemon.doctor.check import Check, Context, Finding, note, ok, warning
from daemon.doctor.cluster import check_cluster
from daemon.doctor.codecs import check_codecs
from daemon.doctor.devices import check_driver, check_torch
from daemon.doctor.devices import check_memory as check_device_memory
from daemon.doctor.interpreters import CHECK_SECONDS, check_interpreter, check_own
from daemon.doctor.models import HASH_SECONDS, check_models
from daemon.doctor.places import check_disk, check_drop, check_folders, check_runtime
from daemon.doctor.service import check_systemd
from daemon.doctor.system import check_clock, check_files, check_memory, check_proc, check_text
from daemon.doctor.wsl import check_wsl
from stages.settings import STAGES

THEMES = {
    "settings": "Settings",
    "stages": "Stages and their interpreters",
    "gpu": "GPU",
    "models": "Models",
    "video": "Video",
    "memory": "Memory",
    "places": "Folders",
    "service": "Service",
    "machine": "Machine",
}
"""The headings of the report."""


def check_settings(context: Context, check: str) -> Iterator[Finding]:
    """Which file is in force, and settings that are only for tests."""
    loaded = context.loaded
    yield ok(
        check,
        f"{loaded.file.absolute()} is in force" if loaded.file else "no configuration file: defaults are in force",
    )
    ignored = sorted(
        name for name in context.machine.environ if name.startswith("POSEWARD_") and name.endswith("_PYTHON")
        and "__" not in name
    )  # fmt: skip
    if ignored:
        yield note(
            check,
            f"{ignored[0]} is no setting",
            "levels are divided by two underscores: POSEWARD_STAGES__MESH__PYTHON",
        )
    if loaded.settings.stages.faults:
        yield warning(
            check,
            f"faults are injected on purpose: stages.faults = {list(loaded.settings.stages.faults)}",
            f"remove stages.faults ({loaded.origins.get('stages.faults', 'see `poseward config show`')})",
        )


CHECKS: Sequence[Check] = (
    Check("settings.file", check_settings),
    Check("settings.interpreter", check_own),
    *(Check(f"stages.{stage}", check_interpreter, CHECK_SECONDS) for stage in STAGES),
    Check("gpu.driver", check_driver, 20.0),
    Check("gpu.torch", check_torch, CHECK_SECONDS * 3),
    Check("gpu.memory", check_device_memory, 20.0),
    Check("models.files", check_models, HASH_SECONDS),
    Check("video.codecs", check_codecs, CHECK_SECONDS),
    Check("memory.host", check_memory),
    Check("places.folders", check_folders, 20.0),
    Check("places.disk", check_disk),
    Check("places.drop", check_drop, 20.0),
    Check("places.sockets", check_runtime),
    Check("service.daemon", check_daemon),
    Check("service.addresses", check_addresses, 20.0),
    Check("service.systemd", check_systemd),
    Check("service.cluster", check_cluster, 20.0),
    Check("machine.wsl", check_wsl),
    Check("machine.clock", check_clock),
    Check("machine.files", check_files),
    Check("machine.proc", check_proc),
    Check("machine.text", check_text),
)
