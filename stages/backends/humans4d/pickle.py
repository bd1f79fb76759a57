"""``tracks.pkl`` as ``track.py`` writes it, so that what reads upstream's file reads ours.

A dict by frame path, each value with the keys of `KEYS`; lists run over the frame's tracks, in PHALP's order. The
keys ``tracked_ids`` and ``tracked_bbox`` hold only the tracks that were detected in the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from stages.records import FrameRecord, Track

KEYS = (
    "time", "shot", "frame_path", "tracked_ids", "tracked_bbox", "tid", "bbox", "tracked_time", "appe", "loca", "pose",
    "center", "scale", "size", "img_path", "img_name", "class_name", "conf", "annotations", "smpl", "camera",
    "camera_bbox", "3d_joints", "2d_joints", "mask", "extra_data",
)  # fmt: skip
"""Keys of a frame, in upstream's order; with rendering off its file lacks ``appe``, ``loca`` and ``pose``."""

_FROM_EXTRA = (
    "appe", "loca", "pose", "center", "scale", "size", "annotations", "camera", "camera_bbox", "3d_joints", "2d_joints",
    "mask", "extra_data",
)  # fmt: skip


def tracks_pickle(records: Iterable[FrameRecord], frame_path: Callable[[int], str]) -> dict[str, dict[str, Any]]:
    """The content of ``tracks.pkl``.

    Args:
        records: a whole result, in order, whose tracks carry their ``extra`` (`stages.backends.humans4d.track`).
        frame_path: the path that stands for a frame; upstream unpacks videos to JPEG files and uses theirs.

    Raises:
        ValueError: a track without the entries that only this backend's tracker leaves.
    """
    return {frame_path(record.frame): _frame(record, frame_path) for record in records}


def write_tracks_pickle(
    path: Path, records: Iterable[FrameRecord], frame_path: Callable[[int], str] | None = None
) -> None:
    """Write ``tracks.pkl``, compressed as upstream does, beside ``path`` and then renamed into place. Frames are
    called as upstream's unpacked ones, 000001.jpg and on, unless ``frame_path`` says otherwise."""
    content = tracks_pickle(records, frame_path or (lambda frame: f"{frame + 1:06d}.jpg"))
    partial = path.with_name(path.name + ".part")
    joblib.dump(content, partial, compress=3)
    partial.replace(path)


def _frame(record: FrameRecord, name_of: Callable[[int], str]) -> dict[str, Any]:
    tracks, path = record.tracks, name_of(record.frame)
    for track in tracks:
        lacking = [name for name in ("frame", "class_name", *_FROM_EXTRA) if name not in track.extra]
        if lacking:
            raise ValueError(
                f"frame {record.frame}, track {track.id}: no {lacking[0]!r}; tracks.pkl can be written only from "
                "results of the humans4d backend that kept its extra entries"
            )
    seen = [track for track in tracks if track.detected]
    frame: dict[str, Any] = {
        "time": record.frame,
        "shot": max((int(track.extra.get("shot", 0)) for track in tracks), default=0),
        "frame_path": path,
        "tracked_ids": [track.id for track in seen],
        "tracked_bbox": [_corner_and_size(track) for track in seen],
        "tid": [track.id for track in tracks],
        "bbox": [_corner_and_size(track) for track in tracks],
        "tracked_time": [int(track.extra.get("tracked_time", not track.detected)) for track in tracks],
        # The frame a detection was made in, which for an unseen track is an earlier one.
        "img_path": (paths := [name_of(int(track.extra["frame"])) for track in tracks]),
        "img_name": [name.rsplit("/", 1)[-1] for name in paths],
        "class_name": [np.int64(track.extra["class_name"]) for track in tracks],
        "conf": [np.float32(track.confidence) for track in tracks],
        "smpl": [_smpl(track) for track in tracks],
    }
    for name in _FROM_EXTRA:
        frame[name] = [track.extra[name] for track in tracks]
    return {name: frame[name] for name in KEYS}


def _corner_and_size(track: Track) -> Any:
    x0, y0, x1, y1 = track.box
    return np.array([x0, y0, x1 - x0, y1 - y0])


def _smpl(track: Track) -> dict[str, Any]:
    return {"global_orient": track.pose[:1], "body_pose": track.pose[1:], "betas": track.betas}
