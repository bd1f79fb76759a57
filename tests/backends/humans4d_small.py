"""The 4D-Humans backend on the real packages, with networks small enough to run everywhere: for whole pipelines.

`python -m tests.backends.humans4d_small FOLDER` writes its weights and prints the options that name them, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.humans4d_few import Few
from stages.backends.humans4d import BACKEND as REAL
from stages.protocols import Report

MOST = 2
"""People of a frame that are kept: the random detector sees dozens."""


def _detector(options: Mapping[str, Any], report: Report) -> Few:
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    from stages.backends.humans4d import detect
    from stages.backends.humans4d.options import Options

    config = synthetic.small_detector(detect.vitdet_config(), "vitdet")
    weights = Path(options["vitdet_weights"])
    return Few(detect.PersonDetector.from_config(config, weights, Options.from_mapping(options), report), MOST)


def _mesh(options: Mapping[str, Any], report: Report) -> Any:
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    with synthetic.small_vit():
        return REAL.mesh(options, report)


def _tracker(options: Mapping[str, Any], width: int, height: int, fps: float) -> Any:
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    return REAL.tracker(options, width, height, fps)


def _load_tracking(options: Mapping[str, Any], report: Report) -> None:
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    REAL.load_tracking(options, report)


BACKEND = replace(
    REAL, name="tests.backends.humans4d_small", detector=_detector, mesh=_mesh, tracker=_tracker,
    load_tracking=_load_tracking, preload={},
)  # fmt: skip


def write(folder: Path) -> dict[str, Any]:
    """Write all files; returns the options."""
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    from stages.backends.humans4d import detect

    options = {**synthetic.write_files(folder), "crops": 2, "frames": 2}
    options["vitdet_weights"] = str(folder / "detector.pkl")
    config = synthetic.small_detector(detect.vitdet_config(), "vitdet")
    synthetic.write_detector(folder / "detector.pkl", config)
    return options


if __name__ == "__main__":
    print(json.dumps(write(Path(sys.argv[1])), default=str))
