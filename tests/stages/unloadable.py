"""A backend whose weights are missing: the mesh stage's, or with the option ``lacks = "track"`` the tracker's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stages.protocols import ConfigurationError, MeshRegressor, Report
from tests.stages.blocks import BACKEND as BLOCKS


def _mesh(options: Mapping[str, Any], report: Report) -> MeshRegressor:
    if options.get("lacks") != "track":
        raise ConfigurationError("weights.bin is missing: get it by `poseward models fetch`")
    return BLOCKS.mesh(options, report)


def _load_tracking(options: Mapping[str, Any], report: Report) -> None:
    report("reading weights.bin", 0.0)
    raise ConfigurationError("weights.bin is missing: get it by `poseward models fetch`")


BACKEND = replace(BLOCKS, name="tests.stages.unloadable", mesh=_mesh, load_tracking=_load_tracking)
