"""Where people are followed, a frame is worked on when everything before it has been: never on a guess.

What a follower knows is a value (`stages.protocols.Follower`). It is journaled with each frame, and decode sends it
along with the first frame of a job that it emits in an epoch. From there on each frame hands it to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.transport.wire import FrameMessage

MOST_JOBS = 256
"""Jobs that are remembered in an epoch; frames of a cancelled one may come after it is forgotten."""


@dataclass
class Link:
    """How far one job has come in this epoch: ``next_frame`` may be received next, and ``state`` is what is known
    after the last frame that was worked on. ``waiting`` frames are those that came too early."""

    next_frame: int = -1
    state: bytes = b""
    waiting: dict[int, FrameMessage] = field(default_factory=dict)


class Chain:
    """The order of the frames of all jobs, and what is known before each. It begins anew with each epoch.

    Args:
        group: Frames after which nothing is known again, or 0: see `stages.protocols.Backend`.
    """

    def __init__(self, group: int = 0) -> None:
        self._group = group
        self._links: dict[int, Link] = {}

    def put(self, message: FrameMessage) -> list[FrameMessage]:
        """Take a frame in; returns the frames whose turn has come, in order. What has come before is dropped."""
        link = self._links.setdefault(message.job, Link())
        while len(self._links) > MOST_JOBS:
            del self._links[next(iter(self._links))]
        if message.state is not None and link.next_frame < 0:
            link.next_frame, link.state = message.frame, message.state
        if link.next_frame >= 0 and message.frame < link.next_frame:
            return []
        link.waiting[message.frame] = message
        ready = []
        while (follows := link.waiting.pop(link.next_frame, None)) is not None:
            link.next_frame += 1
            ready.append(follows)
        return ready

    def before(self, job: int, frame: int) -> bytes:
        """What is known before the frame whose turn it is."""
        begins = self._group > 0 and frame % self._group == 0
        return b"" if begins else self._links[job].state

    def after(self, job: int, state: bytes) -> None:
        """That frame is done; ``state`` is known now."""
        self._links[job].state = state

    def clear(self) -> None:
        self._links.clear()

    def drop(self, job: int) -> None:
        self._links.pop(job, None)
