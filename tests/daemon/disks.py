"""Real file systems of their own size, for those who may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def disk_at(folder: Path, size: str) -> Iterator[None]:
    """An empty disk of ``size`` in memory, mounted at ``folder``; skips the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "poseward-test", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let tests mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=False, capture_output=True)
