"""When a file is complete: its size and its time of change have stood still for a while."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """How a file was at one look; ``since`` is when it was first seen so, in seconds of the folder's clock."""

    size: int
    modified: int
    since: float


class Settling:
    """Which files stand still.

    Every file must be seen unchanged for the whole of ``settle`` seconds; an old time of change is no shortcut.
    Programs that copy set a file's size before its content and its time of change to that of the original, or to
    one long past, so both can look settled while the content is still coming.
    """

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._seen: dict[str, Seen] = {}

    def is_still(self, key: str, found: os.stat_result, now: float) -> bool:
        """Note one look at a file; whether it has stood still long enough."""
        seen = self._seen.get(key)
        if seen is None or (seen.size, seen.modified) != (found.st_size, found.st_mtime_ns):
            self._seen[key] = Seen(found.st_size, found.st_mtime_ns, now)
            return False
        return now - seen.since >= self._settle

    def take(self, key: str) -> Seen | None:
        """Forget a file and hand over what is known of it: it goes by another name now."""
        return self._seen.pop(key, None)

    def give(self, key: str, seen: Seen | None) -> None:
        """What `take` handed over."""
        if seen is not None:
            self._seen[key] = seen

    def names(self) -> Collection[str]:
        """The files that are known."""
        return self._seen.keys()

    def keep(self, keys: Collection[str]) -> None:
        """Forget the others: they are gone."""
        for key in [key for key in self._seen if key not in keys]:
            del self._seen[key]
