"""A backend whose mesh weights are missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stages.protocols import ConfigurationError, MeshRegressor, Report
from tests.blocks import BACKEND as BLOCKS


def _mesh(options: Mapping[str, Any], report: Report) -> MeshRegressor:
    raise ConfigurationError("weights.bin is missing: get it by `poseward models fetch`")


BACKEND = replace(BLOCKS, name="tests.unloadable", mesh=_mesh)
