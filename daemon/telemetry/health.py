"""What the pipeline's status looks like to clients: `health`, `top`, events and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from stages.owner.processes import stage_of
from stages.owner.telling import with_way_out
from stages.settings import STAGES, PipelineSettings
from supervisor.memory import DeviceMemory, Nvml
from supervisor.process import ChildState

TROUBLED = ("failed", "open circuit", "waiting for memory")
"""States that are problems."""
_nvml = Nvml()


def of_pipeline(status: Mapping[str, Any], settings: PipelineSettings, problems: Sequence[str]) -> dict[str, Any]:
    """The part of `health` that is about processes and memory, as docs/protocol.md says."""
    processes = {
        name: process_map(state, name in status["ready"], settings) for name, state in status["processes"].items()
    }
    found = list(problems)
    for name, process in processes.items():
        last = status["processes"][name].last_exit
        if process["state"] == "failed" and last is not None:
            again = f"`poseward reset {process['stage']}`"
            found.insert(0, f"{name}: failed: {with_way_out(name, last)}; when that is mended, {again}")
        elif process["state"] in TROUBLED:
            found.insert(0, f"{name}: {process['state']}: {process['detail']}")
        if process["stale"]:
            found.append(f"{name} runs code that differs from what is on disk: `poseward reload`")
    return {
        "ready": len(status["ready"]) == len(status["processes"]),
        "epoch": status["epoch"],
        "processes": processes,
        "memory": memory(),
        "problems": [*cluster_problems(status.get("cluster")), *found],
        "cluster": status.get("cluster"),
    }


def cluster_problems(cluster: Mapping[str, Any] | None) -> list[str]:
    """What is wrong with the other machines, if there are any."""
    if cluster is None:
        return []
    found = [
        f"cluster: {station['host']} is refused: {station['refusal']}"
        for station in cluster["stations"]
        if station["refusal"]
    ]
    if cluster["state"] in ("died", "circuit open", "failed"):
        found.insert(0, f"cluster {cluster['address']}: {cluster['state']}: {cluster['detail']}")
    return found


def process_map(state: ChildState, ready: bool, settings: PipelineSettings) -> dict[str, Any]:
    """One process, as docs/protocol.md says."""
    stage = stage_of(state.name)
    own = settings.stage(stage)
    last = state.last_exit
    return {
        "stage": stage,
        "state": _state(state, ready),
        "phase": state.phase,
        "detail": state.detail,
        "fraction": state.fraction,
        "pid": state.pid,
        "restarts": state.restarts,
        "last_exit": None
        if last is None
        else {
            "kind": last.kind.value,
            "reason": last.reason,
            "phase": last.phase,
            "stderr": list(last.stderr_tail),
        },
        "rss": state.rss,
        "peak_rss": state.peak_rss,
        "device": own.device if stage in ("detect", "mesh", "track") else None,
        "device_used": state.device_used,
        "device_free": state.device_free,
        "busy_seconds": round(state.busy_seconds, 3),
        "metrics": state.metrics,
        "fingerprint": state.fingerprint,
        "stale": state.stale,
        "python": own.python,
    }


def memory() -> dict[str, Any]:
    """Host and device memory in bytes."""
    host = psutil.virtual_memory()
    return {"total": host.total, "available": host.available, "device": [_device(d) for d in _nvml.devices()]}


def memory_event(status: Mapping[str, Any]) -> dict[str, Any]:
    """The ``memory`` event, as docs/protocol.md says."""
    found = memory()
    return {
        "host": {"total": found["total"], "available": found["available"]},
        "device": found["device"],
        "processes": {
            name: {"rss": state.rss, "device_used": state.device_used}
            for name, state in status["processes"].items()
        },
    }


def _device(device: DeviceMemory) -> dict[str, Any]:
    return {"index": device.index, "name": device.name, "total": device.total, "free": device.free}


def _state(state: ChildState, ready: bool) -> str:
    if ready:
        return "ready"
    if state.circuit_open and state.pid is None:
        return "open circuit"
    if state.pid is None and state.phase == "waiting":
        return "waiting for memory" if state.detail.startswith("GPU ") else "backoff"
    return "ready" if state.phase == "working" else state.phase


__all__ = ["STAGES", "memory", "memory_event", "of_pipeline", "process_map"]
