"""GPUs: the driver, torch's agreement with it, and room for what the stages will need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from daemon.doctor.api import health
from daemon.doctor.check import Context, Finding, error, note, ok, warning
from daemon.doctor.driver import Driver
from daemon.doctor.interpreters import environment, interpreter
from stages.owner.processes import replicas
from stages.settings import STAGES
from supervisor.memory import DeviceGate, DeviceMemory, describe_holders

MEGABYTE = 1 << 20
WSL_OVERSTATED = 2048
"""MB by which NVML under WSL may name more as free than can be had without spilling."""


def gpu_stages(context: Context) -> list[str]:
    """The stages whose device is a GPU."""
    stages = context.loaded.settings.stages
    return [name for name in STAGES if stages.stage(name).device.startswith("cuda")]


def driver(context: Context) -> Driver:
    """The machine's driver, asked once."""
    return context.once("driver", context.machine.driver)


def check_driver(context: Context, check: str) -> Iterator[Finding]:
    """The driver answers through NVML, and shows a GPU."""
    found, wanted = driver(context), gpu_stages(context)
    if found.problem:
        if not wanted:
            yield ok(check, f"no GPU driver ({found.problem}), and no stage wants one")
            return
        where = f"device = cuda for {', '.join(wanted)}"
        if context.machine.wsl:
            way = (
                "install the NVIDIA driver in Windows (none in WSL), run `wsl --update` and `wsl --shutdown` there, "
                "then check /usr/lib/wsl/lib/nvidia-smi"
            )
        else:
            way = "install the NVIDIA driver and check `nvidia-smi`"
        yield error(
            check, f"no GPU driver answers ({found.problem}), but {where}", f'{way}; or set device = "cpu"'
        )
        return
    devices = context.machine.devices.devices()
    names = ", ".join(f"{device.index}: {device.name} ({device.total // MEGABYTE} MB)" for device in devices)
    cuda = ".".join(map(str, found.cuda))
    if not devices:
        yield (error if wanted else note)(
            check,
            f"driver {found.version} is there but shows no GPU",
            "check `nvidia-smi`; a container needs --gpus",
        )
        return
    yield ok(check, f"driver {found.version}, up to CUDA {cuda}; {names}")
    if not wanted:
        yield note(
            check,
            "there is a GPU, but every stage has device = cpu",
            "for a backend with GPU models: poseward run --set stages.mesh.device=cuda …",
        )


def check_torch(context: Context, check: str) -> Iterator[Finding]:
    """Each GPU stage's torch is a CUDA build that this driver runs and that has code for this GPU."""
    wanted = gpu_stages(context)
    if not wanted:
        yield ok(check, "no stage runs on a GPU")
        return
    for stage in wanted:
        yield from _torch(context, check, stage)


def _torch(context: Context, check: str, stage: str) -> Iterator[Finding]:
    settings = context.loaded.settings.stages.stage(stage)
    found, torch = interpreter(context, stage), interpreter(context, stage).torch
    known = driver(context)
    if found.libcuda and not known.problem:
        where = "/usr/lib/wsl/lib" if context.machine.wsl else "the driver's libraries"
        yield error(
            check,
            f"{stage}: libcuda.so.1 is not found by {settings.python} ({found.libcuda})",
            f"`ldconfig -p | grep libcuda`; add {where} to the linker's path: stages.{stage}.env = "
            f'{{ LD_LIBRARY_PATH = "{where if context.machine.wsl else "FOLDER"}" }}',
        )
    if torch is None:
        if not found.problem and not found.failed:
            yield note(check, f"{stage}: device = {settings.device}, but {settings.python} has no torch")
        return
    label, cuda = f"{stage}: torch {torch['version']}", _version(torch["cuda"])
    install = f"{settings.python} -m pip install --force-reinstall torch torchvision --index-url "
    if cuda is None:
        yield error(
            check,
            f"{label} is built without CUDA, but device = {settings.device}",
            f'{install}{_index(known)}, or set stages.{stage}.device = "cpu"',
        )
        return
    if known.cuda != (0, 0) and cuda[0] > known.cuda[0]:
        yield error(
            check,
            f"{label} is built for CUDA {torch['cuda']}; driver {known.version} runs up to "
            f"{known.cuda[0]}.{known.cuda[1]}",
            f"update the driver, or {install}{_index(known)}",
        )
        return
    if not torch["available"]:
        yield error(
            check,
            f"{label} (CUDA {torch['cuda']}) sees no GPU{': ' + torch['warning'] if torch['warning'] else ''}",
            "check `nvidia-smi`, CUDA_VISIBLE_DEVICES and the access to /dev/nvidia*, or set "
            f'stages.{stage}.device = "cpu"',
        )
        return
    index = int(settings.device.partition(":")[2] or 0)
    if index >= torch["count"]:
        yield error(
            check,
            f"{stage}: device = {settings.device}, but torch sees {torch['count']} GPUs",
            f"set stages.{stage}.device to cuda:0 … cuda:{torch['count'] - 1}",
        )
        return
    gate = DeviceGate(context.machine.devices)
    device = gate.look(index, environment(context, settings))
    if device is not None and device.index < len(known.capabilities):
        capability = known.capabilities[device.index]
        if not _has_code(torch["architectures"], capability):
            yield error(
                check,
                f"{label} has no code for {device.name} (sm_{capability[0]}{capability[1]}); it has "
                f"{', '.join(torch['architectures'])}",
                f"{install}{_index(known)} (a newer torch for a newer GPU)",
            )
            return
    if known.cuda != (0, 0) and cuda > known.cuda:
        yield note(
            check,
            f"{label} is built for CUDA {torch['cuda']}, driver {known.version} names {known.cuda[0]}.{known.cuda[1]}: "
            "the same major version runs, what is compiled on the fly may not",
            "update the driver when convenient",
        )
        return
    yield ok(check, f"{label}, CUDA {torch['cuda']}, fits the driver and sees {torch['count']} GPU(s)")


def _version(text: Any) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", str(text or ""))
    return (int(found[1]), int(found[2])) if found else None


def _index(known: Driver) -> str:
    """Where torch's builds are."""
    newest = f"for CUDA {known.cuda[0]}.{known.cuda[1]} or older" if known.cuda != (0, 0) else "for the driver"
    return f"URL, with the URL {newest} from https://pytorch.org"


def _has_code(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """CUDA's rule: machine code (sm_XY) runs on the same major version from its minor version on; intermediate
    code (compute_XY) on everything newer."""
    if not architectures:
        return True
    for name in architectures:
        found = re.match(r"(sm|compute)_(\d+)(\d)[a-z]?$", name)
        if found is None:
            continue
        version = (int(found[2]), int(found[3]))
        if found[1] == "sm" and version[0] == capability[0] and version[1] <= capability[1]:
            return True
        if found[1] == "compute" and version <= capability:
            return True
    return False


def check_memory(context: Context, check: str) -> Iterator[Finding]:
    """Free memory of each GPU against what the stages on it will need, and who holds the rest."""
    stages = context.loaded.settings.stages
    wanted = gpu_stages(context)
    if not wanted:
        yield ok(check, "no stage runs on a GPU")
        return
    if problem := driver(context).problem:
        yield note(check, f"not known without a driver ({problem})")
        return
    needs: dict[int, dict[str, int]] = {}
    seen: dict[int, DeviceMemory] = {}
    gate = DeviceGate(context.machine.devices)
    for stage in wanted:
        settings = stages.stage(stage)
        index = int(settings.device.partition(":")[2] or 0)
        device = gate.look(index, environment(context, settings))
        if device is None:
            hidden = environment(context, settings).get("CUDA_VISIBLE_DEVICES")
            why = f" with CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else ""
            yield error(
                check,
                f"{stage}: NVML shows no GPU {settings.device}{why}",
                f'check `nvidia-smi`, set stages.{stage}.device, or "cpu"',
            )
            continue
        seen[device.index] = device
        needs.setdefault(device.index, {})[stage] = settings.device_need_mb * replicas(stages, stage)
        if not settings.device_need_mb:
            yield note(
                check,
                f"{stage}: it is not known how much GPU memory it needs, so nothing waits until that is free",
                f"set stages.{stage}.device_need_mb (what `poseward status` shows once it has run)",
            )
    for number, device in seen.items():
        yield _room(context, check, device, needs[number])


def _room(context: Context, check: str, device: DeviceMemory, needs: dict[str, int]) -> Finding:
    need, free, total = sum(needs.values()), device.free // MEGABYTE, device.total // MEGABYTE
    parts = " + ".join(f"{stage} {amount}" for stage, amount in needs.items() if amount)
    head = f"GPU {device.index} ({device.name}): {free} of {total} MB free"
    holders = "; ".join(describe_holders(device)) or "nobody that NVML names"
    if need > total:
        return error(
            check,
            f"{head}, the stages need {need} MB ({parts}): more than it has",
            "lower stages.*.device_need_mb with smaller models or half precision ([stages.options]), or put one "
            'stage on another GPU or device = "cpu"',
        )
    if need > free and device.holders and health(context).pids() & set(device.holders):
        return note(check, f"{head}, the running daemon's own stages hold it ({holders})")
    if need > free:
        return warning(
            check,
            f"{head}, the stages need {need} MB ({parts}) and will wait; held by: {holders}",
            "end those programs (a desktop, a browser, a notebook), or lower stages.*.device_need_mb",
        )
    if context.machine.wsl and need > free - WSL_OVERSTATED:
        return warning(
            check,
            f"{head}, the stages need {need} MB ({parts}); under WSL up to {WSL_OVERSTATED} MB of what is named free "
            "cannot be had, and what is too much spills to host memory: slow instead of failing",
            "close what uses the GPU in Windows, or let the models use less ([stages.options])",
        )
    return ok(check, f"{head}, the stages need {need} MB ({parts or 'not configured'}); held by: {holders}")
