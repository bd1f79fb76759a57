"""The format for browsers, read back as docs/web-format.md says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.exports import export
from daemon.motion.options import MotionOptions
from stages.records import Failure, FrameRecord
from stages.results import read_results
from tests.daemon.motion_clips import body, records, walking, write

RAW = MotionOptions(raw=True)


def clip(folder: Path) -> Path:
    """Two people, one of them lost for a while, and a frame that failed."""
    first, second = walking(), walking(start=np.array([0.5, 0.4, 70.0]), speed=0.2)
    found = records(
        (
            f / 30,
            [first.track(1, f / 30, vertices=True)]
            + ([second.track(2, f / 30, vertices=True)] if not 10 <= f < 16 else []),
        )
        for f in range(30)
    )
    found[20] = FrameRecord(20, 20 / 30, [], Failure("mesh", "no"))
    return write(folder / "frames.msgpack", found)


def read(folder: Path) -> tuple[dict[str, Any], bytes]:
    return json.loads((folder / "web.json").read_text()), (folder / "web.bin").read_bytes()


def parts(manifest: dict[str, Any], data: bytes, offset: int) -> dict[str, Any]:
    kinds = {"float32": "<f4", "int16": "<i2"}
    return {
        name: np.frombuffer(data, kinds[part["type"]], part["count"], offset + part["offset"])
        for name, part in manifest["record"].items()
        if name != "bytes"
    }


def test_every_surface_comes_back_within_a_tenth_of_a_millimetre(tmp_path: Path) -> None:
    results = clip(tmp_path)
    export("web", "clip.mp4", results, tmp_path, motion=RAW)
    manifest, data = read(tmp_path)
    faces = np.frombuffer(data, "<u2", manifest["faces"]["count"] * 3, manifest["faces"]["offset"])
    assert (faces.reshape(-1, 3) == body().faces).all()
    worst = 0.0
    with read_results(results) as found:
        for record, frame in zip(found, manifest["frames"], strict=True):
            assert frame["time"] == pytest.approx(record.time, abs=1e-6)
            assert [person["id"] for person in frame["people"]] == [track.id for track in record.tracks]
            # One range holds the frame, and nothing else.
            piece = data[frame["offset"] : frame["offset"] + frame["bytes"]]
            assert len(piece) == len(record.tracks) * manifest["record"]["bytes"]
            for track, person in zip(record.tracks, frame["people"], strict=True):
                got = parts(manifest, piece, person["offset"] - frame["offset"])
                vertices = got["vertices"].reshape(-1, 3) / 32767 * got["scale"]
                assert track.vertices is not None
                worst = max(worst, float(np.abs(vertices - track.vertices).max()))
                assert np.allclose(got["camera"], track.camera, atol=1e-5)
                assert np.allclose(got["joints"].reshape(-1, 3), track.joints_3d, atol=1e-5)
    assert 0 < worst < 1e-4
    assert manifest["bytes"] == len(data)
    assert len(data) + (tmp_path / "web.json").stat().st_size <= results.stat().st_size / 2


def test_marks_of_frames_and_people(tmp_path: Path) -> None:
    export("web", "clip.mp4", clip(tmp_path), tmp_path)
    manifest, _ = read(tmp_path)
    assert manifest["video"] == {"width": 640, "height": 360, "frames": 30, "fps": [30, 1], "variable": False}
    assert [person["id"] for person in manifest["people"] if person["subject"]] == [1]
    frames = manifest["frames"]
    assert [number for number, frame in enumerate(frames) if frame.get("failed")] == [20]
    filled = [
        (number, person["id"]) for number, frame in enumerate(frames) for person in frame["people"]
        if person.get("filled") and person["seen"] is False
    ]  # fmt: skip
    assert filled == [*((number, 2) for number in range(10, 16)), (20, 1), (20, 2)]


def test_surfaces_are_posed_again_where_the_results_have_none(tmp_path: Path) -> None:
    actor = walking()
    results = write(tmp_path / "frames.msgpack", records((f / 30, [actor.track(1, f / 30)]) for f in range(5)))
    export("web", "clip.mp4", results, tmp_path, motion=RAW)
    manifest, data = read(tmp_path)
    got = parts(manifest, data, manifest["frames"][3]["people"][0]["offset"])
    truth = actor.track(1, 3 / 30, vertices=True).vertices
    assert np.abs(got["vertices"].reshape(-1, 3) / 32767 * got["scale"] - truth).max() < 1e-4


def test_an_export_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    results = clip(tmp_path)

    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export("web", "clip.mp4", results, tmp_path, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["frames.msgpack"]
