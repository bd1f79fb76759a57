"""File names that are not UTF-8, which Linux allows and libraries and messages do not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def spelled(path: Path) -> Iterator[str]:
    """A name in UTF-8 by which the file can be opened inside: OpenCV ends with a segmentation fault at others.

    Raises:
        OSError: it has none, and cannot be opened to be given one.
    """
    name = str(path.absolute())
    if legible(name) == name:
        yield name
        return
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{opened}"
    finally:
        os.close(opened)


def legible(text: str) -> str:
    """The text with what is not UTF-8 in it escaped, for messages, results and people."""
    return text.encode(errors="backslashreplace").decode()
