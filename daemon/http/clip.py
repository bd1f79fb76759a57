"""What the page shows of one results folder: ``web.json`` and ``web.bin`` (docs/web-format.md), ``curves.json``."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from daemon.exports import export
from daemon.jobs.summary import FRAMES, SummaryError, read_summary
from daemon.motion.options import MotionOptions
from daemon.motion.people import Person, read_motion

FILES = ("web.json", "web.bin", "curves.json")
PEOPLE = {"smooth": MotionOptions(), "found": MotionOptions(raw=True)}
"""Joined, filled and smooth, or as the tracks were found: what overlay.mp4 shows."""
ANGLES = {
    f"{side}_{name}": tuple(f"{side}_{joint}" for joint in joints)
    for side in ("left", "right")
    for name, joints in {
        "knee": ("hip", "knee", "ankle"), "hip": ("shoulder", "hip", "knee"), "elbow": ("shoulder", "elbow", "wrist"),
        "shoulder": ("elbow", "shoulder", "hip"),
    }.items()
}  # fmt: skip
"""Plain three-point angles: the second joint's, between the first and the third."""


def write_clip(results: Path, folder: Path, motion: MotionOptions, options: Mapping[str, Any]) -> None:
    """Write `FILES` of the results folder ``results`` into ``folder``.

    Args:
        motion: one of `PEOPLE`.
        options: of the backend, for the body where the results hold no surfaces.

    Raises:
        ResultsError, SubjectError, ConfigurationError: see `daemon.exports.web`.
        OSError: it cannot be written.
    """
    frames = results / FRAMES
    export("web", "", frames, folder, options=options, motion=motion)
    found = read_motion(frames, motion)
    names = list(found.clip.header.joint_names)
    curves = {"people": [_curves(person, names) for person in found.people]}
    beside = folder / ".curves.json.part"
    beside.write_text(json.dumps(curves, separators=(",", ":")))
    beside.replace(folder / "curves.json")


def _curves(person: Person, names: list[str]) -> dict[str, Any]:
    """Confidence (0 to 1) and angles (degrees) of one person, one number for each of its ``frames``."""
    found = {}
    for name, joints in ANGLES.items():
        if all(joint in names for joint in joints):
            a, b, c = (person.joints[:, names.index(joint)] for joint in joints)
            one, other = a - b, c - b
            length = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            cosine = (one * other).sum(axis=1) / np.maximum(length, 1e-12)
            found[name] = np.degrees(np.arccos(np.clip(cosine, -1, 1))).round(1).tolist()
    return {
        "id": person.id,
        "frames": person.frames.tolist(),
        "confidence": person.confidence.round(3).tolist(),
        "angles": found,
    }


def about(results: Path, name: str) -> dict[str, Any]:
    """``clip.json``: what the page says beside the pictures.

    Raises:
        SummaryError: this is no results folder.
    """
    found = read_summary(results)
    overlay = next((one for one in ("overlay.mp4", "overlay.png") if (results / one).is_file()), None)
    return {
        "name": name or found["input"]["name"],
        "frames": found["frames"],
        "backend": found["backend"],
        "failed_frames": found["failed_frames"],
        "restarts": found["restarts"],
        "kind": found["input"].get("kind", "video"),
        "overlay": overlay,
    }


class Prepared:
    """`FILES` of results folders, made once and kept in a folder of bounded size. From any thread.

    Args:
        folder: made if need be; what an earlier daemon left there is removed.
        options: of the backend.
        most: bytes kept; the clip that was not asked for the longest goes first.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], most: int = 2 << 30) -> None:
        self._folder = folder
        self._options = options
        self._most = most
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}
        self._sizes: dict[str, int] = {}
        """Bytes of what is there, what was asked for last at the end."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, key: str, results: Path, people: str) -> Path:
        """The folder with the files, made if need be; ``key`` tells results apart. Raises as `write_clip`."""
        name = f"{key}-{people}"
        target = self._folder / name
        with self._lock:
            lock = self._making.setdefault(name, threading.Lock())
        with lock:
            if not target.is_dir():
                beside = self._folder / f".{name}.part"
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir()
                write_clip(results, beside, PEOPLE[people], self._options)
                beside.rename(target)
        with self._lock:
            size = self._sizes.pop(name, None) or sum(path.stat().st_size for path in target.iterdir())
            self._sizes[name] = size
            while len(self._sizes) > 1 and sum(self._sizes.values()) > self._most:
                old = next(iter(self._sizes))
                del self._sizes[old]
                shutil.rmtree(self._folder / old, ignore_errors=True)
        return target

    def file(self, key: str, results: Path, people: str, name: str) -> Path:
        """One of `FILES`."""
        return self.folder(key, results, people) / name


__all__ = ["FILES", "PEOPLE", "Prepared", "SummaryError", "about", "write_clip"]
