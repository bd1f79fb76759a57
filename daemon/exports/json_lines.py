"""``frames.jsonl``: the results as JSON, a line a frame, without the surfaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daemon.exports.request import Request
from stages.records import Track
from stages.results import read_results

DECIMALS = 5


def export_json(request: Request) -> list[Path]:
    """`write_json` as an export."""
    return [write_json(request.results, request.folder)]


def write_json(results: Path, folder: Path) -> Path:
    """Write one JSON object a line: ``frame``, ``time`` (s), ``tracks`` and, where it failed, ``failed``.

    A track has ``id``, ``box`` (pixels), ``confidence``, ``camera`` (m), ``pose`` (24 rotation matrices),
    ``betas``, ``joints_3d`` (m) and ``joints_2d`` (pixels).

    Raises:
        ResultsError: the results cannot be read.
    """
    path = folder / "frames.jsonl"
    beside = path.with_suffix(".part")
    with read_results(results) as found, beside.open("w") as file:
        for record in found:
            line: dict[str, Any] = {
                "frame": record.frame,
                "time": round(record.time, 6),
                "tracks": [_plain(track) for track in record.tracks],
            }
            if record.failed is not None:
                line["failed"] = {"stage": record.failed.stage, "reason": record.failed.reason}
            file.write(json.dumps(line) + "\n")
    beside.replace(path)
    return path


def _plain(track: Track) -> dict[str, Any]:
    arrays = {name: getattr(track, name) for name in ("box", "camera", "pose", "betas", "joints_3d", "joints_2d")}
    return {
        "id": track.id,
        "confidence": round(track.confidence, DECIMALS),
        "detected": track.detected,
        **{name: array.astype(float).round(DECIMALS).tolist() for name, array in arrays.items()},
    }
