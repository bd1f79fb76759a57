"""Host memory through psutil, device memory through NVML, and the gate before a GPU process starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil


@dataclass(frozen=True)
class DeviceMemory:
    """One GPU, in bytes. ``holders`` maps process numbers to what they hold, or is None where the driver does
    not tell (WSL has no per-process figures)."""

    index: int
    name: str
    total: int
    free: int
    holders: dict[int, int] | None
    uuid: str = ""


class DeviceProbe(Protocol):
    """Looks at the GPUs; an empty list where there is no driver."""

    def devices(self) -> Sequence[DeviceMemory]: ...


class Nvml:
    """NVML by nvidia-ml-py. A driver that is absent, or comes later, is no error."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """Why there are no figures, for a person."""
        self._ready = False

    def devices(self) -> Sequence[DeviceMemory]:
        try:
            import pynvml
        except ImportError as error:
            self.problem = str(error)
            return ()
        try:
            if not self._ready:
                pynvml.nvmlInit()
                self._ready = True
            found = [self._look(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self._ready = False
            self.problem = str(error)
            return ()
        self.problem = None
        return found

    @staticmethod
    def _look(nvml: Any, index: int) -> DeviceMemory:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name, uuid = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)
        holders: dict[int, int] | None = {}
        try:
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.usedGpuMemory is None:
                    holders = None
                    break
                assert holders is not None
                holders[process.pid] = int(process.usedGpuMemory)
        except nvml.NVMLError:
            holders = None
        return DeviceMemory(index, str(name), int(memory.total), int(memory.free), holders, str(uuid))


@dataclass(frozen=True)
class GateAnswer:
    """Whether there is room, how much is free (bytes), and who holds the rest, one line each."""

    open: bool
    free: int
    holders: tuple[str, ...]


class DeviceGate:
    """Asks, before a GPU process starts, whether the device has the memory that it will need."""

    def __init__(self, probe: DeviceProbe) -> None:
        self._probe = probe

    def ask(self, device: int, need: int, env: Mapping[str, str]) -> GateAnswer:
        """Is there room of ``need`` bytes on what a process with environment ``env`` calls GPU ``device``?

        Without figures (no driver, no such device) the gate is open: the process itself will say more.
        """
        found = self.look(device, env)
        if found is None:
            return GateAnswer(True, 0, ("unknown: no NVML figures for this device",))
        return GateAnswer(found.free >= need, found.free, describe_holders(found))

    def look(self, device: int, env: Mapping[str, str]) -> DeviceMemory | None:
        """The GPU that a process calls ``device``: NVML does not know of ``CUDA_VISIBLE_DEVICES``, which
        renumbers what CUDA shows (by numbers, or by the beginnings of UUIDs)."""
        devices = self._probe.devices()
        visible = env.get("CUDA_VISIBLE_DEVICES")
        wanted = str(device)
        if visible is not None:
            names = [name.strip() for name in visible.split(",")]
            if device >= len(names) or not names[device]:
                return None
            wanted = names[device]
        for found in devices:
            if wanted == str(found.index) or (not wanted.isdecimal() and found.uuid.startswith(wanted)):
                return found
        return None


def describe_holders(device: DeviceMemory) -> tuple[str, ...]:
    """Who has the memory, largest first, by process number and name."""
    if device.holders is None:
        return ("unknown: this driver gives no figures per process (as under WSL)",)
    lines = []
    for pid, held in sorted(device.holders.items(), key=lambda item: -item[1]):
        try:
            name = psutil.Process(pid).name()
        except psutil.Error:
            name = "?"
        lines.append(f"{name} ({pid}): {held >> 20} MB")
    return tuple(lines)


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and all below it; 0 when it is gone. Shared pages count in each."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total
