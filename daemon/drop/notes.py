"""What a person is told of a drop folder: each thing once, as long as it is so."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection

PROBLEMS = frozenset({"folder", "store", "blocked", "stuck", "defect"})
"""Kinds that somebody has to do something about; the others only explain."""


class Notes:
    """Says things once. ``problem`` may be asked for in any thread."""

    def __init__(self, notify: Callable[[str, str], None]) -> None:
        self._notify = notify
        self._said: dict[tuple[str, str], str] = {}
        self._texts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def say(self, kind: str, about: str, text: str) -> None:
        """Tell ``text`` of ``about``, unless it was told before of this or of another thing, and still holds."""
        with self._lock:
            if self._said.get((kind, about)) == text:
                return
            self._end((kind, about))
            self._said[kind, about] = text
            self._texts[text] += 1
            new = self._texts[text] == 1
        if new:
            self.once(kind, text)

    def once(self, kind: str, text: str) -> None:
        """Tell what has happened and is over. File names need not be Unicode; what is told must be."""
        self._notify(kind, text.encode("utf-8", "backslashreplace").decode())

    def over(self, kind: str, about: str) -> None:
        """It is no longer so."""
        with self._lock:
            self._end((kind, about))

    def keep(self, kind: str, abouts: Collection[str]) -> None:
        """Of this kind, only these still hold."""
        with self._lock:
            for key in [key for key in self._said if key[0] == kind and key[1] not in abouts]:
                self._end(key)

    def problem(self) -> str | None:
        """The latest problem that still holds."""
        with self._lock:
            return next((text for (kind, _), text in reversed(self._said.items()) if kind in PROBLEMS), None)

    def _end(self, key: tuple[str, str]) -> None:
        text = self._said.pop(key, None)
        if text is not None:
            self._texts[text] -= 1
            if not self._texts[text]:
                del self._texts[text]
