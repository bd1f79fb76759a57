"""What is journaled of a frame, and jobs of which only that is wanted: segments, which are folded elsewhere.

A segment is frames ``first`` to ``stop - 1`` of an input, worked on alone. What is found in a frame depends on that
frame only, or, where the backend follows people, on those of its group before it: so a journal put together of segments
that begin at groups (`stages.protocols.Backend.group`) is that of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.records import Failure
from stages.results.journal import Journal
from stages.transport.wire import FrameMessage, encode_people, pack_value, unpack_value


def payload_of(message: FrameMessage) -> bytes:
    """What the journal keeps of a frame: everything that the fold needs."""
    failed = message.failed
    return pack_value(
        {
            "time": message.time,
            "people": None if message.people is None else encode_people(message.people),
            "failed": None if failed is None else [failed.stage, failed.reason],
            **({} if message.state is None else {"state": message.state}),
            **({"about": message.about} if message.about else {}),
        }
    )


@dataclass
class Tally:
    """What has been counted of a job so far; part of every snapshot."""

    people: int = 0
    ids: set[int] = field(default_factory=set)
    failures: dict[int, Failure] = field(default_factory=dict)
    damaged: list[list[Any]] = field(default_factory=list)
    """Runs of frames that were used though the file is damaged there: the first, the last, the reason."""

    def damage(self, frame: int, reason: str) -> None:
        """Frames come in order."""
        if self.damaged and self.damaged[-1][1:] == [frame - 1, reason]:
            self.damaged[-1][1] = frame
        else:
            self.damaged.append([frame, frame, reason])

    @property
    def latest_failure(self) -> str:
        """In words; empty where no frame has failed."""
        if not self.failures:
            return ""
        frame, failure = next(reversed(self.failures.items()))
        return f"frame {frame}: {failure.stage}: {failure.reason}"


class Segment:
    """A journal without a fold; the same face as `stages.process.fold.Fold`.

    Raises:
        JournalError: the folder cannot be used.
    """

    def __init__(self, folder: Path, first: int, *, follows: bool = False) -> None:
        self.journal = Journal.open(folder, first)
        self.state: bytes | None = b"" if follows else None
        self._tally = Tally()
        for frame, payload in self.journal.read(first):
            self._note(frame, payload)

    @property
    def next_frame(self) -> int:
        return self.journal.next_frame

    @property
    def failed(self) -> int:
        return len(self._tally.failures)

    @property
    def latest_failure(self) -> str:
        return self._tally.latest_failure

    def commit(self, message: FrameMessage) -> None:
        """Journal one frame."""
        payload = payload_of(message)
        self.journal.append(message.frame, payload)
        self._note(message.frame, payload)

    def finish(self) -> Tally:
        """Nothing is folded here: nobody is counted."""
        self.close()
        return self._tally

    def close(self) -> None:
        self.journal.close()

    def _note(self, frame: int, payload: bytes) -> None:
        value = unpack_value(payload)
        self.state = value.get("state", self.state)
        if (failed := value["failed"]) is not None:
            self._tally.failures[frame] = Failure(*failed)
