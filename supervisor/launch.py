"""The first code of a child: lets any interpreter import Poseward's packages, and nothing else of where they lie.

Run as a file, ``python …/supervisor/launch.py MODULE [ARGUMENT…]``, it does what ``python -m MODULE`` does. Where
Poseward is installed, its packages stand in a folder full of other people's. On the path of an interpreter of another
environment that folder would put its numpy, built for another Python perhaps, before the environment's own.

Standard library only.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

FILE = os.path.abspath(__file__)
HOUSE = os.path.dirname(os.path.dirname(FILE))
"""Folder that holds our packages: a stage's own interpreter need not have them installed."""
PACKAGES = ("daemon", "stages", "supervisor")


def command(python: str, module: str, *arguments: str) -> list[str]:
    """What to execute so that ``python`` runs ``module``, one of ours or another."""
    return [python, FILE, module, *arguments]


class House:
    """Finds our packages in their folder, before every other way of finding them."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`; what is inside the packages is found by their own paths."""
        return PathFinder.find_spec(name, [HOUSE], target) if path is None and name in PACKAGES else None


def _main() -> None:
    # Python puts a script's folder there, and the working directory for -m: from there come backends of the user's own.
    if sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(os.path.dirname(FILE)):
        sys.path[0] = os.getcwd()
    sys.meta_path.insert(0, House)
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
