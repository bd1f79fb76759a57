"""What every stage's main loop shares: control messages, the epoch, and sending under back-pressure.

A stage must never block in a socket: while its pipe is full it still has to hear of a new epoch or a stop.
So everything it has to send waits in an outbox, one for each lane, and one poll covers the control link and both
pipes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from stages.transport.pipes import Receiver, Sender
from stages.transport.wire import Message, pack
from supervisor.child import Link

Control = Callable[[str, dict[str, Any]], None]
Turn = Callable[[bool], bool]
"""Does one piece of work, or returns False if there is none; of urgent work only if the argument says so."""

IDLE_POLL = 1.0
"""Seconds an idle stage sleeps at most: sockets wake it, this only bounds what a missed wake-up costs."""

_STEPS = 20
"""In how many steps the loading of one file is told."""

CORRUPT = b"\xc1 not a message"
"""What the fault injection ``corrupt`` sends instead of a message."""


class Reporter:
    """A backend's `stages.protocols.Report`: how far loading is, and afterwards that work goes on."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._told: tuple[str, int] | None = None
        self.loading = True

    def __call__(self, detail: str, fraction: float | None = None) -> None:
        # A model has hundreds of weights, each of which is reported: a line for each is for nobody.
        now = (detail, -1 if fraction is None else int(fraction * _STEPS))
        if self.loading and now != self._told:
            self._told = now
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
        self._urgent: deque[bytes] = deque()
        self._outbox: deque[bytes] = deque()

    def run(self, turn: Turn) -> None:
        """Work until the owner says stop."""
        while not self.link.stopping:
            if not self.step(turn) and not self.link.stopping:
                self.wait()

    def step(self, turn: Turn) -> bool:
        """Hear the owner, send what waits, then work; False when there is nothing to do but to wait. Nothing is
        begun while the pipe out is full, and nothing but what is urgent while only the urgent lane has room."""
        self.control()
        self.flush()
        return not self._urgent and turn(bool(self._outbox))

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
        self._urgent.clear()
        self._outbox.clear()
        self._on_epoch()

    def send(self, data: bytes, urgent: bool = False) -> None:
        (self._urgent if urgent else self._outbox).append(data)

    def pass_on(self, message: Message) -> None:
        """Send a message in its lane."""
        self.send(pack(message), message.urgent)

    def flush(self) -> None:
        """Send what the pipe takes."""
        if self._sender is None:
            return
        for urgent, waiting in ((True, self._urgent), (False, self._outbox)):
            while waiting and self._sender.send(waiting[0], urgent):
                waiting.popleft()

    def wait(self, timeout: float = IDLE_POLL) -> None:
        """Sleep until a control message, or room in a lane out that is full, or input that could be worked on."""
        poller = zmq.Poller()
        poller.register(self.link.socket, zmq.POLLIN)
        for lane, waiting in enumerate((self._urgent, self._outbox)):
            if waiting and self._sender is not None:
                poller.register(self._sender.lanes[lane], zmq.POLLOUT)
            if self._receiver is not None and not self._urgent and not waiting:
                poller.register(self._receiver.lanes[lane], zmq.POLLIN)
        poller.poll(int(timeout * 1000))
