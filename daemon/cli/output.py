"""Standard output that cannot be written: its reader has gone, or its disk is full."""

from __future__ import annotations

import errno
import os
import sys

UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a write to a full or broken disk says."""


def drop_output() -> None:
    """Whatever is still to be printed goes nowhere: Python would try again at its end, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
