"""``angles.png``: a person's main angles and speeds over time, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from daemon.exports.people_files import path_of, wanted
from daemon.exports.request import Request, appearing
from daemon.motion.clip import F64
from daemon.motion.measures import Measures, measure

PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("knee flexion", "deg", ("left_knee_flexion", "right_knee_flexion")),
    ("hip flexion", "deg", ("left_hip_flexion", "right_hip_flexion")),
    ("ankle dorsiflexion", "deg", ("left_ankle_dorsiflexion", "right_ankle_dorsiflexion")),
    ("shoulder elevation", "deg", ("left_shoulder_elevation", "right_shoulder_elevation")),
    ("elbow flexion", "deg", ("left_elbow_flexion", "right_elbow_flexion")),
    ("trunk inclination", "deg", ("trunk_inclination", "pelvis_tilt")),
    ("speed", "m/s", ("centre_of_mass",)),
)
"""Title, unit, and the angles or speeds of each panel: the left one blue, the right one red."""
COLOURS = ((200, 110, 40), (50, 60, 210))
WIDTH, PANEL, LEFT, TOP = 1200, 150, 90, 30


def export_plot(request: Request) -> list[Path]:
    """Write a picture for each person that is wanted; raises as `daemon.exports.tables.export_csv`."""
    motion, people = wanted(request)
    made = []
    for person in people:
        path = path_of(request, person, "png")
        path = path.with_name(path.name.replace("subject", "angles"))
        _, data = cv2.imencode(".png", draw(measure(motion, person)))
        with appearing(path) as (file,):
            file.write(data.tobytes())
        request.progress(len(motion.clip.times))
        made.append(path)
    return made


def draw(measures: Measures) -> Any:
    """The picture, (H, W, 3) uint8 BGR."""
    picture = np.full((len(PANELS) * PANEL + TOP, WIDTH, 3), 255, np.uint8)
    person = measures.placed.person
    span = float(person.times[0]), max(float(person.times[-1]), float(person.times[0]) + 1e-3)
    for number, (title, unit, names) in enumerate(PANELS):
        columns = [measures.angles.get(name, measures.speeds.get(name)) for name in names]
        values = [column for column in columns if column is not None]
        low, high = _limits(np.concatenate(values))
        top, bottom = number * PANEL + 28, (number + 1) * PANEL - 8
        _text(picture, f"{title} ({unit})", (LEFT, top - 8), 0.5)
        for level in np.linspace(low, high, 3):
            y = round(bottom - (level - low) / (high - low) * (bottom - top))
            cv2.line(picture, (LEFT, y), (WIDTH - 20, y), (225, 225, 225), 1)
            _text(picture, f"{level:.0f}" if high - low > 4 else f"{level:.1f}", (20, int(y) + 4), 0.4)
        for column, colour in zip(values, COLOURS, strict=False):
            for first, last in person.spans():
                part = slice(first, last + 1)
                x = LEFT + (person.times[part] - span[0]) / (span[1] - span[0]) * (WIDTH - 20 - LEFT)
                y = bottom - (column[part] - low) / (high - low) * (bottom - top)
                line = np.round(np.column_stack([x, y]) * 8).astype(np.int32)
                cv2.polylines(picture, [line], False, colour, 2, cv2.LINE_AA, 3)
    for at in np.linspace(*span, 6).tolist():
        x = round(LEFT + (at - span[0]) / (span[1] - span[0]) * (WIDTH - 20 - LEFT))
        _text(picture, f"{at:.2f} s", (int(x) - 20, len(PANELS) * PANEL + 14), 0.4)
    return picture


def _limits(values: F64) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    middle, half = (low + high) / 2, max((high - low) / 2, 0.5)
    return middle - half, middle + half


def _text(picture: Any, text: str, at: tuple[int, int], scale: float) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (60, 60, 60), 1, cv2.LINE_AA)
