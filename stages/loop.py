"""What every stage's main loop shares: control messages, the epoch, and sending under back-pressure.

A stage must never block in a socket: while its pipe is full it still has to hear of a new epoch or a stop.
So everything it has to send waits in an outbox, and one poll covers the control link and both pipes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from stages.pipes import Receiver, Sender
from supervisor.child import Link

Control = Callable[[str, dict[str, Any]], None]

IDLE_POLL = 1.0
"""Seconds an idle stage sleeps at most: sockets wake it, this only bounds what a missed wake-up costs."""

CORRUPT = b"\xc1 not a message"
"""What the fault injection ``corrupt`` sends instead of a message."""


class Reporter:
    """A backend's `stages.protocols.Report`: how far loading is, and afterwards that work goes on."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.loading = True

    def __call__(self, detail: str, fraction: float | None = None) -> None:
        if self.loading:
            self._link.phase("loading", detail, fraction)
        self._link.progress()


class StageLoop:
    """The sockets of one stage and its epoch.

    Args:
        link: the control link.
        receiver: the pipe in, or None (decode).
        sender: the pipe out, or None (track).
        on_control: gets every control message but ``epoch`` and ``stop``.
        on_epoch: called after the epoch has risen; messages of older epochs are gone by then.
    """

    def __init__(
        self,
        link: Link,
        receiver: Receiver | None,
        sender: Sender | None,
        on_control: Control,
        on_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        self.link = link
        self.epoch = 0
        self._receiver = receiver
        self._sender = sender
        self._on_control = on_control
        self._on_epoch = on_epoch
        self._outbox: deque[bytes] = deque()

    def run(self, turn: Callable[[], bool]) -> None:
        """Work until the owner says stop. ``turn`` does one piece of work, or returns False if there is none."""
        while not self.link.stopping:
            if not self.step(turn) and not self.link.stopping:
                self.wait()

    def step(self, turn: Callable[[], bool]) -> bool:
        """Hear the owner, send what waits, then work; False when there is nothing to do but to wait. Nothing is
        begun while the pipe out is full."""
        self.control()
        return self.flush() and turn()

    def control(self) -> None:
        """Handle every control message that has arrived, without waiting."""
        while (message := self.link.receive(0)) is not None:
            kind, payload = message
            if kind == "epoch":
                self.raise_epoch(int(payload["epoch"]))
            elif kind != "stop":
                self._on_control(kind, payload)

    def raise_epoch(self, epoch: int) -> None:
        """Adopt a newer epoch. A pipe may be faster than the control link, so messages raise it too."""
        if epoch <= self.epoch:
            return
        self.epoch = epoch
        self._outbox.clear()
        self._on_epoch()

    def send(self, data: bytes) -> None:
        self._outbox.append(data)

    def flush(self) -> bool:
        """Send what the pipe takes; True when nothing is left."""
        while self._outbox and self._sender is not None:
            if not self._sender.send(self._outbox[0]):
                return False
            self._outbox.popleft()
        return True

    def wait(self, timeout: float = IDLE_POLL) -> None:
        """Sleep until a control message, or input, or (while that is full) room in the pipe out."""
        poller = zmq.Poller()
        poller.register(self.link.socket, zmq.POLLIN)
        if self._outbox and self._sender is not None:
            poller.register(self._sender.socket, zmq.POLLOUT)
        elif self._receiver is not None:
            poller.register(self._receiver.socket, zmq.POLLIN)
        poller.poll(int(timeout * 1000))
