"""Which source files a process has loaded, and whether those on disk are still the same.

Standard library only: children and fork servers import this before anything else.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

INSTALLED = {"site-packages", "dist-packages"}
"""Folders below a code root that hold other people's packages: hashing those would take longer than a start."""

_inherited: dict[str, str] = {}
_seen: dict[str, tuple[float, str]] = {}


def fingerprint(roots: Iterable[str]) -> dict[str, str]:
    """The loaded source files below ``roots`` and their SHA-256: as a fork server has loaded them, where it
    did that, else as they are on disk at this moment."""
    folders = [Path(root) for root in roots]
    found = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if not path or not path.endswith(".py") or not any(_owns(folder, Path(path)) for folder in folders):
            continue
        try:
            found[path] = _inherited.get(path) or _digest(path)
        except OSError:
            continue  # deleted since: nothing to compare with
    return found


def inherit(loaded: Mapping[str, str]) -> None:
    """In a fork server, after its imports: children run this code, whatever is on disk by then."""
    _inherited.update(loaded)


def is_stale(loaded: Mapping[str, str]) -> bool:
    """Whether a source file on disk differs from what a process has loaded."""
    for path, digest in loaded.items():
        try:
            modified = os.stat(path).st_mtime
            if path not in _seen or _seen[path][0] != modified:
                _seen[path] = (modified, _digest(path))
        except OSError:
            return True
        if _seen[path][1] != digest:
            return True
    return False


def _owns(folder: Path, path: Path) -> bool:
    return path.is_relative_to(folder) and not INSTALLED.intersection(path.relative_to(folder).parts)


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
