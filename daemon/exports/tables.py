"""``subject.csv`` and ``angles.json``: a person's measures frame by frame, for a spreadsheet and for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.exports.people_files import path_of, wanted
from daemon.exports.request import Request, appearing
from daemon.motion.measures import Measures, measure
from daemon.motion.people import Motion, Person

VERSION = 1


def export_csv(request: Request) -> list[Path]:
    """Write a file for each person that is wanted: a row for each frame that has it, units in the columns' names.

    Raises:
        ResultsError, SubjectError, NobodyError: see `daemon.exports.people_files.wanted`.
        ValueError: the skeleton lacks a joint that is measured.
        OSError: a file cannot be written.
    """
    motion, people = wanted(request)
    made = []
    for person in people:
        measures = measure(motion, person)
        path = path_of(request, person, "csv")
        with appearing(path) as (file,):
            text = io.TextIOWrapper(file, "utf-8", newline="")
            rows = csv.writer(text)
            names = motion.clip.header.joint_names
            rows.writerow(
                ["frame", "time_s", "filled"]
                + [f"{name}_deg" for name in measures.angles]
                + [f"{name}_deg_per_s" for name in measures.velocities]
                + [f"centre_of_mass_{axis}_m" for axis in "xyz"]
                + [f"{name}_speed_m_per_s" for name in measures.speeds]
                + [f"{name}_{axis}_m" for name in names for axis in "xyz"]
            )
            for index in range(len(person.frames)):
                numbers = [
                    *(values[index] for values in measures.angles.values()),
                    *(values[index] for values in measures.velocities.values()),
                    *measures.centre_of_mass[index],
                    *(values[index] for values in measures.speeds.values()),
                    *measures.placed.joints[index].ravel(),
                ]
                rows.writerow(
                    [int(person.frames[index]), f"{person.times[index]:.6f}", int(person.filled[index])]
                    + [f"{number:.4f}" for number in numbers]
                )
                request.progress(int(person.frames[index]) + 1)
            text.flush()
            text.detach()
        made.append(path)
    return made


def export_angles(request: Request) -> list[Path]:
    """Write ``angles.json``; docs/exports.md describes it. Raises as `export_csv`."""
    motion, people = wanted(request)
    header = motion.clip.header
    path = request.folder / "angles.json"
    head = {
        "poseward_angles": VERSION,
        "fps": list(header.rate),
        "variable": header.variable,
        "units": {"angles": "degree", "velocities": "degree/s", "centre_of_mass": "metre", "speeds": "metre/s"},
    }
    with appearing(path) as (file,):
        file.write(json.dumps(head)[:-1].encode() + b', "people": [')
        for number, person in enumerate(people):
            file.write(b",\n" if number else b"\n")
            about = {"id": person.id, "subject": person.id == motion.subject, "tracks": list(person.tracks)}
            file.write(json.dumps(about)[:-1].encode() + b', "frames": [')
            for index, line in enumerate(records(motion, person, measure(motion, person))):
                file.write((b",\n" if index else b"\n") + json.dumps(line, separators=(",", ":")).encode())
                request.progress(line["frame"] + 1)
            file.write(b"\n]}")
        file.write(b"\n]}\n")
    return [path]


def records(motion: Motion, person: Person, measures: Measures) -> Iterator[dict[str, Any]]:
    """One map a frame that has the person, as it stands in ``angles.json``."""
    del motion
    for index in range(len(person.frames)):
        yield {
            "frame": int(person.frames[index]),
            "time": round(float(person.times[index]), 6),
            "filled": bool(person.filled[index]),
            "angles": _rounded(measures.angles, index, 2),
            "velocities": _rounded(measures.velocities, index, 1),
            "centre_of_mass": [round(float(value), 4) for value in measures.centre_of_mass[index]],
            "speeds": _rounded(measures.speeds, index, 3),
        }


def _rounded(columns: Any, index: int, digits: int) -> dict[str, float]:
    return {name: round(float(values[index]), digits) for name, values in columns.items()}
