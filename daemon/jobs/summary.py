"""``summary.json`` and how results get into their place: written beside, then renamed.

A reader of a results folder sees either nothing or a whole file.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.owner.jobs import JobOutcome

SUMMARY = "summary.json"
FRAMES = "frames.msgpack"
VERSION = 1
MOST_LISTED = 100
PACKAGES = ("ai-edge-litert", "av", "msgpack", "numpy", "opencv-python", "pyzmq", "scipy", "torch")
"""Packages whose version can change results."""
_CHUNK = 1 << 20


class SummaryError(Exception):
    """There is no usable ``summary.json``; names the file."""


def identify(source: Path, proceed: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Who an input is, by content: ``{"sha256": hex, "bytes": int}``.

    A folder (of images) is hashed over its files' names and contents, in order. ``proceed`` is called between
    chunks and may raise to stop.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
    for file in files:
        if source.is_dir():
            digest.update(os.fsencode(file.name) + b"\0" + str(file.stat().st_size).encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                proceed()
                digest.update(chunk)
                size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}


def summarise(
    source: Path,
    identity: Mapping[str, Any],
    outcome: JobOutcome,
    *,
    backend: str,
    settings: Mapping[str, Any],
    resumed: bool = False,
) -> dict[str, Any]:
    """The content of ``summary.json`` (docs/results.md describes every field).

    Args:
        source: the input as it was given.
        identity: what `identify` said about it.
        outcome: how the job ended.
        backend: the backend's name.
        settings: those that differ from their defaults, by dotted key.
        resumed: whether an earlier, interrupted run was continued.
    """
    return {
        "poseward": VERSION,
        "input": {"name": source.name, "path": str(source.absolute()), **identity, **outcome.source},
        "frames": outcome.frames,
        "people": outcome.people,
        "tracks": outcome.tracks,
        "failed_frames": [
            {"frame": number, "stage": failure.stage, "reason": failure.reason}
            for number, failure in outcome.failed_frames
        ],
        "damaged_frames": [
            {"first": first, "last": last, "reason": reason} for first, last, reason in outcome.damaged_frames
        ],
        "truncated": outcome.truncated,
        "seconds": {stage: round(value, 3) for stage, value in outcome.seconds.items()},
        "wall_seconds": round(outcome.wall_seconds, 3),
        "restarts": outcome.restarts,
        "resumed": resumed,
        "backend": backend,
        "settings": dict(settings),
        "versions": {**versions(), **outcome.versions},
        "exports": {},
    }


def versions() -> dict[str, str]:
    """Versions of Poseward, of Python and of the installed packages that can change results."""
    found = {"poseward": _version("poseward") or "unknown", "python": platform.python_version()}
    for package in PACKAGES:
        if version := _version(package):
            found[package] = version
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def in_brief(content: Mapping[str, Any]) -> dict[str, Any]:
    """A summary whose lists end after `MOST_LISTED` entries, for job maps: of those a reply holds many. ``left_out``
    counts what is missing of which; ``summary.json`` has it."""
    brief = dict(content)
    left_out = {}
    for name, value in content.items():
        if isinstance(value, list) and len(value) > MOST_LISTED:
            brief[name] = value[:MOST_LISTED]
            left_out[name] = len(value) - MOST_LISTED
    return {**brief, "left_out": left_out} if left_out else brief


def write_summary(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write ``summary.json`` beside and rename it into place.

    Raises:
        OSError: the folder cannot be written.
    """
    return write_json(folder / SUMMARY, content)


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file that appears whole or not at all, even if the power fails.

    What is not UTF-8 in file names comes as the replacement character, as it does in the API.
    """
    beside = path.with_name(f".{path.name}.part")
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    with beside.open("w", encoding="utf-8") as file:
        file.write(text.encode(errors="surrogateescape").decode(errors="replace"))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    sync_folder(path.parent)
    return path


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a results folder.

    Raises:
        SummaryError: there is none, or it is none of ours.
    """
    path = folder / SUMMARY
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SummaryError(f"{path}: {error.strerror}; is {folder} a results folder?") from error
    except (ValueError, RecursionError) as error:
        raise SummaryError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("poseward") != VERSION:
        raise SummaryError(f"{path}: not a summary of this version of Poseward")
    return content


_SHAPE: Mapping[str, type | tuple[type, ...]] = {
    "input": dict, "frames": int, "people": int, "tracks": int, "failed_frames": list, "seconds": dict,
    "wall_seconds": (int, float), "restarts": list, "exports": dict,
}  # fmt: skip


def damage(content: Mapping[str, Any]) -> str:
    """What is wrong with a summary that `read_summary` took; empty where every field that is counted on stands."""
    for name, kind in _SHAPE.items():
        if not isinstance(content.get(name), kind):
            return f"{name} is missing" if name not in content else f"{name} is {content[name]!r}"
    return ""


def place(source: Path, target: Path) -> None:
    """Move a file so that ``target`` appears whole: a rename, or over a file system's border a copy beside it,
    forced to disk, and a rename.

    Raises:
        OSError: it cannot be written.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".{target.name}.part")
        with source.open("rb") as reader, beside.open("wb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK)
            writer.flush()
            os.fsync(writer.fileno())
        beside.rename(target)
        source.unlink()
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Force a rename to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
