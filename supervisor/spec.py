"""What to run and how to judge it: the supervisor's plain settings.

These are frozen dataclasses without behaviour, so that a configuration layer above can build and validate
them, and so that a child process can import them without importing anything heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Deadlines:
    """Longest time in seconds without progress, per phase. There is no limit on total time.

    ``working`` runs only while the child is inside ``Link.working``: an idle child is never late.
    """

    importing: float = 120.0
    loading: float = 600.0
    warming: float = 300.0
    working: float = 60.0
    heartbeat: float = 15.0
    """Longest silence of the heartbeat thread before the child counts as not alive."""
    grace: float = 5.0
    """Time between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential backoff with jitter, and a circuit breaker on restart intensity."""

    base_delay: float = 0.1
    factor: float = 2.0
    max_delay: float = 30.0
    jitter: float = 0.2
    """Each delay is multiplied by a random factor in [1 - jitter, 1 + jitter]."""
    max_restarts: int = 8
    window: float = 60.0
    """More than ``max_restarts`` deaths within ``window`` seconds open the circuit."""
    cooldown: float = 60.0
    """Seconds an open circuit waits before it is tried again (half-open)."""


@dataclass(frozen=True)
class MemoryLimits:
    """Bytes; None means unlimited. ``device_need`` is what must be free on the GPU before a start."""

    soft_rss: int | None = None
    """Resident memory above which the child is asked to leave between batches, and is restarted."""
    address_space: int | None = None
    """Hard RLIMIT_AS of the child."""
    device: int | None = None
    """GPU index, or None for a process that uses no GPU."""
    device_need: int = 0


@dataclass(frozen=True)
class ProcessSpec:
    """One worker process.

    ``entry`` is ``"package.module:function"``; it is called in the child as ``function(link, config)``
    with a ``supervisor.child.Link`` and the ``config`` below (JSON-able).
    """

    name: str
    entry: str
    config: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    preload: tuple[str, ...] = ()
    """Modules a fork server imports beforehand; empty means: start by exec, without a fork server."""
    env: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0
    fds: tuple[int, ...] = ()
    """Inherited file descriptors. They keep their numbers in the child."""
    code_roots: tuple[str, ...] = ()
    """Folders whose loaded .py files enter the child's code fingerprint."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    memory: MemoryLimits = field(default_factory=MemoryLimits)
