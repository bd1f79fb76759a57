"""Room on GPUs: whether there is enough for a process that wants to start, and what those that run hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from supervisor import events as ev
from supervisor.memory import DeviceGate
from supervisor.process import Managed

GATE_EVERY = 1.0
GATE_TELL_EVERY = 5.0
DEVICES_EVERY = 2.0
"""Seconds between looks at the memory of GPUs in use."""


class Room:
    """Keeps the figures of device memory in `Managed` and its lives up to date, and says what a start waits for."""

    def __init__(self, gate: DeviceGate, on_event: Callable[[ev.Event], None], clock: Callable[[], float]) -> None:
        self._gate = gate
        self._on_event = on_event
        self._clock = clock
        self._due = 0.0

    def is_there(self, managed: Managed) -> bool:
        """Whether the process may start now; if not, when to ask again stands in its ``due``."""
        memory = managed.spec.memory
        if memory.device is None or not memory.device_need:
            return True
        env = {**os.environ, **managed.spec.env}
        answer = self._gate.ask(memory.device, memory.device_need, env)
        managed.device_free = answer.free
        managed.lacks_memory = ""
        if answer.open:
            return True
        now = self._clock()
        managed.due = now + GATE_EVERY
        managed.lacks_memory = (
            f"GPU {memory.device}: {answer.free >> 20} MB free, {memory.device_need >> 20} MB needed"
        )
        if now - managed.gate_told >= GATE_TELL_EVERY:
            managed.gate_told = now
            self._on_event(ev.WaitingForMemory(managed.spec.name, memory.device_need, answer.free, answer.holders))
        return False

    def look(self, processes: Iterable[Managed]) -> None:
        """Look at the GPUs of the processes that run, now and then."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + DEVICES_EVERY
        for managed in processes:
            device, life = managed.spec.memory.device, managed.life
            if device is not None and life is not None:
                found = self._gate.look(device, {**os.environ, **managed.spec.env})
                managed.device_free = found.free if found else None
                life.device_used = (
                    found.holders.get(life.pid or 0) if found and found.holders is not None else None
                )
