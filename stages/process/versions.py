"""Which releases of a model family's packages a stage runs: its interpreter may be another one than the owner's."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable

COMMON = ("numpy", "opencv-python", "opencv-python-headless")
"""What every stage computes with, by the names of distributions."""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of ``packages`` that are installed here, and of `COMMON`; with the commit where one was
    installed from a repository, whose version may say the same for years."""
    found = {}
    for name in (*COMMON, *packages):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a module whose distribution has another name, or a checkout on the path
        commit = _commit(distribution.read_text("direct_url.json"))
        found[name] = f"{distribution.version} ({commit[:12]})" if commit else distribution.version
    return found


def _commit(direct_url: str | None) -> str:
    """Of PEP 610's ``direct_url.json``, which pip writes; empty if there is none."""
    try:
        return str(json.loads(direct_url or "{}").get("vcs_info", {}).get("commit_id", ""))
    except (ValueError, AttributeError):
        return ""
