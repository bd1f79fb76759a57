"""Fault injection: makes a stage fail on purpose, at a frame or at random with a seed.

A fault is ``stage:kind@frame`` or ``stage:kind%probability/seed``, with ``xN`` (at most N times for a frame) or
``xalways`` behind it; without, it fires once for a frame (``slow`` always). Kinds:

=============  ===========================================================================
``raise``      an exception
``oom``        an ``OutOfMemoryError`` as torch raises it
``memory``     allocates until an address-space limit stops it (256 MB above what is used now)
``kill``       SIGKILL to itself
``segv``       a real segmentation fault
``hang``       sleeps for ever, the interpreter's lock released
``hang-gil``   sleeps for ever holding the lock, so that no other thread runs
``slow=S``     works S seconds longer
``corrupt``    sends bytes that are no message
=============  ===========================================================================

Off by default; switched on by the setting ``stages.faults``, and announced loudly when it is.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("raise", "oom", "memory", "kill", "segv", "hang", "hang-gil", "slow", "corrupt")
STAGES = ("decode", "detect", "mesh", "track")
_SPEC = re.compile(
    r"(?P<stage>[a-z]+):(?P<kind>[a-z-]+)(=(?P<value>[0-9.]+))?"
    r"(@(?P<frame>\d+)|%(?P<probability>[0-9.]+)/(?P<seed>\d+))(x(?P<times>\d+|always))?"
)
_FOR_EVER = 1_000_000
_MEMORY_ROOM = 256 << 20
_MEMORY_STEP = 16 << 20


class FaultSpecError(ValueError):
    """A fault that cannot be understood; says what one looks like."""


class InjectedError(RuntimeError):
    """The exception of the fault ``raise``."""


class OutOfMemoryError(RuntimeError):
    """Stands for torch's exception of the same name, by which it is recognised."""


@dataclass(frozen=True)
class Fault:
    """One parsed fault; ``times`` None means always."""

    text: str
    stage: str
    kind: str
    value: float
    frame: int | None
    probability: float
    seed: int
    times: int | None

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``mesh:kill@57x2`` and the like.

        Raises:
            FaultSpecError: it is no such thing.
        """
        match = _SPEC.fullmatch(text)
        if match is None or match["kind"] not in KINDS or match["stage"] not in STAGES:
            raise FaultSpecError(
                f"fault {text!r}: expected stage:kind@frame or stage:kind%probability/seed, such as "
                f"mesh:kill@57 or detect:raise%0.01/7x2; stages: {', '.join(STAGES)}; kinds: {', '.join(KINDS)}"
            )
        kind, value = match["kind"], match["value"]
        if (kind == "slow") != (value is not None):
            raise FaultSpecError(f"fault {text!r}: slow, and only slow, takes seconds: mesh:slow=0.5@57")
        probability = _number(text, match["probability"] or "0")
        if probability > 1:
            raise FaultSpecError(f"fault {text!r}: the probability is above 1; one such as mesh:kill%0.01/7")
        times = match["times"] or ("always" if kind == "slow" else "1")
        return cls(
            text, match["stage"], kind, _number(text, value or "0"),
            None if match["frame"] is None else int(match["frame"]), probability, int(match["seed"] or 0),
            None if times == "always" else int(times),
        )  # fmt: skip

    def hits(self, frame: int) -> bool:
        """Whether this fault is meant for this frame; a function of seed, stage and frame alone."""
        if self.frame is not None:
            return frame == self.frame
        digest = hashlib.sha256(f"{self.seed}/{self.stage}/{frame}".encode()).digest()
        return int.from_bytes(digest[:8], "little") < self.probability * 2**64


def _number(text: str, digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        raise FaultSpecError(f"fault {text!r}: {digits!r} is no number; such as mesh:slow=0.5@57") from None


class FaultPlan:
    """The faults of one stage. How often each has fired is kept in files, for the restarted process to know."""

    def __init__(self, faults: Sequence[Fault], state: Path | None) -> None:
        self._faults = faults
        self._state = state
        self._fired: dict[str, int] = {}

    @classmethod
    def parse(cls, specs: Sequence[str], stage: str, state: Path | None) -> FaultPlan:
        """The faults among ``specs`` that concern ``stage``.

        Raises:
            FaultSpecError: one of them, of whatever stage, cannot be understood.
        """
        faults = [Fault.parse(text) for text in specs]
        return cls([fault for fault in faults if fault.stage == stage], state)

    @property
    def announcement(self) -> str | None:
        """A loud line for the log, or None when no fault is on."""
        if not self._faults:
            return None
        return "FAULT INJECTION IS ON: " + ", ".join(fault.text for fault in self._faults)

    def before(self, frames: Sequence[int]) -> str | None:
        """To be called just before the stage works on these frames. Returns ``"corrupt"`` where the caller is to
        send rubbish; every other fault happens here."""
        answer = None
        for fault in self._faults:
            for frame in frames:
                if fault.hits(frame) and self._may_fire(fault, frame):
                    if fault.kind == "corrupt":
                        answer = "corrupt"
                    else:
                        _fire(fault, frame)
        return answer

    def _may_fire(self, fault: Fault, frame: int) -> bool:
        if fault.times is None:
            return True
        key = f"fault-{hashlib.sha256(fault.text.encode()).hexdigest()[:12]}-{frame}"
        if self._state is None:
            fired = self._fired.get(key, 0)
            self._fired[key] = fired + 1
        else:
            # One byte a shot, written before it: the shot may well end this process.
            self._state.mkdir(parents=True, exist_ok=True)
            with (self._state / key).open("ab") as file:
                fired = file.tell()
                file.write(b".")
        return fired < fault.times


def _fire(fault: Fault, frame: int) -> None:
    kind = fault.kind
    if kind == "raise":
        raise InjectedError(f"injected fault {fault.text} on frame {frame}")
    if kind == "oom":
        raise OutOfMemoryError(f"CUDA out of memory (injected fault {fault.text} on frame {frame})")
    if kind == "memory":
        _exhaust_memory()
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "segv":
        ctypes.string_at(0)
    elif kind == "hang":
        time.sleep(_FOR_EVER)
    elif kind == "hang-gil":
        while True:  # a signal ends the sleep early
            ctypes.PyDLL(None).sleep(_FOR_EVER)
    elif kind == "slow":
        time.sleep(fault.value)


def _exhaust_memory() -> None:
    """Allocate until the kernel says no, below a limit that leaves the machine unharmed."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (used + _MEMORY_ROOM, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    hoard = []
    try:
        while True:
            hoard.append(bytearray(_MEMORY_STEP))
    finally:
        hoard.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
