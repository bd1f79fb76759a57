"""The largest batch that fits: additive increase, multiplicative decrease."""

from __future__ import annotations


class BatchController:
    """Finds the batch size that memory allows, between 1 and ``limit``.

    Additive increase, multiplicative decrease as in TCP's congestion control (Chiu and Jain 1989): out of
    memory halves the size; after ``patience`` successes in a row at a size, one more is tried.
    """

    def __init__(self, limit: int, patience: int = 32) -> None:
        if limit < 1:
            raise ValueError(f"a batch holds at least 1, not {limit}")
        self._limit = limit
        self._patience = patience
        self._successes = 0
        self.size = limit

    def succeeded(self) -> None:
        """A batch of the present size went through."""
        self._successes += 1
        if self._successes >= self._patience and self.size < self._limit:
            self.size += 1
            self._successes = 0

    def out_of_memory(self) -> bool:
        """A batch did not fit. True when the size is 1 already: only a new process can help."""
        self._successes = 0
        if self.size == 1:
            return True
        self.size //= 2
        return False
