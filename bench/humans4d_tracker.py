"""Milliseconds a frame of the 4D-Humans tracker: every texture encoded, as upstream does, and only those that decide.

    python -m bench.humans4d_tracker [--people 1,4,12] [--frames 12] [--threads 1]

Both sides run in this one process with the same synthetic weights (the texture encoder has its real size, the pose
predictor a small one) over the same scripted people, who stand in two rows and sway, and must come to the same
identities. Prints one JSON line for each number of people.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench import humans4d_synthetic as synthetic
from stages.backends.humans4d import rle
from stages.backends.humans4d.crops import widen
from stages.backends.humans4d.mesh import full_translation, project
from stages.backends.humans4d.options import Options
from stages.backends.humans4d.texture import PackedTexture
from stages.records import People

WIDTH, HEIGHT = 1920, 1080
WARM = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", default="1,4,12", help="in a frame (default: 1,4,12)")
    parser.add_argument("--frames", type=int, default=12, help="for each (default: 12)")
    parser.add_argument("--threads", type=int, default=1, help="for computing (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N (default: cpu)")
    given = parser.parse_args()
    synthetic.stand_in_torchvision_operators()
    track = import_module("stages.backends.humans4d.track")
    with tempfile.TemporaryDirectory() as folder:
        values = synthetic.write_files(Path(folder))
        options = Options.from_mapping({**values, "threads": given.threads, "device": given.device})
        track.load_shared(options, quiet)
        for count in map(int, given.people.split(",")):
            measure(track, options, [crowd(count, frame) for frame in range(given.frames)], count)


def quiet(detail: str, fraction: float | None = None) -> None:
    del detail, fraction


def measure(track: Any, options: Options, script: list[People], count: int) -> None:
    told: dict[str, Any] = {"people": count}
    identities = []
    for name in ("all", "lazy"):
        tracker = track.PhalpTracker.load(options)
        companion = tracker._companion
        if name == "all":
            tracker._tracker.metric = tracker._tracker.metric._upstream
            # A pair at a time, as upstream asks.
            companion.get_uv_distance = lambda t, f, c=companion: (*c.texture_codes([t], [f])[0], 0.0)
        seconds, encoded = [], []
        ask = companion.texture_codes
        companion.texture_codes = lambda t, f, ask=ask, encoded=encoded: encoded.append(len(t)) or ask(t, f)
        records = []
        for frame, people in enumerate(script):
            started = time.perf_counter()
            records += tracker.update(frame, frame / 30, people)
            seconds.append(time.perf_counter() - started)
        records += tracker.finish()
        identities.append([[t.id for t in record.tracks] for record in records])
        told[f"{name}_ms"] = round(1000 * float(np.median(seconds[WARM:])), 1)
        told[f"{name}_pairs_a_frame"] = round(sum(encoded) / (len(script) - 1), 1)
    told["same_identities"] = identities[0] == identities[1]
    print(json.dumps(told), flush=True)


def crowd(count: int, frame: int) -> People:
    """``count`` people in two rows, who sway, with the features that HMR2 and PHALP would give."""
    boxes, poses, betas, packed, looks = [], [], [], [], []
    for person in range(count):
        fixed, moving = np.random.default_rng(person), np.random.default_rng((person, frame))
        x = 160 + 1600 * (person // 2) / max(1, (count + 1) // 2 - 1) if count > 2 else 400 + 600 * person
        y = 40 + 420 * (person % 2)
        boxes.append(np.array([x - 70, y, x + 70, y + 400]) + moving.normal(0, 3, 4))
        turns = fixed.normal(0, 1, (24, 3, 3))
        poses.append(np.linalg.qr(turns + moving.normal(0, 0.05, turns.shape))[0])
        betas.append(fixed.normal(0, 1, 10))
        looks.append(fixed.normal(0, 5, 4096))
        texture = np.zeros((4, 256, 256), np.float32)
        seen = (fixed.random((256, 256)) < 0.3) & (moving.random((256, 256)) < 0.9)
        texture[3] = np.where(seen, 1, -1)
        texture[:3] = np.where(seen, fixed.normal(0, 0.2, (3, 256, 256)), 0)
        packed.append(PackedTexture.pack(texture))
    box = np.stack(boxes).astype(np.float32)
    padded = np.asarray(widen(box), np.float32)
    extent, centre = padded[:, 2:] - padded[:, :2], (padded[:, 2:] + padded[:, :2]) / 2
    camera = np.tile(np.array([[0.9, 0.0, 0.1]], np.float32), (count, 1))
    where = full_translation(camera, centre, extent, WIDTH, HEIGHT)
    joints = np.random.default_rng(7).normal(0, 0.3, (count, 45, 3)).astype(np.float32)
    joints[:, 44] = 0
    flat = project(joints, where).reshape(count, -1)
    pose, shape = np.stack(poses).astype(np.float32), np.stack(betas).astype(np.float32)
    placed = where / np.array([1, 1, 200], np.float32)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[100:440, 50:90] = True
    return People(
        boxes=box, scores=np.full(count, 0.95, np.float32), camera=where, pose=pose, betas=shape,
        joints_3d=joints[:, :24], joints_2d=flat.reshape(count, 45, 2)[:, :24] * WIDTH,
        vertices=np.zeros((count, 6890, 3), np.float32),
        extra={
            "appe": np.stack(looks).astype(np.float32),
            "pose": np.concatenate((pose.reshape(count, -1), shape, placed), 1),
            "loca": np.concatenate((flat, where, where, where), 1), "uv": [[p.seen, p.colours] for p in packed],
            "center": centre, "scale": extent, "camera": where, "camera_bbox": camera, "3d_joints": joints,
            "2d_joints": flat, "masks": [rle.encode(mask)] * count, "size": [HEIGHT, WIDTH],
            "classes": np.zeros(count, np.int64), "index": np.arange(count),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
