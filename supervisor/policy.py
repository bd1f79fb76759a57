"""When to start a dead process again: exponential backoff with jitter, and a circuit breaker.

Restart intensity as in Erlang's supervisors (at most so many deaths in so much time), the three states of a
circuit breaker as in Nygard, "Release It!": closed, open, half-open.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from supervisor.spec import RestartPolicy


@dataclass(frozen=True)
class Decision:
    """Start again after ``delay`` seconds; ``opened`` when this death has opened the circuit."""

    delay: float
    opened: bool


class RestartTracker:
    """One process's deaths, and what follows from each."""

    def __init__(self, policy: RestartPolicy, clock: Callable[[], float], rng: random.Random) -> None:
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._deaths: deque[float] = deque()
        self._streak = 0
        self._open_until: float | None = None

    @property
    def open(self) -> bool:
        """The circuit is open: the process waits for its cool-down."""
        return self._open_until is not None and self._clock() < self._open_until

    def died(self) -> Decision:
        """Enter a death. A death while half-open (the first after a cool-down) opens the circuit again."""
        now = self._clock()
        policy = self._policy
        half_open = self._open_until is not None
        while self._deaths and now - self._deaths[0] > policy.window:
            self._deaths.popleft()
        self._deaths.append(now)
        if half_open or len(self._deaths) > policy.max_restarts:
            self._deaths.clear()
            self._streak = 0
            self._open_until = now + policy.cooldown
            return Decision(policy.cooldown, True)
        delay = self._backoff()
        self._streak += 1
        return Decision(delay * self._rng.uniform(1 - policy.jitter, 1 + policy.jitter), False)

    def _backoff(self) -> float:
        try:
            return min(self._policy.max_delay, self._policy.base_delay * self._policy.factor**self._streak)
        except OverflowError:  # a process that has died every half minute for a night gets there
            return self._policy.max_delay

    def healthy(self) -> None:
        """The process became ready and worked for a while: backoff starts anew, the circuit closes."""
        self._streak = 0
        self._open_until = None

    def reset(self) -> None:
        """Forget everything, by order of a person or of a cause that was removed."""
        self.healthy()
        self._deaths.clear()
