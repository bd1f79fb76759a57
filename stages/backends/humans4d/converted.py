"""Copies of checkpoints as a stage uses them: what it does not use left out, in its own precision, mapped into memory.

A checkpoint is read whole (detectron2's are pickles), gigabytes of it, and converted a tensor at a time at every start.
The copy that the first start leaves beside it is mapped: what is in the page cache is not read again, and no more of it
is in this process's memory than the tensor that is on its way to the device.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.backends.humans4d.options import Options

LAYOUT = 1
"""Raise it when older copies must not be used any more."""


def copy_of(source: Path, options: Options) -> Path:
    """Where the copy of a checkpoint belongs: beside it, one for each precision."""
    return source.with_name(f"{source.name}.poseward-{options.dtype}")


def state_of(source: Path, options: Options, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The weights by name: out of the copy, where the options want one and there is one of ``source`` as it is now;
    else what ``read`` returns."""
    if not options.converted:
        return read()
    torch = import_module("torch")
    path = copy_of(source, options)
    try:
        content = torch.load(os.fspath(path), map_location="cpu", mmap=True, weights_only=True)
        if content["of"] == _identity(source):
            state: dict[str, Any] = content["state"]
            return state
        why = "it is of another file"
    except FileNotFoundError:
        return read()
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
    print(f"{path} is not used ({why}): it is made anew", file=sys.stderr)
    with suppress(OSError):
        path.unlink()
    return read()


def keep(source: Path, options: Options, placed: Mapping[str, Any]) -> None:
    """Leave a copy of what was made of ``source``, where the options want one and there is none. It appears whole or
    not at all; where it cannot be written that is said, and nothing is lost but time at the next start."""
    if not options.converted or copy_of(source, options).exists():
        return
    torch = import_module("torch")
    path = copy_of(source, options)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # Each tensor by itself: one that is a view into a larger one would be written with all of that.
        state = {name: value.detach().cpu().clone() for name, value in placed.items()}
        torch.save({"of": _identity(source), "state": state}, os.fspath(part))
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch has errors of its own for a disk that is full
        print(f"{path} was not written ({error}): the next start converts again", file=sys.stderr)
        with suppress(OSError):
            part.unlink()


def _identity(source: Path) -> list[int]:
    """A copy is of a file with this size and time of change, and no other."""
    status = source.stat()
    return [LAYOUT, status.st_size, status.st_mtime_ns]
