"""Whom to blame: which frames kill a stage, and when to give one up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Key = tuple[str, int, int]
"""Stage, job, frame."""

ISOLATE_AFTER = 2
SKIP_AFTER = 3


@dataclass(frozen=True)
class Verdict:
    """What follows from a death: (job, frame) pairs to work on alone from now on, and to skip."""

    isolate: tuple[tuple[int, int], ...] = ()
    skip: tuple[tuple[int, int], ...] = ()


class PoisonLedger:
    """Counts deaths per stage and frame.

    Every frame of the batch that was in work is under suspicion. After the second death it is worked on
    alone; only a frame that kills a stage a third time, alone, is skipped. So the innocent neighbours in a
    poisonous frame's batch are cleared by succeeding alone.
    """

    def __init__(self) -> None:
        self._deaths: dict[Key, int] = {}

    def blame(self, stage: str, work: Sequence[tuple[int, int]]) -> Verdict:
        """Enter a death of ``stage`` while it worked on these (job, frame) pairs."""
        isolate: list[tuple[int, int]] = []
        skip: list[tuple[int, int]] = []
        for job, frame in work:
            key = (stage, job, frame)
            self._deaths[key] = deaths = self._deaths.get(key, 0) + 1
            if deaths >= SKIP_AFTER and len(work) == 1:
                skip.append((job, frame))
            elif deaths >= ISOLATE_AFTER:
                isolate.append((job, frame))
        return Verdict(tuple(isolate), tuple(skip))

    def committed(self, job: int, next_frame: int) -> None:
        """Frames before ``next_frame`` are safe: forget their deaths, so that the ledger stays small."""
        self._forget(lambda key: key[1] == job and key[2] < next_frame)

    def drop(self, job: int) -> None:
        self._forget(lambda key: key[1] == job)

    def _forget(self, gone: Callable[[Key], bool]) -> None:
        if self._deaths:
            self._deaths = {key: count for key, count in self._deaths.items() if not gone(key)}
