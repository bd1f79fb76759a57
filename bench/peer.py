"""Poseward beside what people would otherwise write: MediaPipe's own pose loop, on the same clip, in one run.

    python -m venv peer && peer/bin/pip install mediapipe==0.10.21
    python -m bench.peer VIDEO --peer peer/bin/python [--rounds 3] [--landmarks full|heavy]

The peer reads the video with OpenCV and runs ``mediapipe.solutions.pose`` with the same landmark network; it finds one
person, and gives no mesh. Both take turns; start-up and model loading are left out of both. Prints frames per second,
the median of the rounds' ratios, and how far the joints that both have are apart, in percent of the person's height.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.pipeline import pipeline_once
from stages.owner.jobs import JobEvent
from stages.owner.pipeline import Pipeline
from stages.records import F32
from stages.results import read_results
from stages.settings import PipelineSettings

LOOP = """
import json, sys, time
import cv2, mediapipe
video, out, size = sys.argv[1:]
pose = mediapipe.solutions.pose.Pose(model_complexity=int(size))
pose.process(cv2.cvtColor(cv2.VideoCapture(video).read()[1], cv2.COLOR_BGR2RGB))
pose.reset()
capture, found, began = cv2.VideoCapture(video), [], time.perf_counter()
while True:
    there, image = capture.read()
    if not there:
        break
    landmarks = pose.process(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).pose_landmarks
    height, width = image.shape[:2]
    found.append(landmarks and [[p.x * width, p.y * height] for p in landmarks.landmark])
seconds = time.perf_counter() - began
json.dump([seconds, found], open(out, "w"))
"""
SIZES = {"full": "1", "heavy": "2"}
JOINTS = {
    name: number + side
    for number, joint in ((11, "shoulder"), (13, "elbow"), (15, "wrist"), (23, "hip"), (25, "knee"), (27, "ankle"))
    for side, name in enumerate((f"left_{joint}", f"right_{joint}"))
}
"""Joints that both have: the skeleton's names, and the landmarks' numbers."""


def peer_once(python: Path, video: Path, scratch: Path, landmarks: str) -> tuple[float, list[Any]]:
    """Seconds of the peer's loop, and its landmarks (33, 2) in pixels or None of each frame."""
    out = scratch / "peer.json"
    subprocess.run(
        [str(python), "-c", LOOP, str(video), str(out), SIZES[landmarks]], check=True, stderr=subprocess.DEVNULL
    )
    seconds, found = json.loads(out.read_text())
    return float(seconds), found


def apart(results: Path, peers: list[Any]) -> tuple[list[float], int, int]:
    """Of the frames in which both see somebody: the mean distance of the joints of the nearest body, as a share of the
    box's longer side; and in how many frames only Poseward, and only the peer, sees anybody."""
    shares, ours, theirs = [], 0, 0
    with read_results(results) as records:
        names = records.header.joint_names
        where = [names.index(name) for name in JOINTS]
        for record, landmarks in zip(records, peers, strict=False):
            ours += bool(record.tracks) and landmarks is None
            theirs += not record.tracks and landmarks is not None
            if record.tracks and landmarks is not None:
                peer = np.array(landmarks, np.float32)[list(JOINTS.values())]
                shares.append(min(_share(track.joints_2d[where], peer, track.box) for track in record.tracks))
    return shares, ours, theirs


def _share(joints: F32, peer: F32, box: F32) -> float:
    return float(np.linalg.norm(joints - peer, axis=1).mean() / max(box[2] - box[0], box[3] - box[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--peer", type=Path, required=True, help="interpreter that has mediapipe")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--landmarks", choices=SIZES, default="full")
    arguments = parser.parse_args()
    settings = PipelineSettings(options={"landmarks": arguments.landmarks})
    events: list[JobEvent] = []
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        pipeline = Pipeline(settings, events.append)
        try:
            pipeline.start()
            pipeline_once(pipeline, events, arguments.video, scratch / "warm-up")
            for number in range(arguments.rounds):
                alone, landmarks = peer_once(arguments.peer, arguments.video, scratch, arguments.landmarks)
                frames, seconds = pipeline_once(pipeline, events, arguments.video, scratch / f"{number}")
                rounds.append((frames / seconds, len(landmarks) / alone))
        finally:
            pipeline.close()
        shares, ours, theirs = apart(scratch / "warm-up" / "frames.msgpack", landmarks)
    table = Table(title=f"{arguments.video.name}, {arguments.landmarks}")
    for column in ("round", "Poseward, frames/s", "MediaPipe's loop, frames/s", "ratio"):
        table.add_column(column, justify="right")
    for number, (own, peers) in enumerate(rounds):
        table.add_row(str(number), f"{own:.1f}", f"{peers:.1f}", f"{own / peers:.2f}")
    console = Console()
    console.print(table)
    console.print(f"median ratio {statistics.median(own / peers for own, peers in rounds):.2f}")
    if shares:
        console.print(
            f"joints apart: median {statistics.median(shares):.1%} of the height, in {len(shares)} frames"
        )
    console.print(f"somebody seen by Poseward only in {ours} frames, by the peer only in {theirs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
